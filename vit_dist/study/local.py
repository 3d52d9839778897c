"""A study on this machine: what state each cell is in, and training the cells that are not done one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.rundir import RunDir
from vit_dist.core.units import format_seconds
from vit_dist.study.grid import Cell

Attempt = Callable[[Recipe, Path], int]
"""Runs one attempt of a recipe in a run directory and returns the exit code; 0: finished, or stopped on request."""

State = Literal["missing", "started", "stopped", "failed", "done"]


class StudyStoppedError(RunError):
    """A study that was asked to stop before its last cell."""

    exit_code = 130


@dataclass(frozen=True)
class CellState:
    """How far a cell is, by the files in its run directory."""

    state: State
    recipe_hash: str | None = None
    step: int | None = None
    reason: str = ""


def cell_state(run_dir: Path) -> CellState:
    """How far the run in a directory is.

    Raises:
        RunError: its `run.json` or `status.json` is damaged.
    """
    files = RunDir(run_dir)
    run, status = files.read_json("run.json"), files.status()
    known = None if run is None else str(run.get("recipe_hash"))
    for ended in _ENDED:
        if status is not None and status.status == ended:
            return CellState(ended, known, status.step, status.reason)
    # An attempt that says it is running is running elsewhere, and holds the lock, or was killed.
    return CellState("missing" if run is None and status is None else "started", known)


_ENDED: tuple[State, ...] = ("stopped", "failed", "done")


def check_directories(cells: Sequence[Cell], directory: Path) -> None:
    """Make sure that no cell would go on in the directory of another recipe.

    Raises:
        ConfigError: some would; they are named.
    """
    strangers = []
    for cell in cells:
        known = cell_state(directory / cell.name).recipe_hash
        if known is not None and known != cell.hash:
            strangers.append(f"{cell.name} ({known} there, {cell.hash} here)")
    if strangers:
        shown = ", ".join(strangers[:5]) + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")
        raise ConfigError(
            f"{directory} holds runs of another recipe: {shown}. Give another directory (--runs DIR) or another name "
            f"(name=NAME), or remove those run directories."
        )


def run_cells(
    cells: Sequence[Cell],
    directory: Path,
    attempt: Attempt,
    say: Callable[[str], None],
    *,
    again: str,
    keep_going: bool = False,
) -> None:
    """Train every cell that is not done, in order.

    Args:
        cells: the whole study.
        directory: run directories are `directory/<cell name>`.
        attempt: starts one attempt and waits for it.
        say: prints a line.
        again: the command that goes on, for messages.
        keep_going: train the other cells when one fails.

    Raises:
        ConfigError: a run directory is of another recipe.
        StudyStoppedError: a cell was stopped, or Ctrl-C.
        RunError: a cell failed.
    """
    check_directories(cells, directory)
    pace = _Pace()
    failed: list[str] = []
    for i, cell in enumerate(cells):
        run_dir = directory / cell.name
        head = f"[{i + 1}/{len(cells)}] {headline(cell)}"
        before = cell_state(run_dir)
        if before.state == "done":
            say(f"{head}: done before")
            continue
        rest = [c for c in cells[i:] if cell_state(directory / c.name).state != "done"]
        left = pace.left(rest)
        goes_on = f", goes on from an earlier attempt ({before.state})" if before.state != "missing" else ""
        say(f"{head}: {engine_line(cell.recipe)}{goes_on}" + (f", about {format_seconds(left)} left" if left else ""))
        began = time.monotonic()
        try:
            code = attempt(cell.recipe, run_dir)
        except KeyboardInterrupt:
            raise StudyStoppedError(f"stopped in {cell.name}; to go on: {again}") from None
        after = cell_state(run_dir)
        if code == 0 and after.state == "done":
            if before.state == "missing":
                pace.add(cell, time.monotonic() - began)
            continue
        if code == 0 and after.state == "stopped":
            because = f" ({after.reason})" if after.reason else ""
            raise StudyStoppedError(f"{cell.name} was stopped at step {after.step}{because}; to go on: {again}")
        because = f": {after.reason}" if after.reason else ""
        trouble = f"{cell.name} failed with exit code {code}{because}"
        if not keep_going:
            raise RunError(f"{trouble}. Its files are in {run_dir}; when it is mended, go on with: {again}")
        say(f"{trouble}; going on with the others")
        failed.append(cell.name)
    if failed:
        raise RunError(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}; try them again with: {again}")


def headline(cell: Cell) -> str:
    """A cell for people: 'vit, 2,000 examples, seed 0'."""
    examples = "all examples" if cell.subset is None else f"{cell.subset:,} examples"
    return f"{cell.family}, {examples}, seed {cell.seed}"


def engine_line(recipe: Recipe) -> str:
    """The engine and the precision: 'deepspeed, ZeRO stage 1, bf16'."""
    stage = getattr(recipe.engine, "zero_stage", None)
    return ", ".join([recipe.engine.name, *([] if stage is None else [f"ZeRO stage {stage}"]), recipe.precision])


class _Pace:
    """Time left, from the seconds per planned example of the cells trained so far, by family where known."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[int, float]]] = {}

    def add(self, cell: Cell, seconds: float) -> None:
        if cell.planned_examples:
            self._seen.setdefault(cell.family, []).append((cell.planned_examples, seconds))

    def left(self, cells: Sequence[Cell]) -> float | None:
        everything = [pair for pairs in self._seen.values() for pair in pairs]
        if not everything:
            return None
        total = 0.0
        for cell in cells:
            pairs = self._seen.get(cell.family, everything)
            typical = sum(examples for examples, _ in pairs) / len(pairs)
            rate = sum(seconds for _, seconds in pairs) / sum(examples for examples, _ in pairs)
            total += rate * (cell.planned_examples or typical)
        return total
