"""How long whoever waits for another rank does so: all of it follows from the recipe's `guards.hang`.

| who | how long |
|---|---|
| the watchdog, in a step | hang |
| the watchdog, in whatever is no step: start, restoring, evaluation, save | 10 x hang |
| rank 0's commit of a checkpoint, for the parts of the others | 10 x hang |
| every collective | 10 x hang + 1 min: the watchdog, which names the rank and leaves the stacks, speaks first |
| ranks that come together at the start | 10 x hang, 10 min at most |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

_OTHER_WORK = 10
_AFTER_WATCHDOG_S = 60.0
# Nothing but imports comes before it. Also where nothing is watched: whoever does not come now never will.
_LONGEST_JOIN_S = 600.0
# In place of for ever: torch counts milliseconds in 32 bits here and there, which end after 24 days.
_FOR_EVER = timedelta(days=14)


@dataclass(frozen=True)
class Patience:
    """Time-outs of one attempt.

    Attributes:
        hang_s: of a step; 0 where nothing is watched.
        other_work_s: of what is no step; inf where nothing is watched.
        collective: of a process group.
        join_s: until all ranks have come together.
    """

    hang_s: float
    other_work_s: float
    collective: timedelta
    join_s: float


def patience(hang_s: float) -> Patience:
    """The time-outs that follow from `guards.hang`; 0 switches all off but that of coming together."""
    if hang_s <= 0:
        return Patience(0.0, math.inf, _FOR_EVER, _LONGEST_JOIN_S)
    other = _OTHER_WORK * hang_s
    collective = min(timedelta(seconds=min(other, 1e7) + _AFTER_WATCHDOG_S), _FOR_EVER)
    return Patience(hang_s, other, collective, min(other, _LONGEST_JOIN_S))


DEFAULT = patience(600.0)
"""Of a recipe that does not say: for what trains nothing."""
