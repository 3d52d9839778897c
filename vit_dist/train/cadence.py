"""When something is due: every so many steps, examples, epochs or seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vit_dist.core.units import Duration


@dataclass
class Cadence:
    """Due each time a multiple of `every` is crossed, counted from the run's beginning, whatever restarts there were.

    Spans of time are counted from the last time it was due, on this process' clock.
    """

    every: Duration
    global_batch: int
    epoch_examples: int
    _last: float = field(default_factory=time.monotonic)

    def due(self, before: int, after: int) -> bool:
        """Whether a multiple lies in (before, after], both in examples."""
        if self.every.value == 0:
            return False
        if self.every.unit == "seconds":
            if time.monotonic() - self._last < self.every.value:
                return False
            self._last = time.monotonic()
            return True
        period = self.every.examples(global_batch=self.global_batch, epoch_examples=self.epoch_examples)
        return after // period > before // period
