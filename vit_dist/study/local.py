"""A study on this machine: what state each cell is in, and training the cells that are not done one after another."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit_dist.config.load import read_mapping
from vit_dist.config.plugins import check_plugins
from vit_dist.config.schema import Recipe, dump
from vit_dist.core.errors import ConfigError, RunError, VitDistError, is_refusal
from vit_dist.core.exit_codes import ASKED, INTERRUPTED, INVALID, of_return_code
from vit_dist.core.files import redact
from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import MARKER, committed, step_name
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.history import JobWord
from vit_dist.core.units import counted, format_seconds
from vit_dist.study.grid import Cell

Attempt = Callable[[Recipe, Path], int]
"""Runs one attempt of a recipe in a run directory and returns the exit code; 0: finished, or stopped on request."""

Evaluation = Callable[[Cell, Path], int]
"""Runs the evaluations of a cell on its run directory and returns the exit code."""

State = Literal["missing", "started", "running", "stopped", "failed", "done"]


_STATES: Mapping[str, State] = {
    "running": "running",
    "starting": "running",
    "ending": "running",
    "done": "done",
    "stopped": "stopped",
    "cancelled": "stopped",
    "failed": "failed",
    "given up": "failed",
}
"""Of how a run stands; all others have not begun, or will resume."""
_MOST_TOLD = 20
_LOOK_S = 0.5
"""So often a worker looks whether a trunk has come to where a branch begins, if there is nothing else to train."""


class StudyStoppedError(RunError):
    """A study that was asked to stop before its last cell; `code` is that of the signal, if one asked."""

    exit_code = INTERRUPTED

    def __init__(self, message: str, code: int = INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = code


@dataclass(frozen=True)
class CellState:
    """How far a cell is, by the files in its run directory.

    missing: never begun; running: its process lives, or its last heartbeat is recent; started: an attempt began and is
    gone, killed or on a machine that is; stopped: ended on request; failed; done.
    """

    state: State
    recipe_hash: str | None = None
    step: int | None = None
    reason: str = ""


def cell_state(run_dir: Path) -> CellState:
    """How far the run in a directory is.

    Raises:
        RunError: its `run.json` is damaged, or its history cannot be read.
    """
    run, state = RunDir(run_dir).read_json(names.RUN), history.read(run_dir)
    recipe_hash = None if run is None else str(run.get("recipe_hash"))
    standing, reason = history.stands(state, JobWord(), time.time())
    word = _STATES.get(standing, "started")
    if word == "started":
        reason = ""
    if state.status is None:
        if word == "started":
            word = "missing" if run is None else "started"
        return CellState(word, recipe_hash, reason=reason)
    return CellState(word, recipe_hash, state.progress.step, reason)


def waits_for(cell: Cell, directory: Path) -> str | None:
    """What a branch that has not begun still lacks of its trunk, in words; None where it can be trained."""
    branch = cell.recipe.branch
    if not cell.label or branch is None or committed(directory / cell.name / names.CHECKPOINTS):
        return None
    trunk = directory / cell.trunk
    place = trunk / names.CHECKPOINTS / step_name(branch.step)
    if (place / MARKER).is_file() or cell_state(directory / cell.name).state == "done":
        return None
    kept = cell_state(trunk).state == "done"
    return f"has {'kept' if kept else 'saved'} no checkpoint of step {branch.step:,}{'' if kept else ' yet'}"


def evaluation_words(cell: Cell, run_dir: Path) -> list[str]:
    """Words of the command line that evaluates a run as the study asks for."""
    # JSON is YAML.
    return ["evaluate", str(run_dir), f"evaluators={json.dumps([dump(e) for e in cell.evaluations])}"]


def evaluated(cell: Cell, run_dir: Path) -> bool:
    """Whether the study's evaluations have seen the last step of a run that is done."""
    status, wanted = history.read(run_dir).status, [dump(e) for e in cell.evaluations]
    if status is None:
        return False
    # With the run's own validation set: whoever has evaluated it on another one has answered another question.
    data = None
    with contextlib.suppress(ConfigError):
        data = read_mapping(run_dir / names.RECIPE).get("data")
    val = redact(str(data.get("val", ""))) if isinstance(data, dict) else None
    return history.evaluation(run_dir, wanted, status.step, val) is not None


def check_directories(cells: Sequence[Cell], directory: Path) -> None:
    """Make sure that no cell would resume in the directory of another recipe.

    Raises:
        ConfigError: some would; they are named. Or one holds other people's files.
        RunError: some have begun with other plug-in code, also those that are done: one study would mix the two.
    """
    others = []
    for cell in cells:
        RunDir(directory / cell.name).check_ours()
        recipe_hash = cell_state(directory / cell.name).recipe_hash
        if recipe_hash is not None and recipe_hash != cell.hash:
            others.append(f"{cell.name} ({recipe_hash} there, {cell.hash} here)")
        elif recipe_hash is not None and cell.recipe.plugins:
            run_dir = directory / cell.name
            check_plugins(cell.recipe, RunDir(run_dir).read_json(names.RUN), run_dir)
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise ConfigError(
            f"{directory} holds runs of another recipe: {shown}. Give another directory (--runs DIR) or another name "
            f"(name=NAME), or remove those run directories."
        )


def run_cells(
    cells: Sequence[Cell],
    directory: Path,
    attempt: Attempt,
    print_line: Callable[[str], None],
    *,
    resume_command: str,
    keep_going: bool = True,
    jobs: int = 1,
    evaluate: Evaluation | None = None,
    last_error_line: Callable[[Path], str] = lambda _: "",
) -> None:
    """Train every cell that is not done, in order, and evaluate it where the study asks for that.

    Args:
        cells: the whole study.
        directory: run directories are `directory/<cell name>`.
        attempt: starts one attempt and waits for it; from several threads where `jobs` is over 1.
        print_line: prints a line.
        resume_command: the command that resumes the study, for messages.
        keep_going: train the other cells when one fails; that one has is told at the end.
        jobs: cells trained at once.
        evaluate: evaluates a run that is done; None: no evaluations.
        last_error_line: what an attempt in a run directory printed last, where it does not print here.

    Raises:
        ConfigError: a run directory is of another recipe.
        StudyStoppedError: a cell was stopped, or Ctrl-C.
        RunError: a cell failed.
    """
    # Before anything is trained: a mistake in the last cell would else be found after days.
    check_directories(cells, directory)
    loop = _WorkerLoop(
        cells, directory, attempt, print_line, resume_command, keep_going, jobs, evaluate, last_error_line
    )
    if jobs == 1:
        # In this thread, where Ctrl-C arrives.
        loop.work()
    else:
        with ThreadPoolExecutor(jobs, "cell") as pool:
            for worker in [pool.submit(loop.work) for _ in range(jobs)]:
                # Waits. A worker that failed makes others fail after it, so the first error is raised below, and not
                # that of the first worker.
                worker.exception()
        if loop.first_error is not None:
            raise loop.first_error
    if loop.failed:
        told = list(loop.failed.values())
        others = "" if len(told) == len(cells) else "; the others are trained"
        lines = "\n".join(f"  {failure}" for failure in told[:_MOST_TOLD])
        more = f"\n  and {len(told) - _MOST_TOLD} more: {', '.join([*loop.failed][_MOST_TOLD:])}" * (
            len(told) > _MOST_TOLD
        )
        raise RunError(
            f"{len(told)} of {counted(len(cells), 'cell')} failed{others}:\n{lines}{more}\n"
            f"try them again with: {resume_command}"
        )


class _WorkerLoop:
    """Each worker takes the next cell, until there is none left, or one has failed and no other is to be trained."""

    def __init__(
        self,
        cells: Sequence[Cell],
        directory: Path,
        attempt: Attempt,
        print_line: Callable[[str], None],
        resume_command: str,
        keep_going: bool,
        jobs: int,
        evaluate: Evaluation | None,
        last_error_line: Callable[[Path], str],
    ) -> None:
        self._cells, self._directory, self._attempt = cells, directory, attempt
        self._print_line, self._resume_command = print_line, resume_command
        self._keep_going, self._jobs = keep_going, jobs
        self._evaluate, self._last_error_line = evaluate, last_error_line
        self._todo, self._busy = dict(enumerate(cells)), set[str]()
        self._lock = threading.Lock()
        self._rates = _Rates()
        self.failed: dict[str, str] = {}
        self.first_error: Exception | None = None

    def work(self) -> None:
        """Train cells until there are none left. Raises as `run_cells`."""
        while True:
            # The lock makes taking a cell and seeing an error one step: after an error none is begun.
            with self._lock:
                if self.first_error is not None or not self._todo:
                    return
                i = self._next()
                if i is not None:
                    cell = self._todo.pop(i)
                    self._busy.add(cell.name)
            if i is None:
                time.sleep(_LOOK_S)
                continue
            try:
                self._train(i, cell)
                self._evaluate_done(cell)
            except Exception as error:
                with self._lock:
                    self.first_error = self.first_error or error
                raise
            finally:
                with self._lock:
                    self._busy.discard(cell.name)

    def _next(self) -> int | None:
        """The first cell that can be trained: no branch whose trunk is being trained and has not come so far."""
        for i, cell in self._todo.items():
            if cell.trunk not in self._busy or waits_for(cell, self._directory) is None:
                return i
        return None

    def _train(self, i: int, cell: Cell) -> None:
        run_dir = self._directory / cell.name
        head = f"[{i + 1}/{len(self._cells)}] {headline(cell)}"
        before = cell_state(run_dir)
        if before.state == "done":
            self._print_line(f"{head}: done before")
            return
        resumes = f", resumes from an earlier attempt ({before.state})" if before.state != "missing" else ""
        self._print_line(f"{head}: {engine_line(cell.recipe)}{resumes}{self._time_left(i)}")
        began = time.monotonic()
        try:
            if (lacking := waits_for(cell, self._directory)) is not None:
                raise RunError(f"its trunk {cell.trunk} {lacking}")
            code = self._attempt(cell.recipe, run_dir)
        except KeyboardInterrupt:
            raise StudyStoppedError(f"stopped in {cell.name}; resume with: {self._resume_command}") from None
        except VitDistError as error:
            if before.state == "missing":
                self._note(run_dir, str(error), refused=is_refusal(error))
            self._fail(cell, f"{cell.name} could not be trained: {error}")
            return
        after = cell_state(run_dir)
        if code == 0 and after.state == "done":
            # A resumed run trained a part only: its seconds say nothing of a full one.
            if before.state == "missing":
                self._rates.add(cell, time.monotonic() - began)
            if self._jobs > 1:
                self._print_line(f"{head}: done in {format_seconds(time.monotonic() - began)}")
            return
        if code in {0, *ASKED} and after.state == "stopped":
            because = f" ({after.reason})" if after.reason else ""
            raise StudyStoppedError(
                f"{cell.name} was stopped at step {after.step}{because}; resume with: {self._resume_command}",
                code or INTERRUPTED,
            )
        self._stop_if_asked(cell, code)
        reason = after.reason or self._last_error_line(run_dir)
        if code and after.state == "missing":
            # It was refused before it had a history: a table of the study is to show it as what it is.
            self._note(run_dir, reason or f"exit code {code}", refused=code == INVALID)
        failure = f"{cell.name} failed with exit code {code}" + (f": {first_line(reason)}" if reason else "")
        self._fail(cell, failure, "" if "(log: " in reason else f". Its files are in {run_dir}")

    @staticmethod
    def _note(run_dir: Path, reason: str, *, refused: bool) -> None:
        with contextlib.suppress(VitDistError):
            history.failed_to_begin(run_dir, ranks=0, saved=0, reason=reason, refused=refused)

    def _stop_if_asked(self, cell: Cell, code: int) -> None:
        """Begin no other cell where a person has ended this one before it could save."""
        code = of_return_code(code)
        if code in ASKED:
            raise StudyStoppedError(f"stopped in {cell.name}; resume with: {self._resume_command}", code)

    def _fail(self, cell: Cell, failure: str, where: str = "") -> None:
        """Raise, or with `keep_going` print and remember."""
        if not self._keep_going:
            raise RunError(f"{failure}{where}; when the cause is fixed, resume with: {self._resume_command}")
        self._print_line(f"{failure}{where}; continuing with the other cells")
        self.failed[cell.name] = failure

    def _evaluate_done(self, cell: Cell) -> None:
        """Evaluate a cell that is done, unless that was done before."""
        run_dir = self._directory / cell.name
        if self._evaluate is None or not cell.evaluations or cell_state(run_dir).state != "done":
            return
        if evaluated(cell, run_dir):
            return
        self._print_line(f"    evaluating {cell.name}: {', '.join(e.name for e in cell.evaluations)}")
        try:
            code = self._evaluate(cell, run_dir)
        except KeyboardInterrupt:
            raise StudyStoppedError(
                f"stopped while {cell.name} was evaluated; resume with: {self._resume_command}"
            ) from None
        if code != 0:
            self._stop_if_asked(cell, code)
            reason = self._last_error_line(run_dir)
            failure = f"the evaluation of {cell.name} failed with exit code {code}" + (f": {reason}" if reason else "")
            self._fail(cell, failure)

    def _time_left(self, i: int) -> str:
        rest = [c for c in self._cells[i:] if cell_state(self._directory / c.name).state != "done"]
        left = self._rates.seconds_for(rest)
        return f", about {format_seconds(left / self._jobs)} left" if left else ""


def first_line(text: str) -> str:
    """The first line of a reason: more of it is in the log."""
    return text.strip().partition("\n")[0]


def headline(cell: Cell) -> str:
    """A cell for people: 'vit, 2,000 examples, seed 0'."""
    examples = "all examples" if cell.subset is None else f"{counted(cell.subset, 'example')}"
    branch = f", branch {cell.label} from step {cell.begins_after:,}" if cell.label else ""
    return f"{cell.family}, {examples}, seed {cell.seed}{branch}"


def engine_line(recipe: Recipe) -> str:
    """The engine and the precision: 'deepspeed, ZeRO stage 1, bf16'."""
    stage = getattr(recipe.engine, "zero_stage", None)
    return ", ".join([recipe.engine.name, *([] if stage is None else [f"ZeRO stage {stage}"]), recipe.precision])


class _Rates:
    """Seconds per planned example of the cells trained so far, by family where known, for the time left."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[int, float]]] = {}

    def add(self, cell: Cell, seconds: float) -> None:
        if cell.planned_examples:
            self._seen.setdefault(cell.family, []).append((cell.planned_examples, seconds))

    def seconds_for(self, cells: Sequence[Cell]) -> float | None:
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
