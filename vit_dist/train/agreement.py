"""What only one rank can see in a step, and all must act on together: signals, requests, broken samples, clocks.

It is agreed upon while the step computes: asked before the step is queued, known after it was. So no device waits for
it, and what is asked during a step takes effect after the next one at the latest, on all ranks after the same step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vit_dist.core.run import history
from vit_dist.data.batch import Replacement
from vit_dist.engines._collectives import PendingFlags, all_gather_object
from vit_dist.train.run import Run

_REQUESTS_EVERY_S = 0.5


@dataclass(frozen=True)
class Agreed:
    """What any rank met in a step, the same on every rank.

    Attributes:
        replaced: samples that could not be decoded.
        save: a checkpoint was asked for.
        stop: a reason to stop, or ''.
        superseded: the later attempt that owns the run directory, in words, or ''.
    """

    replaced: list[Replacement] = field(default_factory=list)
    save: bool = False
    stop: str = ""
    superseded: str = ""


class Requests:
    """Looks for the request file, now and then: the file system may be a slow one."""

    def __init__(self) -> None:
        self._next = 0.0

    def take(self, run: Run) -> str:
        """'save', 'stop' or ''; always '' on ranks other than 0."""
        now = time.monotonic()
        if not run.world.is_main or now < self._next:
            return ""
        self._next = now + _REQUESTS_EVERY_S
        return history.take_request(run.directory.path)


class Agreement:
    """What all ranks agree on in one step. A collective, begun here.

    A signal reaches ranks at different moments, only rank 0 sees the request file and the heartbeat, and a broken
    sample is met by the rank that reads it. A rank that acted on its own view would leave the others in a collective
    that never completes.

    Args:
        run: whose step is about to be queued.
        replaced: in this rank's part of its batch.
        requests: where they are looked for.
    """

    def __init__(self, run: Run, replaced: list[Replacement], requests: Requests) -> None:
        self._run, self._replaced = run, replaced
        asked = requests.take(run)
        self._reason = run.stop.reason or ("the request file" if asked == "stop" else "")
        self._superseded = run.record.superseded
        mine = [bool(replaced), bool(self._reason), bool(self._superseded), asked == "save"]
        due = [is_due and run.world.is_main for is_due in run.clock.timed()]
        self._flags = PendingFlags([*mine, *due], run.world)

    def wait(self) -> Agreed:
        """What was agreed. A second collective in the rare step that has texts and samples to tell, which are pickled.

        What is due by the clock goes to the run's clock.
        """
        replaced, stop, superseded, save, *due = self._flags.wait()
        self._run.clock.agreed(due)
        # The flags are the same on every rank: all return here, or all go on to the second collective.
        if not (replaced or stop or superseded):
            return Agreed(save=save)
        views = all_gather_object((self._replaced, self._reason, self._superseded), self._run.world)
        reason = next((why for _, why, _ in views if why), "")
        return Agreed([r for part, *_ in views for r in part], save, reason, views[0][2])
