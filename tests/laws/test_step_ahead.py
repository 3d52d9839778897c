"""Law 4 for a host that runs a step ahead: when results are read, and where a run is cut, decides nothing.

In this process and on one rank, so that a run can be cut at each of its steps; kills of real processes are in
test_resume.py and test_recovery.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import trains_here
from tests.laws.test_resume import recipe_file
from vit_dist.config.load import load_recipe
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.train import loop
from vit_dist.train.attempt import attempt
from vit_dist.train.run import Run

STEPS = 34
# At a learning rate as absurd as this, and so low a limit, some loss is a spike however the numbers round.
SPIKES = ["engine.name=plain", f"horizon={STEPS} steps", "optim.lr=0.3", "optim.clip=null", "schedule.warmup=18 steps"]
SPIKES += [
    "precision=fp32",
    "guards.spike_z=1.0",
    "guards.spike=skip",
    "guards.spike_window=8",
    "guards.hang=0s",
    "guards.max_in_row=34",
    # Kept beside the weights, and cut and skipped with them.
    "ema={decay: 0.9, start: 4 steps}",
]


class CutError(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with trains_here():
        yield


def train(recipe: Path, run_dir: Path, *overrides: str) -> None:
    attempt(load_recipe(str(recipe), [*SPIKES, "checkpoint.every=5 steps", *overrides]), run_dir, World())


def end(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The train state at the end, and every weight and moment."""
    last = committed(RunDir(run_dir).checkpoints)[0]
    marker, problem = read_marker(last)
    assert (problem, marker["state"]["step"]) == ("", STEPS)
    return marker["state"], {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


@pytest.fixture
def undisturbed(tmp_path: Path, small_set: str, small_val: str) -> tuple[Path, Path]:
    recipe = recipe_file(tmp_path, small_set, small_val)
    train(recipe, tmp_path / "undisturbed", "log.every=34 steps", "eval.every=34 steps")
    state, _ = end(tmp_path / "undisturbed")
    assert state["spikes"] > 2, "else nothing is shown"
    return recipe, tmp_path / "undisturbed"


@pytest.mark.parametrize("every", [1, 7])
def test_when_results_are_read_decides_nothing(undisturbed: tuple[Path, Path], tmp_path: Path, every: int) -> None:
    recipe, straight = undisturbed
    cadences = [f"log.every={every} steps", f"eval.every={2 * every} steps", f"checkpoint.every={4 * every} steps"]
    train(recipe, tmp_path / "other", *cadences, "guards.checksum_every=11 steps")
    assert end(tmp_path / "other") == end(straight)


@pytest.mark.parametrize("apart", [pytest.param(1, marks=pytest.mark.drill), 3])
def test_a_run_that_is_cut_at_each_of_its_steps_ends_as_the_undisturbed_one(
    undisturbed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: int
) -> None:
    recipe, straight = undisturbed
    queue, cut_at = loop._queue, {"step": 1}

    def cut(run: Run, *given: Any) -> Any:
        step = run.state.step + 1
        # By turns before the step is queued, and after it, when its result is on its way.
        if step == cut_at["step"] and step % 2:
            raise CutError
        queued = queue(run, *given)
        if step == cut_at["step"]:
            raise CutError
        return queued

    monkeypatch.setattr(loop, "_queue", cut)
    for cut_at["step"] in range(1, STEPS + 1, apart):
        with pytest.raises(CutError):
            train(recipe, tmp_path / "cut")
    cut_at["step"] = 0
    train(recipe, tmp_path / "cut")
    assert end(tmp_path / "cut") == end(straight)


def test_a_run_under_fsdp_that_is_cut_ends_as_the_undisturbed_one(
    tmp_path: Path, small_set: str, small_val: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, queue, cut_at = recipe_file(tmp_path, small_set, small_val), loop._queue, {"step": 0}
    train(recipe, tmp_path / "straight", "engine.name=fsdp")

    def cut(run: Run, *given: Any) -> Any:
        queued = queue(run, *given)
        if run.state.step + 1 == cut_at["step"]:
            raise CutError
        return queued

    monkeypatch.setattr(loop, "_queue", cut)
    for cut_at["step"] in (3, 17, 31):
        with pytest.raises(CutError):
            train(recipe, tmp_path / "cut", "engine.name=fsdp")
    cut_at["step"] = 0
    train(recipe, tmp_path / "cut", "engine.name=fsdp")
    assert end(tmp_path / "cut") == end(tmp_path / "straight")


def test_a_stop_that_is_asked_for_in_a_step_comes_after_the_next_one(
    undisturbed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, straight = undisturbed
    queue = loop._queue

    def ask(run: Run, *given: Any) -> Any:
        queued = queue(run, *given)
        if run.state.step + 1 in {4, 17}:
            run.stop.reason = "a test"
        return queued

    monkeypatch.setattr(loop, "_queue", ask)
    for stands in (5, 18):
        train(recipe, tmp_path / "stopped")
        status = history.read(tmp_path / "stopped").status
        assert status is not None
        assert (status.status, status.step) == ("stopped", stands)
    train(recipe, tmp_path / "stopped")
    assert end(tmp_path / "stopped") == end(straight)
