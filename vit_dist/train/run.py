"""Everything that takes part in one attempt, by name, and what it writes about itself in log and status."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vit_dist.config.load import recipe_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import VitDistError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.lines import Lines
from vit_dist.core.run import log as runlog
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.data.sets import TrainingSet
from vit_dist.data.takedown import summary
from vit_dist.engines._protocol import Engine
from vit_dist.train.checkpoint.probe import Probe
from vit_dist.train.checkpoint.saver import Saver
from vit_dist.train.measures import Measures
from vit_dist.train.plan import Plan
from vit_dist.train.profile import Profiler
from vit_dist.train.progress.attempt_record import AttemptRecord
from vit_dist.train.progress.clock import Clock
from vit_dist.train.progress.loading import StallTeller
from vit_dist.train.state import TrainState
from vit_dist.train.teacher import Teacher


@dataclass
class StopRequest:
    """A request to stop, from a signal; empty while there is none."""

    reason: str = ""


@dataclass
class Run:
    """Everything that takes part in an attempt.

    Attributes:
        record: what this attempt writes into the history of the run.
        attempt: attempt number (1-based).
        profiler: of this rank; None where it profiles nothing.
        metrics: the last evaluation's values, and the step after which they were measured.
        unwritten: what the checkpoint that was restored holds of the log, since it could not be written there.
        teacher: whose logits are learned too; None where the recipe has none.
        stalls: says what training waits for.
    """

    recipe: Recipe
    world: World
    directory: RunDir
    engine: Engine
    data: TrainingSet
    plan: Plan
    evaluation: Measures
    identity: dict[str, Any]
    info: runlog.RunInfo
    state: TrainState
    stop: StopRequest
    record: AttemptRecord
    saver: Saver
    probe: Probe | None
    clock: Clock
    attempt: int = 0
    profiler: Profiler | None = None
    metrics: tuple[int, dict[str, float]] = (0, {})
    writer: EventWriter | None = field(default=None)
    unwritten: Any = None
    teacher: Teacher | None = None
    stalls: StallTeller = field(default_factory=StallTeller)
    _lines: dict[Path, Lines] = field(default_factory=dict)

    def lines(self, path: Path) -> Lines:
        """The file at a path, of which this rank alone is the writer."""
        return self._lines.setdefault(path, Lines(path))

    def start_log(self) -> None:
        """Open this attempt's event file, on rank 0. What was written before beyond the restored step is void."""
        if self.world.is_main:
            # A rewind calls this again, with a file open.
            self.close()
            self.writer = EventWriter(
                self.directory.events,
                purge_step=self.state.step + 1 if self.state.step else 0,
                patient=True,
                unwritten=self.unwritten,
            )
            runlog.write_start(self.writer, self.info, recipe_yaml(self.recipe))
            self.evaluation.begin_file()
            runlog.write_metrics(self.writer, self.recipe.measured()[0] | self.recipe.metrics)
            if self.state.taken_down:
                self.writer.json(runlog.TAKEDOWN, summary(self.state.taken_down), self.state.step)
        self.write_status()

    def write_status(self) -> None:
        """Write into the history that the attempt trains, and how far it is."""
        if self.world.is_main:
            self.record.running(self.state.step, self.state.position, self.clock.goodput.sums())

    def finish(self, status: Literal["done", "stopped", "failed"], reason: str = "") -> None:
        """Write to the log, then into the history, how the attempt ended.

        Raises:
            RunError: the log of a run that is done cannot be completed: its report would be without it.
        """
        step, examples = self.state.step, self.state.position
        self.record.set_progress(step, examples)
        # Of a superseded attempt the log is the later attempt's to close.
        if self.writer is not None and not self.record.look_up_owner():
            ended = runlog.RunStatus(status=status, step=step, examples=examples, reason=reason)
            # A run that goes on some day finds in its checkpoint what its log lacks.
            with contextlib.suppress(*(() if status == "done" else (VitDistError,))):
                runlog.write_status(self.writer, ended)
        self.record.end(status, reason, goodput=self.clock.goodput.sums())

    def fail(self, reason: str) -> None:
        """`finish` as failed. Never raises."""
        # The disk may be what failed: the error that is being raised must not be replaced by one about the log.
        with contextlib.suppress(VitDistError):
            self.finish("failed", reason)

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()
