"""The collaborators of one attempt, by name, and what they say about it in the log."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, Literal

from vit_dist.config.load import recipe_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import VitDistError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run import log as runlog
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.data.sets import TrainingSet
from vit_dist.engines._protocol import Engine
from vit_dist.evals import EvalContext
from vit_dist.train.checkpoint.probe import Probe
from vit_dist.train.checkpoint.saver import Saver
from vit_dist.train.plan import Plan
from vit_dist.train.progress.attempt_record import AttemptRecord
from vit_dist.train.progress.clock import Clock
from vit_dist.train.state import TrainState


@dataclass
class StopRequest:
    """A wish to stop, from a signal; empty while there is none."""

    reason: str = ""


@dataclass
class Run:
    """Everything that takes part in an attempt.

    Attributes:
        attempt: the how-manieth of the run.
        metrics: what was measured last, and after which step.
    """

    recipe: Recipe
    world: World
    directory: RunDir
    engine: Engine
    data: TrainingSet
    plan: Plan
    evaluation: EvalContext
    identity: dict[str, Any]
    info: runlog.RunInfo
    state: TrainState
    stop: StopRequest
    ledger: AttemptRecord
    saver: Saver
    probe: Probe | None
    clock: Clock
    attempt: int = 0
    metrics: tuple[int, dict[str, float]] = (0, {})
    writer: EventWriter | None = field(default=None)

    def start_log(self) -> None:
        """Open this attempt's event file, on rank 0. What was written before beyond the restored step is void."""
        if self.world.is_main:
            self.close()
            self.writer = EventWriter(self.directory.events, purge_step=self.state.step + 1 if self.state.step else 0)
            runlog.write_start(self.writer, self.info, recipe_yaml(self.recipe))
        self.alive()

    def alive(self) -> None:
        """A sign of life in status.json."""
        if self.world.is_main:
            self.ledger.running(self.state.step, self.state.position, self.clock.goodput.sums())

    def finish(self, status: Literal["done", "stopped", "failed"], reason: str = "") -> None:
        """Say in the log, then in status.json, how the attempt ended."""
        step, examples = self.state.step, self.state.position
        self.ledger.at(step, examples)
        if self.writer is not None and not self.ledger.superseded_by():  # else the log is a later attempt's to close
            runlog.write_status(
                self.writer, runlog.RunStatus(status=status, step=step, examples=examples, reason=reason)
            )
        self.ledger.end(status, reason, goodput=self.clock.goodput.sums())

    def fail(self, reason: str) -> None:
        """`finish` as failed. The disk may be what failed: then the error that is on its way says so."""
        with contextlib.suppress(VitDistError):
            self.finish("failed", reason)

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()
