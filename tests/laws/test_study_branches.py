"""Branches as cells of a study: planned with it, trained behind their trunk, counted once, and exact.

In this process and on one rank.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import trains_here
from tests.histories import speak
from vit_dist.cli.study import main
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import CheckpointError, ConfigError, RefusalError, RunError
from vit_dist.core.world import World
from vit_dist.scaling.collect import collect
from vit_dist.scaling.compute import total_exaflops
from vit_dist.study.branches import checkpoint_in
from vit_dist.study.grid import Cell, load_study, plan
from vit_dist.study.local import cell_state, run_cells
from vit_dist.train.attempt import attempt

RECIPE = """
global_batch: 16
horizon: 6 steps
precision: fp32
model: vit-test
data: {num_classes: 4, train: "TRAIN", val: "VAL", image_size: 28, augment: none, decode_threads: 1}
optim: {name: adamw, lr: 3e-3}
schedule: {name: constant, warmup: 1 step}
engine: plain
checkpoint: {every: 2 steps, keep: 1, keep_every: 2 steps}
eval: {every: 100 steps}
guards: {hang: 0s}
"""
STUDY = """
name: horizons
recipe: RECIPE
models: [vit-test]
subsets: [all]
branches:
  three: {at: 2 steps, set: {horizon: 3 steps, schedule.cooldown: 1 step}}
  six: {at: 64 examples, set: {horizon: 6 steps, schedule.cooldown: 2 steps}}
"""


@pytest.fixture
def file(tmp_path: Path, small_set: str, small_val: str) -> Path:
    (tmp_path / "base.yaml").write_text(RECIPE.replace("TRAIN", small_set).replace("VAL", small_val))
    path = tmp_path / "horizons.yaml"
    path.write_text(STUDY.replace("RECIPE", str(tmp_path / "base.yaml")))
    return path


@pytest.fixture
def alone() -> Iterator[None]:
    with trains_here():
        yield


def cells_in(file: Path, directory: Path, *words: str) -> list[Cell]:
    return [cell.within(directory) for cell in plan(load_study(str(file), words))]


def train(recipe: Recipe, run_dir: Path) -> int:
    attempt(recipe, run_dir, World())
    return 0


def test_branches_are_planned_trained_once_their_trunk_is_and_reported_as_what_they_are(
    file: Path, tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    study = runs / "horizons"
    cells = cells_in(file, study)
    assert [(cell.name, cell.trunk, cell.begins_after) for cell in cells] == [
        ("vit-test-all-s0", "", 0),
        ("vit-test-all-s0-three", "vit-test-all-s0", 2),
        ("vit-test-all-s0-six", "vit-test-all-s0", 4),
    ]
    assert main(["plan", str(file), "--runs", str(runs), "--json", "-"]) == 0
    planned = json.loads(capsys.readouterr().out)
    # Each what it trains itself: the trunk 6 steps, and branches 1 and 2 more.
    assert [(one["steps"], one["examples"], one.get("trunk", "")) for one in planned] == [
        (6, 96, ""),
        (1, 16, "vit-test-all-s0"),
        (2, 32, "vit-test-all-s0"),
    ]
    assert planned[1]["flops"] * 6 == planned[2]["flops"] * 3 == planned[0]["flops"]

    # A branch without its trunk says what it waits for, and neither it nor what lies there is touched.
    with pytest.raises(CheckpointError, match=r"not there; its trunk vit-test-all-s0 makes it: train that first"):
        attempt(cells[1].recipe, study / cells[1].name, World())
    with pytest.raises(RunError, match=r"its trunk vit-test-all-s0 has saved no checkpoint of step 2 yet"):
        run_cells(cells[1:2], study, train, print, resume_command="again")

    begun: list[str] = []

    def one(recipe: Recipe, run_dir: Path) -> int:
        begun.append(recipe.name)
        return train(recipe, run_dir)

    run_cells(cells, study, one, print, resume_command="again")
    assert begun == [cell.name for cell in cells]
    # What was planned is what they are: nothing is trained again, by the same file.
    run_cells(cells_in(file, study), study, one, print, resume_command="again")
    assert len(begun) == 3
    assert [cell_state(study / cell.name).recipe_hash for cell in cells] == [cell.hash for cell in cells]
    capsys.readouterr()
    assert main(["status", str(file), "--runs", str(runs)]) == 0
    assert "vit-test, three" in capsys.readouterr().out

    found = collect(str(study)).observations
    assert {(o.run, o.trunk, o.examples_seen) for o in found} == {
        ("vit-test-all-s0", "", 96),
        ("vit-test-all-s0-three", "vit-test-all-s0@2", 48),
        ("vit-test-all-s0-six", "vit-test-all-s0@4", 96),
    }
    image = next(o.exaflops for o in found if not o.trunk) / 96  # type: ignore[operator]
    assert total_exaflops(found) == pytest.approx(image * (96 + 16 + 32))
    assert main(["report", str(file), "--runs", str(runs), "--out", str(tmp_path / "report")]) == 0
    assert "branched at 4" in (tmp_path / "report" / "report.html").read_text()

    # Another trunk's checkpoint, under the name of the one that was planned, begins no branch.
    other = cells_in(file, study, "optim.lr=1e-3")[1]
    with pytest.raises(RefusalError, match=r"is of step 2 of recipe [0-9a-f]{16}, not of step 2 of [0-9a-f]{16}, from"):
        attempt(other.recipe, tmp_path / "other", World())


def test_side_by_side_a_branch_begins_as_soon_as_its_trunk_has_come_so_far(file: Path, tmp_path: Path) -> None:
    cells = cells_in(file, tmp_path / "runs", "seeds=[0,1]")
    trunk = cells[0]
    three, all_begun, order = threading.Event(), threading.Event(), list[str]()

    def one(recipe: Recipe, run_dir: Path) -> int:
        order.append(recipe.name)
        if recipe.name == trunk.name:
            place = Path(checkpoint_in(str(run_dir.parent), trunk.name, 2))
            place.mkdir(parents=True)
            (place / "COMMITTED.json").write_text("{}")
            # It trains on until its first branch has begun, which needs no more than this.
            assert three.wait(30)
        elif recipe.name == f"{trunk.name}-three":
            three.set()
        else:
            all_begun.set()
        raise RunError("enough")

    with pytest.raises(RunError, match="6 of 6 cells failed"):
        run_cells(cells, tmp_path / "runs", one, lambda _: None, resume_command="again", jobs=2)
    assert order.index(f"{trunk.name}-three") > order.index(trunk.name)
    assert f"{trunk.name}-six" not in order


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["branches.three.at=3 steps"],
            r"three\.at=3 steps: its trunk does not save and keep step 3 \(checkpoint\.every=2",
        ),
        (["branches.three.at=8 steps"], r"at=8 steps is step 8 of its trunk, which is trained for 6 steps"),
        (["branches.three.at=1 epoch"], r"at=1 epoch: how many steps that is hangs on the set"),
        (
            ["branches.three.set.global_batch=8"],
            r"branches\.three: global_batch \(16 -> 8\): a branch cannot change it",
        ),
        (["branches.three.set.branch.step=1"], r"branches\.three\.set: branch\.step: a branch cannot be given it"),
        (["branches.three.set.seed=1"], r"branches\.three\.set: 'seed' is set by the grid itself"),
        (
            ["branches.three.set.schedule.cooldwn=1"],
            r"\.three.*cooldwn: unknown key; did you mean 'schedule\.cooldown'",
        ),
        (["checkpoint.keep_every=4 steps"], r"branches\.three\.at=2 steps: its trunk does not save and keep"),
    ],
)
def test_a_branch_that_cannot_be_is_refused_when_the_study_is_planned(words: list[str], error: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=error):
        plan(load_study(str(file), words))


def test_as_jobs_each_branch_is_behind_its_trunk_and_one_that_can_begin_waits_for_none(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.slurm.cluster import load_cluster
    from launcher.submit.study import StudyJobs, _are_paired, arrays, todo

    directory = tmp_path / "runs" / "horizons"
    cells = tuple(cells_in(file, directory, "seeds=[0,1,2]"))
    jobs = StudyJobs(load_cluster("dev"), directory, cells)

    def planned() -> list[tuple[str, list[str], str]]:
        left = todo(jobs)
        found = arrays(jobs, left, tmp_path / "jobs", largest=2, code=tmp_path)
        assert all(_are_paired(found, array) for array in found if array.behind)
        assert all(f"{array.name}.list" in array.train for array in found)
        return [
            (array.name, [cell.name.removeprefix("vit-test-all-") for cell in array.cells], array.behind)
            for array in found
        ]

    assert planned() == [
        ("train-0", ["s0", "s1"], ""),
        ("train-0-three", ["s0-three", "s1-three"], "train-0"),
        ("train-0-six", ["s0-six", "s1-six"], "train-0"),
        ("train-1", ["s2"], ""),
        ("train-1-three", ["s2-three"], "train-1"),
        ("train-1-six", ["s2-six"], "train-1"),
    ]
    # The first trunk has come to its first branch, and the second is in the queue.
    place = Path(checkpoint_in(str(directory), cells[0].name, 2))
    place.mkdir(parents=True)
    (place / "COMMITTED.json").write_text("{}")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    speak(directory / cells[3].name, "running", 1)
    monkeypatch.undo()
    left = todo(jobs)
    assert [cell.name for cell in left.train] == [cells[0].name, cells[6].name, cells[1].name]
    assert [cell.name for cell in left.behind] == [cells[2].name, cells[7].name, cells[8].name]
    lack = f"its trunk {cells[3].name} has saved no checkpoint of step"
    assert left.later == {cells[4].name: f"{lack} 2 yet", cells[5].name: f"{lack} 4 yet"}
