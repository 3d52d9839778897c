"""A study: the grid it plans, the runs it trains on this machine, and its verbs on the command line."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.histories import speak
from tests.unit.scaling.logged_runs import log_run
from vit_dist.cli.study import main
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, RunError, VitDistError
from vit_dist.core.run.directory import RunDir
from vit_dist.study.grid import Cell, StudyConfig, load_study, plan
from vit_dist.study.local import StudyStoppedError, cell_state, run_cells

RECIPE = """
global_batch: 64
horizon: 10 epochs
model: vit-test
data: {num_classes: 10, image_size: 28, augment: none, subset_seed: 3}
optim: {name: adamw, lr: 5e-4}
schedule: {name: cosine}
engine: {name: deepspeed, zero_stage: 1}
"""
STUDY = """
name: tiny
recipe: RECIPE
families:
  vit: {model: vit-demo, optim.lr: 1e-3}
  bit: {model: {name: bit-demo}, optim: {lr: 2e-3, weight_decay: 0.05}}
subsets: [2k, 500]
seeds: [0, 1]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_DIST_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(RECIPE)
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.replace("RECIPE", str(tmp_path / "base.yaml")))
    return path


def cells_of(path: Path, *overrides: str) -> dict[str, Cell]:
    return {cell.name: cell for cell in plan(load_study(str(path), overrides))}


# The grid


def test_every_cell_is_a_resolved_recipe_that_knows_its_place(study_file: Path) -> None:
    cells = cells_of(study_file)
    assert list(cells)[:4] == ["vit-500-s0", "bit-500-s0", "vit-2000-s0", "bit-2000-s0"]
    assert len(cells) == 8
    recipe = cells["bit-2000-s1"].recipe
    assert (recipe.study, recipe.family, recipe.name, recipe.seed) == ("tiny", "bit", "bit-2000-s1", 1)
    assert (recipe.model.name, recipe.data.subset, recipe.data.subset_seed) == ("bit-demo", 2000, 3)
    assert recipe.optim.model_dump()["lr"] == 2e-3
    assert recipe.optim.model_dump()["weight_decay"] == 0.05
    assert cells["vit-500-s0"].recipe.optim.model_dump()["lr"] == 1e-3


def test_cells_of_one_study_have_identities_of_their_own(study_file: Path) -> None:
    assert len({cell.hash for cell in cells_of(study_file).values()}) == 8


def test_equal_epochs_and_equal_examples_are_different_horizons(study_file: Path) -> None:
    epochs = cells_of(study_file, "duration={equal: epochs, length: 4 epochs}")
    examples = cells_of(study_file, "duration={equal: examples, length: 8k examples}")
    assert [epochs[f"vit-{n}-s0"].planned_examples for n in (500, 2000)] == [2000, 8000]
    assert [examples[f"vit-{n}-s0"].planned_examples for n in (500, 2000)] == [8000, 8000]
    with pytest.raises(ConfigError, match="equal epochs need a length in epochs"):
        cells_of(study_file, "duration={equal: epochs, length: 8k examples}")


def test_all_means_the_whole_set_and_comes_last(study_file: Path) -> None:
    cells = cells_of(study_file, "subsets=[all, 500]")
    assert list(cells)[-1] == "bit-all-s1"
    assert cells["vit-all-s0"].recipe.data.subset is None
    assert cells["vit-all-s0"].planned_examples is None
    assert cells_of(study_file, "subsets=[null]").keys() == {f"{f}-all-s{s}" for f in ("vit", "bit") for s in (0, 1)}


def test_overrides_of_recipe_keys_hold_for_every_cell_and_win(study_file: Path) -> None:
    for cell in cells_of(study_file, "optim.lr=7e-3", "global_batch=32").values():
        assert cell.recipe.optim.model_dump()["lr"] == 7e-3
        assert cell.recipe.global_batch == 32


def test_a_rule_changes_the_cells_it_names_and_no_other(study_file: Path) -> None:
    study_file.write_text(
        study_file.read_text() + "cells:\n  - {when: {family: vit, subset: [500]}, set: {horizon: 1 epoch}}\n"
    )
    changed = {name for name, cell in cells_of(study_file).items() if str(cell.recipe.horizon) == "1 epoch"}
    assert changed == {"vit-500-s0", "vit-500-s1"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("families.vit.sead=1", "tiny, vit-500-s0: sead: unknown key; did you mean 'seed'"),
        ("families.vit.seed=1", "families.vit: 'seed' is set by the grid itself"),
        ("overrides.data.subset=10", "overrides: 'data.subset' is set by the grid itself"),
        ("families.vit.model=vit-dmo", "unknown model 'vit-dmo'; did you mean 'vit-demo'"),
        ("seeds=[0,0]", "seeds: given twice: 0"),
        ("subsets=[0]", "a subset of 0 examples"),
        ("subsets=[many]", "expected a count such as 2000"),
        ("subsets=[]", "a study needs at least one"),
        ("families={a b: {}, a-b: {}}", "both make a run called 'a-b-500-s0'"),
        ("name=../x", "name: "),
        ("recipe=demmo", "no recipe 'demmo'"),
        ("cells=[{when: {family: vitt}, set: {}}]", "the study has no family 'vitt'; did you mean 'vit'"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused_with_the_place(study_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        cells_of(study_file, override)
    assert message in str(error.value)


def test_a_study_without_families_is_refused(study_file: Path) -> None:
    head, _, rest = study_file.read_text().partition("families:")
    study_file.write_text(head + "families: {}\nsubsets:" + rest.partition("subsets:")[2])
    with pytest.raises(ConfigError, match="families: a study needs at least one family"):
        load_study(str(study_file))


def test_an_unknown_key_of_a_study_gets_the_nearest_name(study_file: Path) -> None:
    study_file.write_text(study_file.read_text() + "metrik: val/loss\n")
    with pytest.raises(ConfigError, match="metrik: unknown key; did you mean 'metric'"):
        load_study(str(study_file))


def test_a_thousand_cells_are_planned_in_two_seconds_without_torch(study_file: Path) -> None:
    code = f"""if True:
    import sys, time
    from vit_dist.study.grid import load_study, plan
    began = time.process_time()
    cells = plan(load_study({str(study_file)!r}, ["seeds=" + str(list(range(250)))]))
    assert len(cells) == 1000
    assert "torch" not in sys.modules and "matplotlib" not in sys.modules
    print(time.process_time() - began)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2


# Training on this machine


class Trainer:
    """Stands in for a run's processes: notes what it is asked to train, and ends as it is told to."""

    def __init__(self, endings: dict[str, tuple[int, str]] | None = None) -> None:
        self.asked: list[str] = []
        self.endings = endings or {}

    def __call__(self, recipe: Recipe, run_dir: Path) -> int:
        from vit_dist.config.load import recipe_hash

        self.asked.append(recipe.name)
        code, status = self.endings.get(recipe.name, (0, "done"))
        files = RunDir(run_dir)
        files.write_json("run.json", {"recipe_hash": recipe_hash(recipe)})
        speak(run_dir, status, 10, 640, "told to")
        if code == -2:
            raise KeyboardInterrupt
        return code


def train(cells: dict[str, Cell], root: Path, trainer: Callable[[Recipe, Path], int], **options: bool) -> list[str]:
    lines: list[str] = []
    run_cells(list(cells.values()), root, trainer, lines.append, resume_command="AGAIN", **options)
    return lines


def test_all_cells_are_trained_once_and_a_second_run_trains_none(study_file: Path, tmp_path: Path) -> None:
    cells, trainer = cells_of(study_file), Trainer()
    lines = train(cells, tmp_path / "runs", trainer)
    assert trainer.asked == list(cells)
    assert lines[2].startswith("[3/8] vit, 2,000 examples, seed 0: deepspeed, ZeRO stage 1, bf16")
    assert train(cells, tmp_path / "runs", trainer)[0] == "[1/8] vit, 500 examples, seed 0: done before"
    assert trainer.asked == list(cells)


@pytest.mark.parametrize("code", [0, -2])
def test_a_stopped_cell_stops_the_study_which_then_resumes_from_it(study_file: Path, tmp_path: Path, code: int) -> None:
    cells = cells_of(study_file)
    with pytest.raises(StudyStoppedError, match="resume with: AGAIN") as error:
        train(cells, tmp_path / "runs", Trainer({"vit-2000-s0": (code, "stopped")}))
    assert error.value.exit_code == 130
    again = Trainer()
    lines = train(cells, tmp_path / "runs", again)
    assert again.asked == list(cells)[2:]
    assert "resumes from an earlier attempt (stopped)" in lines[2]


def test_the_other_cells_are_trained_where_one_fails_unless_that_is_to_stop_the_study(
    study_file: Path, tmp_path: Path
) -> None:
    cells = cells_of(study_file)
    broken = Trainer({"bit-500-s0": (1, "failed"), "vit-500-s1": (71, "running")})
    with pytest.raises(RunError, match="2 of 8 cells failed; the others are trained") as told:
        train(cells, tmp_path / "a", broken)
    assert str(told.value).splitlines()[1:] == [
        "  bit-500-s0 failed with exit code 1: told to",
        "  vit-500-s1 failed with exit code 71",
        "try them again with: AGAIN",
    ]
    assert told.value.exit_code == 1
    assert broken.asked == list(cells)
    with pytest.raises(RunError, match="bit-500-s0 failed with exit code 1: told to"):
        train(cells, tmp_path / "b", broken, keep_going=False)
    assert broken.asked[8:] == ["vit-500-s0", "bit-500-s0"]


def test_a_cell_that_cannot_be_begun_leaves_the_others_to_be_trained(study_file: Path, tmp_path: Path) -> None:
    asked = []

    def taken(recipe: Recipe, run_dir: Path) -> int:
        asked.append(recipe.name)
        if recipe.name == "bit-500-s0":
            raise RunError("another attempt is running in this directory")
        return Trainer()(recipe, run_dir)

    with pytest.raises(RunError, match=r"1 of 8 cells failed(.|\n)*  bit-500-s0 could not be trained"):
        train(cells_of(study_file), tmp_path / "runs", taken)
    assert len(asked) == 8


@pytest.mark.parametrize("code", [130, 143, 140, -15])
def test_a_cell_that_a_person_ended_before_it_could_save_ends_the_study(
    study_file: Path, tmp_path: Path, code: int
) -> None:
    ended = Trainer({"bit-500-s0": (code, "failed")})
    with pytest.raises(StudyStoppedError, match="stopped in bit-500-s0; resume with: AGAIN") as stopped:
        train(cells_of(study_file), tmp_path / "runs", ended)
    assert stopped.value.exit_code == (143 if code == -15 else code)
    assert ended.asked == ["vit-500-s0", "bit-500-s0"]


@pytest.mark.parametrize(("code", "expected"), [(0, 130), (130, 130), (143, 143), (140, 140)])
def test_a_cell_that_has_saved_when_it_was_asked_to_stop_ends_the_study_with_the_code_of_what_asked(
    study_file: Path, tmp_path: Path, code: int, expected: int
) -> None:
    ended = Trainer({"bit-500-s0": (code, "stopped")})
    with pytest.raises(StudyStoppedError, match=r"bit-500-s0 was stopped at step .*; resume with: AGAIN") as stopped:
        train(cells_of(study_file), tmp_path / "runs", ended)
    assert stopped.value.exit_code == expected


def test_an_exit_code_of_0_without_a_word_that_the_run_is_done_is_a_failure(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"1 of 8 cells failed(.|\n)*  vit-500-s0 failed"):
        train(cells_of(study_file), tmp_path / "runs", Trainer({"vit-500-s0": (0, "running")}))


def test_runs_of_another_recipe_are_refused_before_anything_is_trained(study_file: Path, tmp_path: Path) -> None:
    train(cells_of(study_file), tmp_path / "runs", Trainer())
    trainer = Trainer()
    with pytest.raises(ConfigError, match=r"holds runs of another recipe: vit-500-s0 .*and 3 more"):
        train(cells_of(study_file, "optim.lr=1e-5"), tmp_path / "runs", trainer)
    assert trainer.asked == []


def test_the_time_left_is_told_from_the_second_cell_on(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    ends = Trainer()

    def ten_ms_an_example(recipe: Recipe, run_dir: Path) -> int:
        clock[0] += 0.01 * float(recipe.horizon.examples(global_batch=1, epoch_examples=recipe.data.subset or 0))
        return ends(recipe, run_dir)

    lines = train(cells_of(study_file, "seeds=[0]"), tmp_path / "runs", ten_ms_an_example)
    assert [line.partition("about ")[2] for line in lines] == ["", "7m30s left", "6m40s left", "3m20s left"]


def test_a_directory_that_was_never_trained_in_is_missing_and_a_killed_one_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cell_state(tmp_path / "none").state == "missing"
    RunDir(tmp_path / "some").write_json("run.json", {"recipe_hash": "x"})
    assert cell_state(tmp_path / "some").state == "started"
    speak(tmp_path / "some", "running", 3, 192)
    assert cell_state(tmp_path / "some").state == "started", "this process trains nothing"
    # On another machine, which cannot be asked whether its process lives.
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    speak(tmp_path / "there", "running", 3, 192)
    monkeypatch.undo()
    assert cell_state(tmp_path / "there").state == "running"


# The command line


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Replaces the launcher by one that logs what a trained run would log."""
    asked: list[tuple[str, int]] = []

    def run_local(recipe: Recipe, run_dir: Path, *, nproc: int) -> int:
        asked.append((recipe.name, nproc))
        log_run(run_dir.parent, recipe.family, recipe.data.subset or 0, recipe.seed)
        return Trainer()(recipe, run_dir)

    module = types.ModuleType("launcher.processes.ranks")
    module.run_local = run_local  # type: ignore[attr-defined]
    module.run_ranks = None  # type: ignore[attr-defined] - these studies evaluate nothing after training
    monkeypatch.setitem(sys.modules, "launcher.processes.ranks", module)
    return asked


def test_run_then_status_then_report_on_the_command_line(
    study_file: Path,
    tmp_path: Path,
    launcher: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(study_file), "--nproc", "2", "seeds=[0]", "--anyway"]) == 0
    assert launcher == [(f"{family}-{n}-s0", 2) for n in (500, 2000) for family in ("vit", "bit")]
    assert "vit-dist study report" in capsys.readouterr().out
    assert main(["status", str(study_file)]) == 0
    assert "4 of 8 runs done" in capsys.readouterr().out
    assert main(["report", str(study_file)]) == 0
    out = capsys.readouterr().out
    assert "4 cells of the study are not in the figure: vit-500-s1" in out
    assert "50.0 [1]" in out
    assert "standard deviation [seeds]" in " ".join(out.split())
    assert "higher is better" in out
    # A family of an earlier grid, in the same directory.
    log_run(tmp_path / "runs" / "tiny", "resnet", 500, 0)
    assert main(["report", str(study_file)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "left out: resnet-500-s0 (" in told
    assert "not a cell of the study as its file" in told
    assert "resnet" not in told.partition("left out")[0]
    assert "trained by another recipe than the study's file has now" in told
    png = tmp_path / "runs" / "tiny" / "report" / "accuracy_by_examples.png"
    assert png.is_file()
    assert str(png.relative_to(tmp_path)) in out


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("schedule.warmup=79 steps", "vit-500-s0, bit-500-s0: schedule.warmup=79 steps is 79 steps, longer than"),
        ("global_batch=63", "vit-2000-s0, bit-2000-s0: global_batch=63 is not divisible by 2 devices"),
        ("horizon=3 examples", "vit-2000-s0, bit-2000-s0: horizon=3 examples is less than half a step"),
    ],
)
def test_a_study_with_cells_that_will_not_fit_begins_only_where_that_is_said(
    study_file: Path,
    launcher: list[tuple[str, int]],
    override: str,
    problem: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", str(study_file), "--nproc", "2", "seeds=[0]", "schedule.warmup=0 steps", override]
    with pytest.raises(ConfigError, match=f"will not fit: .*{problem}(.|\n)*--anyway"):
        main(words)
    assert launcher == []
    assert main([*words, "--anyway"]) == 0
    assert problem in " ".join(capsys.readouterr().out.split())
    assert len(launcher) == 4


def test_logs_alone_are_enough_for_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_run(tmp_path / "logs", seed=0)
    log_run(tmp_path / "logs", seed=1, study="other", top1={10: 0.75})
    with pytest.raises(VitDistError, match="2 studies"):
        main(["report", "--logs", str(tmp_path / "logs"), "--out", str(tmp_path / "out")])
    assert main(["report", "other", "--logs", str(tmp_path / "logs"), "--out", str(tmp_path / "out")]) == 0
    assert "75.0 [1]" in capsys.readouterr().out


def test_plan_shows_the_cells(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(study_file), "seeds=[7]", "--cells"]) == 0
    out = capsys.readouterr().out
    assert "2 families x 2 sizes x 1 seed = 4 runs" in out
    assert "bit-2000-s7" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rum"], "unknown verb 'rum'; did you mean 'run'"),
        (["run"], "give one study, got none"),
        (["plan", "a", "b"], "give one study, got 2: a, b"),
        (["report", "nostudy"], "no study 'nostudy'"),
        (["run", "demo", "--nproc", "0"], "--nproc=0: at least 1"),
        (["run", "demo", "--jobs", "0"], "--jobs=0: at least 1"),
        (["submit", "demo", "--cluster", "dev", "--nodes", "0"], "--nodes=0: at least 1"),
        (["submit", "demo", "--cluster", "dev", "--max-parallel", "-1"], "--max-parallel=-1: 0 or more"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(
    argv: list[str], message: str, launcher: list[tuple[str, int]]
) -> None:
    with pytest.raises(ConfigError) as error:
        main(argv)
    assert message in str(error.value)
    assert launcher == []


def test_help_is_shown_without_heavy_imports() -> None:
    code = (
        "import sys; from vit_dist.cli.study import main; main(['--help']);"
        "sys.exit(bool({'torch', 'matplotlib', 'tensorboard', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vit-dist study run demo" in done.stdout


def test_the_shipped_study_is_three_families_by_three_sizes() -> None:
    study: StudyConfig = load_study("demo")
    assert list(study.families) == ["vit", "bit", "hybrid"]
    assert study.subsets == (500, 2000, 8000)
    assert study.seeds == (0,)
