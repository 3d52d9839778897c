"""At which positions a sample was read, its own and those of samples that it stood in for: arithmetic. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vit_dist.core.seeding import I64
from vit_dist.data.mixture import MixtureOrder
from vit_dist.data.order import GlobalOrder, WindowId
from vit_dist.data.sets import Parts, TrainingSet


@dataclass(frozen=True)
class Reading:
    """A position at which a sample was read.

    Attributes:
        position: in the order.
        epoch: of the sample's set, from 0.
        in_place_of: the ordinal of the sample whose turn it was, where that was left out; else None.
    """

    position: int
    epoch: int
    in_place_of: int | None = None


class Readings:
    """What a stream has read up to a position, by the rules of data/reader.py.

    Args:
        data: the set, or the mixture.
        end: position up to which it has come.
        taken_down: ordinals that are left out, each with the first position at which it is.
        broken: ordinals of samples that cannot be decoded.
    """

    def __init__(
        self, data: TrainingSet, end: int, taken_down: Mapping[int, int], broken: Collection[int] = ()
    ) -> None:
        self._parts, self._order, self._end = data.parts, data.order, end
        self._taken_down, self._broken = taken_down, frozenset(broken)

    def of(self, ordinal: int) -> list[Reading]:
        """Every position before the end at which a sample was read, in order."""
        place = self._parts.of(ordinal).place(ordinal)
        found: list[Reading] = []
        epoch = 0
        while place is not None:
            window, slot = self._order.home(epoch, *place)
            turn = self._order.turn(window, slot)
            if turn < self._end and not self._is_out(ordinal, turn):
                found.append(Reading(turn, epoch))
            found += self._stood_in(ordinal, window)
            # All of the next epoch lies behind its own turn in this one.
            if turn >= self._end:
                break
            epoch += 1
        return sorted(found, key=lambda one: one.position)

    def _stood_in(self, ordinal: int, home: WindowId) -> Iterator[Reading]:
        """Turns of others, in one epoch, at which a sample was read."""
        window = home
        while True:
            ordinals = _ordinals(self._parts, self._order, window)
            for slot in np.flatnonzero([one in self._taken_down or one in self._broken for one in ordinals.tolist()]):
                turn = self._order.turn(window, int(slot))
                own = int(ordinals[slot])
                if turn < self._end and self._is_out(own, turn) and self._stand_in(window, int(slot), turn) == ordinal:
                    yield Reading(turn, window.epoch, own)
            # From the window before a turn comes here only where there is nobody in it who could stand in.
            window = self._order.preceding(window)
            before = _ordinals(self._parts, self._order, window).tolist()
            if window == home or not all(one in self._taken_down or one in self._broken for one in before):
                return

    def _stand_in(self, window: WindowId, slot: int, turn: int) -> int | None:
        """The sample that was read in place of one; None: none was whole."""
        begun, first = window, slot
        while True:
            ordinals, slots = _ordinals(self._parts, self._order, window), self._order.window_slots(window)
            start = int(np.flatnonzero(slots == first)[0])
            ring = ordinals[np.roll(slots, -start)].tolist()
            whole = next((one for one in ring if not self._is_out(one, turn)), None)
            window = self._order.following(window)
            if whole is not None or window == begun or not any(self._taken_down.get(o, turn + 1) <= turn for o in ring):
                return whole
            first = int(self._order.window_slots(window)[0])

    def _is_out(self, ordinal: int, position: int) -> bool:
        return ordinal in self._broken or self._taken_down.get(ordinal, position + 1) <= position


def _ordinals(parts: Parts, order: GlobalOrder | MixtureOrder, window: WindowId) -> I64:
    """Of the samples of a window, in stored order. int64 [size]."""
    runs = []
    for segment in order.window_segments(window):
        part, own = parts.find(segment.shard)
        samples = np.arange(segment.first, segment.first + segment.length)
        samples = samples if part.subset.chosen is None else part.subset.chosen[own][samples]
        runs.append(part.ordinal(int(part.subset.shards[own]), 0) + samples)
    return np.concatenate(runs)
