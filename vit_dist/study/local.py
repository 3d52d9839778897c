"""A study on this machine: what state each cell is in, and training the cells that are not done one after another."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit_dist.config.plugins import check_plugins
from vit_dist.config.schema import Recipe, dump
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.exit_codes import INTERRUPTED
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import format_seconds
from vit_dist.study.grid import Cell

Attempt = Callable[[Recipe, Path], int]
"""Runs one attempt of a recipe in a run directory and returns the exit code; 0: finished, or stopped on request."""

Evaluation = Callable[[Cell, Path], int]
"""Runs the evaluations of a cell on its run directory and returns the exit code."""

State = Literal["missing", "started", "running", "stopped", "failed", "done"]


class StudyStoppedError(RunError):
    """A study that was asked to stop before its last cell."""

    exit_code = INTERRUPTED


@dataclass(frozen=True)
class CellState:
    """How far a cell is, by the files in its run directory.

    missing: never begun; running: an attempt gave a sign of life lately; started: one began and is gone, killed or on a
    machine that is; stopped: saved and ended on request; failed; done.
    """

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
    run, status = files.read_json(names.RUN), files.status()
    known = None if run is None else str(run.get("recipe_hash"))
    for ended in _ENDED:
        if status is not None and status.status == ended:
            return CellState(ended, known, status.step, status.reason)
    if status is not None and time.time() - files.last_life(status).time < names.SILENT_S:
        return CellState("running", known, status.step, status.reason)
    return CellState(
        "missing" if run is None and status is None else "started", known, None if status is None else status.step
    )


def evaluation_words(cell: Cell, run_dir: Path) -> list[str]:
    """Words of the command line that evaluates a run as the study asks for."""
    # JSON is YAML.
    return ["evaluate", str(run_dir), f"evaluators={json.dumps([dump(e) for e in cell.evaluations])}"]


def evaluated(cell: Cell, run_dir: Path) -> bool:
    """Whether the study's evaluations have seen the last step of a run that is done."""
    files = RunDir(run_dir)
    status, wanted = files.status(), [dump(e) for e in cell.evaluations]
    return status is not None and files.evaluation(wanted, status.step) is not None


_ENDED: tuple[State, ...] = ("stopped", "failed", "done")


def check_directories(cells: Sequence[Cell], directory: Path) -> None:
    """Make sure that no cell would go on in the directory of another recipe.

    Raises:
        ConfigError: some would; they are named.
        RunError: some have begun with other plug-in code, also those that are done: one study would mix the two.
    """
    strangers = []
    for cell in cells:
        known = cell_state(directory / cell.name).recipe_hash
        if known is not None and known != cell.hash:
            strangers.append(f"{cell.name} ({known} there, {cell.hash} here)")
        elif known is not None and cell.recipe.plugins:
            run_dir = directory / cell.name
            check_plugins(cell.recipe, RunDir(run_dir).read_json(names.RUN), run_dir)
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
    jobs: int = 1,
    evaluate: Evaluation | None = None,
    last_error_line: Callable[[Path], str] = lambda _: "",
) -> None:
    """Train every cell that is not done, in order, and evaluate it where the study asks for that.

    Args:
        cells: the whole study.
        directory: run directories are `directory/<cell name>`.
        attempt: starts one attempt and waits for it; from several threads where `jobs` is over 1.
        say: prints a line.
        again: the command that goes on, for messages.
        keep_going: train the other cells when one fails.
        jobs: cells trained at once.
        evaluate: looks at a run that is done; None: no evaluations.
        last_error_line: what an attempt in a run directory printed last, where it does not print here.

    Raises:
        ConfigError: a run directory is of another recipe.
        StudyStoppedError: a cell was stopped, or Ctrl-C.
        RunError: a cell failed.
    """
    check_directories(cells, directory)
    course = _WorkerLoop(cells, directory, attempt, say, again, keep_going, jobs, evaluate, last_error_line)
    if jobs == 1:
        course.work()
    else:
        with ThreadPoolExecutor(jobs, "cell") as pool:
            for worker in [pool.submit(course.work) for _ in range(jobs)]:
                worker.exception()  # waits; what went wrong first is raised below
        if course.trouble is not None:
            raise course.trouble
    if course.failed:
        failed = ", ".join(course.failed)
        raise RunError(f"{len(course.failed)} of {len(cells)} cells failed: {failed}; try them again with: {again}")


class _WorkerLoop:
    """A study on its way: whoever works takes the next cell, until there is none left or one has gone wrong."""

    def __init__(
        self,
        cells: Sequence[Cell],
        directory: Path,
        attempt: Attempt,
        say: Callable[[str], None],
        again: str,
        keep_going: bool,
        jobs: int,
        evaluate: Evaluation | None,
        last_error_line: Callable[[Path], str],
    ) -> None:
        self._cells, self._directory, self._attempt = cells, directory, attempt
        self._say, self._again, self._keep_going, self._jobs = say, again, keep_going, jobs
        self._evaluate, self._last_words = evaluate, last_error_line
        self._todo = iter(enumerate(cells))
        self._lock = threading.Lock()
        self._pace = _Pace()
        self.failed: list[str] = []
        self.trouble: Exception | None = None

    def work(self) -> None:
        """Train cells until there are none left. Raises as `run_cells`."""
        while True:
            with self._lock:
                i, cell = next(self._todo, (0, None)) if self.trouble is None else (0, None)
            if cell is None:
                return
            try:
                self._train(i, cell)
                self._look(cell)
            except Exception as error:
                with self._lock:
                    self.trouble = self.trouble or error
                raise

    def _train(self, i: int, cell: Cell) -> None:
        run_dir, say, again = self._directory / cell.name, self._say, self._again
        head = f"[{i + 1}/{len(self._cells)}] {headline(cell)}"
        before = cell_state(run_dir)
        if before.state == "done":
            say(f"{head}: done before")
            return
        goes_on = f", goes on from an earlier attempt ({before.state})" if before.state != "missing" else ""
        say(f"{head}: {engine_line(cell.recipe)}{goes_on}{self._time_left(i)}")
        began = time.monotonic()
        try:
            code = self._attempt(cell.recipe, run_dir)
        except KeyboardInterrupt:
            raise StudyStoppedError(f"stopped in {cell.name}; to go on: {again}") from None
        after = cell_state(run_dir)
        if code == 0 and after.state == "done":
            if before.state == "missing":
                self._pace.add(cell, time.monotonic() - began)
            if self._jobs > 1:
                say(f"{head}: done in {format_seconds(time.monotonic() - began)}")
            return
        if code == 0 and after.state == "stopped":
            because = f" ({after.reason})" if after.reason else ""
            raise StudyStoppedError(f"{cell.name} was stopped at step {after.step}{because}; to go on: {again}")
        reason = after.reason or self._last_words(run_dir)
        because = f": {reason}" if reason else ""
        trouble = f"{cell.name} failed with exit code {code}{because}"
        if not self._keep_going:
            raise RunError(f"{trouble}. Its files are in {run_dir}; when it is mended, go on with: {again}")
        say(f"{trouble}; going on with the others")
        self.failed.append(cell.name)

    def _look(self, cell: Cell) -> None:
        """Evaluate a cell that is done, unless that was done before."""
        run_dir = self._directory / cell.name
        if self._evaluate is None or not cell.evaluations or cell_state(run_dir).state != "done":
            return
        if evaluated(cell, run_dir):
            return
        self._say(f"    evaluating {cell.name}: {', '.join(e.name for e in cell.evaluations)}")
        try:
            code = self._evaluate(cell, run_dir)
        except KeyboardInterrupt:
            raise StudyStoppedError(f"stopped while {cell.name} was evaluated; to go on: {self._again}") from None
        if code == 0:
            return
        reason = self._last_words(run_dir)
        trouble = f"the evaluation of {cell.name} failed with exit code {code}" + (f": {reason}" if reason else "")
        if not self._keep_going:
            raise RunError(f"{trouble}; when it is mended, go on with: {self._again}")
        self._say(f"{trouble}; going on with the others")
        self.failed.append(cell.name)

    def _time_left(self, i: int) -> str:
        rest = [c for c in self._cells[i:] if cell_state(self._directory / c.name).state != "done"]
        left = self._pace.left(rest)
        return f", about {format_seconds(left / self._jobs)} left" if left else ""


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
