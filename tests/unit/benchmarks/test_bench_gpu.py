"""The driver of benchmarks/gpu: whatever becomes of one stage's process, it is told and the others run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.driver import Job, append, read_results, run_jobs
from benchmarks.gpu.plan import Stage
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
    assert "| fine |  |  | x 1.5 |" in markdown(lines)
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
    stages = tuple(Stage(f"s{number}", "", 60) for number in range(len(codes) - 1))
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
