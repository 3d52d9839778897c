"""Where the loop spends its time, and what is due: one clock for cadences, throughput, goodput and the watchdog."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vit_dist.config.schema import Recipe
from vit_dist.core.log import log
from vit_dist.core.units import format_seconds
from vit_dist.core.world import World
from vit_dist.data.sets import TrainingSet
from vit_dist.engines._collectives import any_rank
from vit_dist.engines._protocol import StepResult
from vit_dist.train.health.monitor import Watchdog
from vit_dist.train.progress.cadence import AutoCadence, Cadence
from vit_dist.train.progress.goodput import Goodput
from vit_dist.train.state import TrainState


class StartUp:
    """Where the seconds go from the start of the process to its first step."""

    def __init__(self) -> None:
        self.began = time.monotonic() - process_age_s()
        self._parts: list[tuple[str, float]] = []
        self._last = self.began

    def mark(self, part: str) -> None:
        """What was done since the last mark."""
        now = time.monotonic()
        self._parts.append((part, now - self._last))
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


class Clock:
    """The time of this attempt. Evaluations and saves do not count as training time.

    Args:
        recipe: its cadences.
        data: its epoch.
        world: whose first rank's clock decides for all.
        goodput: where time is summed.
        watchdog: restarted whenever the bucket changes.
        start: gets the marks of the first batch and the first step.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingSet,
        world: World,
        goodput: Goodput,
        watchdog: Watchdog,
        start: StartUp,
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
        self._world, self._batch = world, batch
        self.goodput, self._watchdog, self._start = goodput, watchdog, start
        self._spent = {"train": 0.0, "wait": 0.0}
        self._now, self._first = "start", 0
        self._steps, self._loss = 0, 0.0

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

    def step_done(self, result: StepResult) -> None:
        """Count a step."""
        self._steps += 1
        self._loss += result.loss
        if self._first == 1:
            self._first = 2
            self._start.mark("first step")
            if self._world.is_main:
                log(f"  first step {self._start.describe()}")

    def due(self, name: str, before: TrainState, after: TrainState) -> bool:
        """Whether something is due after this step. A collective where a span of time decides."""
        cadence = self._cadences[name]
        due = cadence.due(before.position, after.position)
        timed = isinstance(cadence, AutoCadence) or cadence.every.unit == "seconds"
        if timed and self._world.size > 1:
            # Clocks of ranks differ by moments, and what is due may be a collective: rank 0's clock decides for all.
            (due,) = any_rank([due and self._world.is_main], self._world)
        return due

    def saved(self, blocked_s: float, wrote_s: float) -> None:
        """What the last save cost, for `checkpoint.every: auto`."""
        cadence = self._cadences["save"]
        if isinstance(cadence, AutoCadence):
            cadence.measured(blocked_s, wrote_s)

    def since_last_log(self) -> tuple[float, float, float]:
        """Mean loss, examples a second, and the fraction of time spent waiting for data."""
        self.enter(self._now)
        spent = max(1e-9, self._spent["train"] + self._spent["wait"])
        answer = (self._loss / max(1, self._steps), self._steps * self._batch / spent, self._spent["wait"] / spent)
        self._spent, self._steps, self._loss = {"train": 0.0, "wait": 0.0}, 0, 0.0
        return answer
