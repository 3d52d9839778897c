"""What whoever decodes is at, and what of it a batch waits for, in words. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vit_dist.core.units import format_seconds

Stage = Literal["", "store", "decode"]
"""Of one image: its bytes are waited for, or a decoder has them; '': neither."""

_TOLD = 3
"""Decoders that are named."""


@dataclass(frozen=True)
class Doing:
    """What one decoder, which has something to do, is at.

    Attributes:
        who: "decode process 1 (pid 4711)", "thread decode_0".
        stage: of its image.
        what: that image, with its shard; the shard alone while its index is not here; without a stage another word.
        seconds: that it has been at it.
        pid: of the process, where a signal has stopped it; 0: it runs.
    """

    who: str
    stage: Stage
    what: str
    seconds: float
    pid: int = 0

    def words(self) -> str:
        """For people, without what to do."""
        span = format_seconds(self.seconds)
        if self.pid:
            return f"{self.who} has been stopped by a signal" + (f", at {self.what}" if self.what else "")
        if self.stage == "decode":
            return f"{self.who} has been at the image {self.what} for {span}"
        if self.stage == "store":
            return f"{self.who} has waited {span} for the bytes of {self.what}"
        return f"{self.who} {self.what or 'has had rows of a batch to fill'} for {span}"


def waited_for(doing: Sequence[Doing], seconds: float) -> str:
    """What a batch is late by, after a wait of so long: who is at what, the cause, and what to do."""
    # Else somebody is at another image each time one looks: then all are slow, and none of them hangs.
    stuck = [one for one in doing if one.pid or one.seconds >= seconds / 2]
    first = sorted(stuck or doing, key=lambda one: (not one.pid, one.stage != "decode", -one.seconds))
    if not first:
        return "nobody who decodes has anything to do: batches are planned, or given back, too late"
    told = "; ".join(one.words() for one in first[:_TOLD])
    if len(first) > _TOLD:
        told += f"; {len(first) - _TOLD} more"
    return f"{told}. {_advice(first[0], hangs=bool(stuck))}"


def _advice(one: Doing, *, hangs: bool) -> str:
    if one.pid:
        return f"`kill -CONT {one.pid}` lets it go on; without it the run has to be started again"
    if not hangs:
        return "None of them hangs: `vit-dist data bench` measures what each stage delivers"
    if one.stage == "decode":
        return "The decoder does not come back from it: name the key in data.takedown to go on without it"
    if one.stage == "store":
        return "The store, or the disk, does not give them: look whether it answers"
    return "What it is at is not known: see whether it gets a CPU"
