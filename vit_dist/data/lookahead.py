"""Neighbouring windows of a lane, read in one range where a single one is small: a request has its price. No torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from vit_dist.core.seeding import GOLDEN_GAMMA, MASK64
from vit_dist.data.order import Segment, WindowId
from vit_dist.data.segments import Piece, SegmentReader


class _Order(Protocol):
    def window_segments(self, window: WindowId) -> list[Segment]: ...

    def following(self, window: WindowId) -> WindowId: ...


@dataclass(frozen=True)
class Run:
    """Samples of a window that lie in one piece.

    Attributes:
        piece: that holds them, once its index is here; maybe more than they are.
        first: of the piece's samples.
        length: how many.
    """

    piece: Future[Piece]
    first: int
    length: int


class Lookahead:
    """Opens windows. Those of a lane come one after the other, so that what was read with one waits for its turn.

    Args:
        order: of the windows.
        segments: reads them.
        windows: of a lane that are read at once, where they lie in one shard.
        whole_shards: read shards whole and keep them.
    """

    def __init__(self, order: _Order, segments: SegmentReader, windows: int, *, whole_shards: bool) -> None:
        self._order, self._segments, self._windows, self._whole_shards = order, segments, windows, whole_shards
        self._waiting: dict[int, dict[WindowId, list[Run]]] = {}
        self._opened: dict[int, int] = {}
        self._lock = threading.Lock()

    def open(self, window: WindowId) -> list[Run]:
        """Begin to read a window; or it was begun with another one."""
        with self._lock:
            waiting = self._waiting.pop(window.lane, {})
            runs = waiting.pop(window, None)
            if runs is not None:
                self._waiting[window.lane] = waiting
                return runs
            opened = self._opened.get(window.lane, 0)
            self._opened[window.lane] = opened + 1
        together = [window]
        while len(together) < self._at_once(window.lane, opened):
            following = self._order.following(together[-1])
            if following != together[-1]._replace(number=together[-1].number + 1):
                break
            together.append(following)
        begun = self._begin(together)
        with self._lock:
            self._waiting[window.lane] = begun
            return begun.pop(window)

    def open_alone(self, window: WindowId) -> list[Run]:
        """Begin to read a window out of its turn."""
        return self._begin([window])[window]

    def _at_once(self, lane: int, opened: int) -> int:
        # All lanes begin at once: the first batch waits for no more than it needs, and then they fall out of step.
        if self._windows == 1 or opened == 0 or self._whole_shards:
            return 1
        return self._windows if opened > 1 else 1 + ((lane * GOLDEN_GAMMA & MASK64) >> 32) % self._windows

    def _begin(self, windows: Sequence[WindowId]) -> dict[WindowId, list[Run]]:
        wanted = [(window, segment) for window in windows for segment in self._order.window_segments(window)]
        runs: dict[WindowId, list[Run]] = {window: [] for window in windows}
        if self._whole_shards:
            for window, (shard, first, length) in wanted:
                runs[window].append(Run(self._segments.read_whole(Segment(shard, first, length)), first, length))
            return runs
        while wanted:
            (shard, first, length), count = wanted[0][1], 1
            while count < len(wanted) and wanted[count][1][:2] == (shard, first + length):
                length += wanted[count][1].length
                count += 1
            piece = self._segments.read(Segment(shard, first, length))
            for window, segment in wanted[:count]:
                runs[window].append(Run(piece, segment.first - first, segment.length))
            wanted = wanted[count:]
        return runs
