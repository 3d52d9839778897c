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


def young_daly(save_s: float, mtbf_s: float) -> float:
    """Seconds of training between saves that lose the least, sqrt(2 * save * mtbf).

    Young, "A first order approximation to the optimum checkpoint interval" (1974); Daly's refinement (2006) differs
    by less than a save's own time where that is small.

    Args:
        save_s: training time that a save costs.
        mtbf_s: mean time between failures of the whole job.
    """
    return float((2 * save_s * mtbf_s) ** 0.5)


@dataclass
class AutoCadence:
    """Due after the Young/Daly interval, from what the last save cost. Never sooner than it takes to write one.

    Until a save was measured its cost counts as one second.
    """

    mtbf_s: float
    blocked_s: float = 1.0
    wrote_s: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    @property
    def interval_s(self) -> float:
        """Seconds between saves."""
        return max(young_daly(self.blocked_s, self.mtbf_s), 2 * self.wrote_s)

    def due(self, before: int, after: int) -> bool:  # noqa: ARG002 - the protocol of Cadence
        """Whether the interval has passed since it was last due."""
        if time.monotonic() - self._last < self.interval_s:
            return False
        self._last = time.monotonic()
        return True

    def measured(self, blocked_s: float, wrote_s: float) -> None:
        """What the last save cost: seconds that training waited, and seconds until it was committed."""
        self.blocked_s, self.wrote_s = max(blocked_s, 1e-3), wrote_s
