"""The driver of benchmarks/gpu: whatever becomes of one stage's process, it is told and the others run."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
from pathlib import Path

import pytest

import benchmarks
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.driver import Job, append, read_results, run_jobs
from benchmarks.gpu.goals import expectations
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.plan import BUDGET_S, MACHINE, STAGES, Stage, in_order
from benchmarks.gpu.table import last_run, markdown

FIGURE = (
    "from benchmarks.gpu.driver import append; append(out, dict(stage=stage, case='', what='', figures=dict(x=1.5)))"
)


def job(out: Path, stage: str, code: str, deadline_s: float = 60) -> Job:
    """A process of a few lines of Python, which knows `out` and `stage`."""
    head = f"import sys, os, time, subprocess, pathlib; out = pathlib.Path({str(out)!r}); stage = {stage!r}"
    return Job(stage, "", (sys.executable, "-c", f"{head}\n{code}"), deadline_s)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_stages_that_die_hang_or_say_nothing_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "dies", f"{FIGURE}; sys.exit(3)"),
        job(tmp_path, "hangs", f"{FIGURE}; time.sleep(300)", deadline_s=5),
        job(tmp_path, "silent", ""),
        job(tmp_path, "fine", FIGURE),
    ]
    problems = run_jobs(jobs, tmp_path, time.monotonic() + 300)
    assert [problem.partition(" after ")[0] for problem in problems] == [
        "dies: exit status 3",
        "hangs: stopped at its deadline of 5 s",
        "silent: ended without a figure",
    ]
    lines = read_results(tmp_path)
    assert [line["stage"] for line in lines if "figures" in line] == ["dies", "hangs", "fine"]
    assert [line["stage"] for line in lines if "problem" in line] == ["dies", "hangs", "silent"]
    assert "| fine |  |  | x 1.5 |  |  |" in markdown(lines)
    assert "| dies |  |  | **exit status 3 after" in markdown(lines)


def test_nothing_that_a_stage_started_or_stored_outlives_its_deadline(tmp_path: Path) -> None:
    code = """
import tempfile
kept = pathlib.Path(tempfile.mkdtemp()) / "tar"
kept.write_bytes(bytes(1000))
child = subprocess.Popen(["sleep", "300"])
(out / "left").write_text(f"{child.pid} {kept}")
child.wait()
"""
    assert run_jobs([job(tmp_path, "hangs", code, deadline_s=5)], tmp_path, time.monotonic() + 300)
    pid, _, kept = (tmp_path / "left").read_text().partition(" ")
    until = time.monotonic() + 30
    while alive(int(pid)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(int(pid))
    assert not Path(kept).exists()


def test_a_stage_for_which_no_time_is_left_is_told(tmp_path: Path) -> None:
    problems = run_jobs([job(tmp_path, "late", FIGURE)], tmp_path, time.monotonic() + 3)
    assert [problem.partition(", ")[0] for problem in problems] == ["late: not started"]


def test_a_figure_that_is_not_finite_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append(tmp_path, {"figures": {"loss": float("nan")}})
    assert read_results(tmp_path) == []


def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *codes: str) -> int:
    """The command with processes of a few lines for its header and its stages."""
    stages = tuple(Stage(f"s{number}", "", 1, 60) for number in range(len(codes) - 1))
    by_name = dict(zip(["machine", *(stage.name for stage in stages)], codes, strict=True))
    monkeypatch.setattr(command, "STAGES", stages)
    monkeypatch.setattr(command, "_job", lambda stage, case, args: job(args.out, stage.name, by_name[stage.name]))
    return command.main(["--out", str(tmp_path), "--smoke"])


def test_the_exit_status_is_1_where_a_stage_failed_and_0_where_none_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(tmp_path, monkeypatch, FIGURE, "sys.exit(2)", FIGURE) == 1
    assert "1 of 2 failed:\n  s0: exit status 2 after" in capsys.readouterr().err
    assert (tmp_path / "results.md").read_text().count("\n| s") == 3  # the head of the table, a failure, a figure
    assert run_command(tmp_path, monkeypatch, FIGURE, FIGURE, FIGURE) == 0
    assert "**" not in (tmp_path / "results.md").read_text()  # of the run that ended last
    assert len(last_run(read_results(tmp_path))) == 3


def test_no_stage_runs_where_the_header_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(tmp_path, monkeypatch, "sys.exit(1)", FIGURE) == 1
    assert [line["stage"] for line in read_results(tmp_path)] == ["machine"]


def test_a_stage_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "step"])
    assert "no stage 'step'; did you mean 'steps'" in capsys.readouterr().err


H100 = {"stage": "machine", "case": "", "figures": {"device": "NVIDIA H100 80GB HBM3"}}


def figures_of(stage: str, case: str, what: str, **figures: float) -> dict[str, object]:
    return {"stage": stage, "case": case, "what": what, "figures": figures}


def test_each_figure_stands_beside_its_goal_and_its_prediction() -> None:
    lines = [
        H100,
        figures_of("steps", "ViT-L/16:128", "compiled, plain", images_per_s=1100.0, of_bare=0.98),
        figures_of("e2e", "ViT-B/16:256", "", data_wait=0.01),
        figures_of("trajectories", "", "bit-test, fp32", last_loss=0.5, zero1=2e-5, zero3=7e-5),
    ]
    rows = [
        row.split(" | ")[-2:] for row in markdown(lines).splitlines() if row.startswith(("| steps", "| e2e", "| t"))
    ]
    assert rows == [
        ["images_per_s >=1150: **missed**; of_bare >=0.97: met", "images_per_s 1150 |"],
        ["data_wait <=0.02: met", " |"],
        ["zero1 <=5e-5: met; zero3 <=5e-5: **missed**", " |"],
    ]
    assert "Goals that were not measured: steps ViT-H/14:64 compiled, plain images_per_s >=430; " in markdown(lines)


def test_goals_of_one_device_are_not_held_against_another_nor_against_a_smoke_run() -> None:
    line = figures_of("steps", "ViT-L/16:128", "compiled, plain", images_per_s=1100.0, of_bare=0.9)
    other = {**H100, "figures": {"device": "NVIDIA A100-SXM4-80GB"}}
    assert "images_per_s >=" not in markdown([other, line])
    assert "of_bare >=0.97: **missed**" in markdown([other, line])
    assert "missed" not in markdown([{**H100, "what": "smoke"}, line])


def test_every_goal_is_of_a_case_that_runs_and_can_be_read() -> None:
    cases = {stage.name: [*stage.cases, *stage.later] for stage in STAGES}
    for one in expectations("NVIDIA H100 80GB HBM3"):
        assert one.case == "*" or one.case in cases[one.stage], one
        assert one.goal or one.predicted, one
        if one.goal:
            assert one.goal[:2] in (">=", "<="), one
            assert one.is_met(float(one.goal[2:])), one


def test_all_cases_are_expected_to_fit_the_budget_and_what_matters_least_comes_last() -> None:
    jobs = in_order(STAGES)
    assert MACHINE.usual_s + sum(stage.usual_s for stage, _ in jobs) <= BUDGET_S
    assert all(stage.usual_s < stage.deadline_s for stage in (MACHINE, *STAGES))
    assert [case for _, case in jobs[-3:]] == ["R152x2:64", "R50+ViT-L/16:96", "ViT-g/14:32"]
    assert sorted(jobs, key=str) == sorted(((s, c) for s in STAGES for c in (*s.cases, *s.later)), key=str)
    assert [case for _, case in in_order(STAGES, smoke=True)] == [c for s in STAGES for c in s.smoke]


def test_a_figure_is_held_against_one_of_another_stage_of_the_same_run(tmp_path: Path) -> None:
    kit = Kit("e2e", "ViT-B/16:256", tmp_path, smoke=True)
    for images_per_s in (100.0, 200.0):
        append(tmp_path, H100)
        assert kit.over(150.0, "steps", "ViT-B/16:256", "eager, zero1", "images_per_s") is None
        append(tmp_path, figures_of("steps", "ViT-B/16:256", "eager, zero1", images_per_s=images_per_s))
    assert kit.over(150.0, "steps", "ViT-B/16:256", "eager, zero1", "images_per_s") == 0.75


@pytest.mark.parametrize("module", sorted(m.name for m in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")))
def test_every_benchmark_finds_what_it_imports(module: str) -> None:
    importlib.import_module(module)
