"""Where the time of a run went, over all its attempts: every second since its beginning is in one bucket.

    train   steps whose result the run still has
    wait    the loop waited for data
    eval    evaluations
    save    training stood still for a checkpoint
    start   from an attempt's beginning to its first batch: imports, model, restoring
    lost    all of the above that was done after the checkpoint from which a later attempt resumed
    down    between two attempts: from the last heartbeat of one to the beginning of the next

Sums travel in checkpoints and, up to two seconds before a crash, in alive.json (see heartbeat.py beside this); the
difference of the two is what the crash lost. Only spans between attempts use the wall clock, so a clock that jumps
cannot make a bucket shrink.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

BUCKETS = ("train", "wait", "eval", "save", "start", "lost", "down")
_REDONE = ("train", "wait", "eval", "save", "start")


def carried(saved: Mapping[str, float], beat: Mapping[str, float], beat_at: float, now: float) -> dict[str, float]:
    """The sums with which an attempt begins.

    Args:
        saved: sums of the checkpoint that is restored; empty: there is none.
        beat: sums of the last heartbeat of the attempt before; empty: none.
        beat_at: when that was, seconds since 1970.
        now: when this attempt began, seconds since 1970.
    """
    sums = {bucket: float(saved.get(bucket, 0.0)) for bucket in BUCKETS}
    if beat:
        sums["lost"] = float(beat.get("lost", 0.0))
        sums["lost"] += sum(max(0.0, float(beat.get(b, 0.0)) - sums[b]) for b in _REDONE)
        sums["down"] = float(beat.get("down", 0.0)) + max(0.0, now - beat_at)
    return sums


class Goodput:
    """The time of this attempt, on one timeline: it is always in one bucket. Safe to read from another thread.

    Args:
        sums: with which it begins; see `carried`.
        began: monotonic time of the attempt's beginning; until the first `enter` it is in 'start'.
    """

    def __init__(self, sums: Mapping[str, float], began: float) -> None:
        self._sums = {bucket: float(sums.get(bucket, 0.0)) for bucket in BUCKETS}
        self._now, self._since = "start", began
        self._lock = threading.Lock()

    def enter(self, bucket: str) -> float:
        """From now on time belongs to this bucket. Returns the seconds spent in the one before."""
        with self._lock:
            now = time.monotonic()
            spent = now - self._since
            self._sums[self._now] += spent
            self._now, self._since = bucket, now
            return spent

    def sums(self) -> dict[str, float]:
        """Seconds in each bucket up to now."""
        with self._lock:
            sums = {**self._sums, self._now: self._sums[self._now] + time.monotonic() - self._since}
        return {bucket: round(seconds, 3) for bucket, seconds in sums.items()}

    def rewound(self, saved: Mapping[str, float]) -> None:
        """The run resumes from a checkpoint of its past: what came after it is lost."""
        self.enter(self._now)
        with self._lock:
            self._sums = {**carried(saved, self._sums, 0.0, 0.0), "down": self._sums["down"]}

    def useful_fraction(self) -> float:
        """Training time over all time since the run began, from 0 to 1."""
        sums = self.sums()
        return sums["train"] / max(1e-9, sum(sums.values()))
