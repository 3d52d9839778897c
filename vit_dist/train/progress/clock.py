"""Where the loop spends its time, and what is due: one clock for cadences, throughput, goodput and the watchdog."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vit_dist.config.schema import Recipe
from vit_dist.core.log import log
from vit_dist.core.units import Duration, format_seconds
from vit_dist.core.world import World
from vit_dist.data.pace import Interval, Pace
from vit_dist.data.sets import TrainingSet
from vit_dist.engines._protocol import StepResult
from vit_dist.engines._timer import StepTimer
from vit_dist.train.health.monitor import Watchdog
from vit_dist.train.progress.cadence import AutoCadence, Cadence
from vit_dist.train.progress.goodput import Goodput


class StartUp:
    """Where the seconds go from the start of the process to its first step."""

    def __init__(self) -> None:
        self.began = time.monotonic() - process_age_s()
        self._parts: list[tuple[str, float]] = []
        self._last = self.began

    def mark(self, part: str, within: Mapping[str, float] | None = None) -> None:
        """What was done since the last mark.

        Args:
            part: what.
            within: seconds of it that are told apart, by what they were spent on; zeros are left out.
        """
        now = time.monotonic()
        apart = {name: seconds for name, seconds in (within or {}).items() if seconds}
        self._parts.append((part, now - self._last - sum(apart.values())))
        self._parts += apart.items()
        self._last = now

    def describe(self) -> str:
        """For people: '7.1s after the start: imports 3.0s, ...'."""
        parts = ", ".join(f"{part} {format_seconds(seconds)}" for part, seconds in self._parts)
        return f"{format_seconds(self._last - self.began)} after the start: {parts}"


def process_age_s() -> float:
    """Seconds since this process began; 0 where the system does not say."""
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, uptime - started / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


class Positioned(Protocol):
    """A place in the stream of examples."""

    @property
    def position(self) -> int:
        """Examples consumed."""


@dataclass(frozen=True)
class Window:
    """What this rank did since the last log.

    The attempt's first step, which compiles, warms up and waits for the slowest rank's start, counts to the loss alone.

    Attributes:
        loss: mean over the steps.
        steps: that were timed; 0 where there was the first one only.
        examples: of all ranks in those steps.
        seconds: by bucket of train/progress/goodput.py: train, wait, eval, save.
        phases: seconds of `train` by phase of a step, see engines/_timer.py.
        first_step_s: how long the first step took without the wait for its batch; None where it is not in this window.
        loader: what the stages of the stream did in the time of the timed steps, evaluations and saves included.
    """

    loss: float
    steps: int
    examples: int
    seconds: Mapping[str, float]
    phases: Mapping[str, float]
    first_step_s: float | None
    loader: Interval = field(default_factory=Interval)

    @property
    def training_s(self) -> float:
        """Of the timed steps, waits for their data included."""
        return self.seconds.get("train", 0.0) + self.seconds.get("wait", 0.0)

    @property
    def data_wait(self) -> float:
        """Fraction of `training_s` spent waiting for data."""
        return self.seconds.get("wait", 0.0) / max(1e-9, self.training_s)

    @property
    def examples_per_s(self) -> float | None:
        """Of all ranks together; None where no step was timed."""
        return self.examples / max(1e-9, self.training_s) if self.steps else None


class Clock:
    """The time of this attempt. Evaluations and saves do not count as training time.

    Args:
        recipe: its cadences.
        data: its epoch.
        world: whose first rank's clock decides for all.
        goodput: where time is summed.
        watchdog: restarted whenever the bucket changes.
        start: gets the marks of the first batch and the first step.
        timer: of the engine.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingSet,
        world: World,
        goodput: Goodput,
        watchdog: Watchdog,
        start: StartUp,
        timer: StepTimer,
    ) -> None:
        batch, n = recipe.global_batch, data.num_samples
        every = recipe.checkpoint.every
        save = AutoCadence(float(recipe.checkpoint.mtbf.value)) if every == "auto" else Cadence(every, batch, n)
        self._cadences: dict[str, Cadence | AutoCadence] = {
            "log": Cadence(recipe.log.every, batch, n),
            "eval": Cadence(recipe.eval.every, batch, n),
            "save": save,
            "checksum": Cadence(recipe.guards.checksum_every, batch, n),
        }
        # Evaluators that look as often as `eval.every` says share one cadence.
        self._evaluators: list[str] = []
        for i, evaluator in enumerate(recipe.evaluators):
            own: Duration | None = getattr(evaluator, "every", None)
            self._evaluators.append("eval" if own is None else f"eval {i}")
            if own is not None:
                self._cadences[f"eval {i}"] = Cadence(own, batch, n)
        if recipe.log.norms != "never":
            self._cadences["norms"] = Cadence(recipe.log.norms, batch, n)
        self._by_the_clock = {
            name: cadence
            for name, cadence in self._cadences.items()
            if isinstance(cadence, AutoCadence) or cadence.every.unit == "seconds"
        }
        self._due: set[str] = set()
        self._world, self._batch = world, batch
        self.goodput, self._watchdog, self._start = goodput, watchdog, start
        self._timer, self._pace = timer, Pace()
        self._spent: dict[str, float] = {}
        self._now, self._first = "start", 0
        self._first_step_s: float | None = None
        # Steps that were timed, those whose losses are summed, and that sum.
        self._timed, self._steps, self._loss = 0, 0, 0.0

    def follow(self, pace: Pace) -> None:
        """From now on batches come from the stream whose counters these are."""
        self._pace = pace

    def enter(self, bucket: str) -> None:
        """From now on time is spent on this: a bucket of train/progress/goodput.py."""
        self._spent[self._now] = self._spent.get(self._now, 0.0) + self.goodput.enter(bucket)
        self._now = bucket
        if bucket in {"train", "wait"} and self._first > 1:
            self._watchdog.step()
        # The first step compiles, warms up and waits for the slowest rank's start: not judged as a step.
        else:
            self._watchdog.other_work()
        if bucket == "train" and self._first == 0:
            self._start.mark("first batch")
            self._first = 1

    @property
    def in_first_step(self) -> bool:
        """Whether the attempt's first step is still under way."""
        return self._first == 1

    def step_begun(self) -> None:
        """Count a step that was queued."""
        self._timed += 1

    def step_done(self, result: StepResult) -> None:
        """Count the loss of a step that is over."""
        self._steps += 1
        self._loss += result.loss
        if self.in_first_step:
            self._first = 2
            self.enter(self._now)
            self._first_step_s = self._spent["train"]
            self._restart_window()
            self._pace.since_last()
            self._start.mark("first step")
            if self._world.is_main:
                log(f"  first step {self._start.describe()}")

    def timed(self) -> list[bool]:
        """For each cadence that goes by a clock, whether it is due by this process' own: what `agreed` is given."""
        return [cadence.due(0, 0) for cadence in self._by_the_clock.values()]

    def agreed(self, due: Sequence[bool]) -> None:
        """What is due by rank 0's clock: clocks of ranks differ by moments, and what is due may be a collective."""
        self._due |= {name for name, is_due in zip(self._by_the_clock, due, strict=True) if is_due}

    def due(self, name: str, before: Positioned, after: Positioned) -> bool:
        """Whether something is due after this step, the same on every rank."""
        if name in self._by_the_clock:
            due = name in self._due
            self._due.discard(name)
            return due
        cadence = self._cadences.get(name)
        return cadence is not None and cadence.due(before.position, after.position)

    def due_evaluators(self, before: Positioned, after: Positioned) -> frozenset[int]:
        """Places of the recipe's evaluators that are due after this step, the same on every rank."""
        due = {name for name in dict.fromkeys(self._evaluators) if self.due(name, before, after)}
        return frozenset(i for i, name in enumerate(self._evaluators) if name in due)

    def saved(self, blocked_s: float, wrote_s: float) -> None:
        """What the last save cost, for `checkpoint.every: auto`."""
        cadence = self._cadences["save"]
        if isinstance(cadence, AutoCadence):
            cadence.measured(blocked_s, wrote_s)

    def since_last_log(self) -> Window:
        """What this rank did since the last log, or since the attempt's first step."""
        self.enter(self._now)
        loss = self._loss / max(1, self._steps)
        phases = self._timer.take()
        loader, first = self._pace.since_last(), self._first_step_s
        window = Window(loss, self._timed, self._timed * self._batch, self._spent, phases, first, loader)
        self._restart_window()
        self._steps, self._loss, self._first_step_s = 0, 0.0, None
        return window

    def _restart_window(self) -> None:
        self._spent, self._timed = {}, 0
        self._timer.take()
