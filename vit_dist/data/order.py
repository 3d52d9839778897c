"""The global order: which example is consumed at which position. Pure arithmetic, no I/O, no torch.

Words used here. A set has K_s samples in each of its shards, N in all. An epoch permutes the shards and lays
them end to end. C *lanes* cut that line into C runs of consecutive samples; position o of the epoch is row
o // C of lane o mod C. Inside a lane, *windows* of consecutive samples are permuted. So C streams are read
sequentially, neighbours in a batch come from C far-apart places, and any position is found in O(1).

Everything is closed form: memory grows with the number of shards, never with N.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.seeding import GOLDEN_GAMMA, I64, MASK64, U64, hash64, mix64, mix64_array, permutation

SMALL_SET_BYTES = 256 << 20
DEFAULT_WINDOW = 32
MAX_LANES = 4096
_ROUNDS = 8
_TAG_SHARDS = 0x5348415244  # "SHARD"
_TAG_WINDOWS = 0x57494E444F57  # "WINDOW"


class Location(NamedTuple):
    """Where the example at one position lies: `sample` of the set's shard number `shard`, in `epoch`."""

    epoch: int
    shard: int
    sample: int


class WindowId(NamedTuple):
    """One window: the unit that is read at once."""

    epoch: int
    lane: int
    number: int


class Segment(NamedTuple):
    """`length` consecutive samples of the set's shard number `shard`, from sample `first` on."""

    shard: int
    first: int
    length: int


def default_lanes(num_samples: int) -> int:
    """The largest power of two <= min(4096, max(1, N // 256))."""
    return 1 << (min(MAX_LANES, max(1, num_samples // 256)).bit_length() - 1)


def resolve_lanes(num_samples: int, num_bytes: int, lanes: int | None, window: int | None) -> tuple[int, int]:
    """Lanes C and window length of a set of `num_samples` in `num_bytes` of tar.

    A set under 256 MiB is one lane and one window: a full permutation. What is given overrides.

    Raises:
        ConfigError: more lanes than samples.
    """
    small = num_bytes < SMALL_SET_BYTES
    chosen_lanes = lanes if lanes is not None else 1 if small else default_lanes(num_samples)
    if chosen_lanes > num_samples:
        raise ConfigError(f"data.lanes={chosen_lanes} is more than the {num_samples} examples of the set")
    one_window = small and lanes is None
    chosen_window = window if window is not None else num_samples if one_window else DEFAULT_WINDOW
    return chosen_lanes, min(chosen_window, num_samples)


def permute(index: int, size: int, key: int) -> int:
    """Image of `index` under a pseudorandom permutation of range(size) named by the 64-bit `key`.

    A Feistel network on ceil(log2 size) bits, walked until it lands inside the range (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains"); the round function is the mixer of core/seeding. A rotation by the
    key at the end makes every place equally likely for every index, which few rounds on few bits do not.
    """
    if size == 1:
        return 0
    bits = (size - 1).bit_length()
    low_bits = bits >> 1
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    while True:
        low, high, word = index & low_mask, index >> low_bits, key
        # mix64, written out: half of the time of locate() went into the calls.
        for _ in range(_ROUNDS // 2):
            x = (word ^ high) & MASK64
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK64
            low ^= (x ^ (x >> 31)) & low_mask
            word += GOLDEN_GAMMA
            x = (word ^ low) & MASK64
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK64
            high ^= (x ^ (x >> 31)) & high_mask
            word += GOLDEN_GAMMA
        index = high << low_bits | low
        if index < size:
            return (index + mix64(~key) % size) % size


def permute_array(index: I64, size: I64, key: U64) -> I64:
    """`permute` for arrays of equal length: int64 [n], int64 [n], uint64 [n] -> int64 [n]."""
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.uint64)
    low_bits = bits >> np.uint64(1)
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << (bits - low_bits)) - one
    result = index.astype(np.uint64)
    todo = np.flatnonzero(size > 1)
    result[size == 1] = 0
    while todo.size:
        shift, lows, highs = low_bits[todo], low_mask[todo], high_mask[todo]
        x, word = result[todo], key[todo]
        low, high = x & lows, x >> shift
        for _ in range(_ROUNDS // 2):
            low ^= mix64_array(word ^ high) & lows
            word = word + np.uint64(GOLDEN_GAMMA)
            high ^= mix64_array(word ^ low) & highs
            word = word + np.uint64(GOLDEN_GAMMA)
        x = high << shift | low
        result[todo] = x
        todo = todo[x >= size[todo].astype(np.uint64)]
    turned = (result + mix64_array(~key) % size.astype(np.uint64)) % size.astype(np.uint64)
    return turned.astype(np.int64)


class EpochOrder:
    """The order of one epoch: the permuted shards, and where each begins on the epoch's line."""

    def __init__(self, counts: I64, *, seed: int, epoch: int) -> None:
        self.epoch = epoch
        self.shards = permutation(len(counts), seed, epoch, _TAG_SHARDS)
        ends = np.cumsum(counts[self.shards])
        self.starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
        self._ends = ends.tolist()
        self.window_key = hash64(seed, epoch, _TAG_WINDOWS)

    def find(self, line: int) -> tuple[int, int]:
        """Shard and sample at place `line` of the epoch's line."""
        # The first shard that ends after it: empty shards are stepped over.
        slot = bisect_right(self._ends, line)
        return int(self.shards[slot]), line - int(self.starts[slot])

    def find_many(self, line: I64) -> tuple[I64, I64]:
        """`find` for an array: int64 [n] -> shards int64 [n], samples int64 [n]."""
        slot = np.searchsorted(np.asarray(self._ends), line, side="right")
        return self.shards[slot], line - self.starts[slot]

    def span(self, line: int, count: int, counts: I64) -> list[Segment]:
        """The samples at places [line, line + count), as runs within shards."""
        segments, slot = [], bisect_right(self._ends, line)
        while count:
            first = line - int(self.starts[slot])
            shard = int(self.shards[slot])
            taken = min(count, int(counts[shard]) - first)
            if taken:
                segments.append(Segment(shard, first, taken))
            line, count, slot = line + taken, count - taken, slot + 1
        return segments


@dataclass(frozen=True)
class OrderIdentity:
    """What a position belongs to. Two streams with equal identities consume the same examples in the same order."""

    fingerprint: str
    num_samples: int
    subset_seed: int
    lanes: int
    window: int
    seed: int


class GlobalOrder:
    """The sequence of examples of a set: position g (0, 1, 2, ... across epochs) -> example.

    Args:
        counts: samples in each shard of the set, int64 [S].
        seed: the run's seed; every epoch has its own order.
        lanes: C, at most N.
        window: samples permuted together inside a lane.

    Raises:
        DataError: the set is empty.
    """

    def __init__(self, counts: I64, *, seed: int, lanes: int, window: int) -> None:
        self.counts = np.ascontiguousarray(counts, dtype=np.int64)
        self.num_samples = int(self.counts.sum())
        if self.num_samples == 0:
            raise DataError("the set has no samples, so it has no order")
        assert 1 <= lanes <= self.num_samples
        assert window >= 1
        self.seed, self.lanes, self.window = seed, lanes, window
        self._base, self._extra = divmod(self.num_samples, lanes)
        self._epochs: OrderedDict[int, EpochOrder] = OrderedDict()

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch; the last three asked for are kept."""
        order = self._epochs.get(epoch)
        if order is None:
            order = self._epochs[epoch] = EpochOrder(self.counts, seed=self.seed, epoch=epoch)
            # Read-ahead crosses into the next epoch while samples of the last one are still being decoded.
            while len(self._epochs) > 3:
                self._epochs.popitem(last=False)
        return order

    def lane_length(self, lane: int) -> int:
        """Samples in a lane: N // C, one more in the first N mod C."""
        return self._base + (lane < self._extra)

    def _lane_start(self, lane: int) -> int:
        return lane * self._base + min(lane, self._extra)

    def _first_window(self, lane: int) -> int:
        # Staggered, so that the lanes of a rank do not all ask for a new window at the same row.
        return self.window - lane * self.window // self.lanes

    def _window_at(self, lane: int, row: int) -> tuple[int, int, int]:
        """Index, first row and length of the window of a lane that holds a row."""
        first = self._first_window(lane)
        length = self.lane_length(lane)
        if row < first:
            return 0, 0, min(first, length)
        index = (row - first) // self.window
        start = first + index * self.window
        return index + 1, start, min(self.window, length - start)

    def place(self, position: int) -> tuple[WindowId, int]:
        """The window of a position, and which of the window's samples (in stored order) it consumes."""
        epoch, offset = divmod(position, self.num_samples)
        row, lane = divmod(offset, self.lanes)
        index, start, size = self._window_at(lane, row)
        key = hash64(self.epoch(epoch).window_key, lane, index)
        return WindowId(epoch, lane, index), permute(row - start, size, key)

    def lanes_of(self, positions: I64) -> I64:
        """The lanes of `place` for an array: int64 [n] -> int64 [n]."""
        lanes: I64 = positions % self.num_samples % self.lanes
        return lanes

    def locate(self, position: int) -> Location:
        """The example at a position. O(1) in the position."""
        epoch, offset = divmod(position, self.num_samples)
        row, lane = divmod(offset, self.lanes)
        index, start, size = self._window_at(lane, row)
        order = self.epoch(epoch)
        slot = permute(row - start, size, hash64(order.window_key, lane, index))
        return Location(epoch, *order.find(self._lane_start(lane) + start + slot))

    def window_line(self, window: WindowId) -> tuple[int, int]:
        """First place on the epoch's line, and length, of a window."""
        first = self._first_window(window.lane)
        row = 0 if window.number == 0 else first + (window.number - 1) * self.window
        _, start, size = self._window_at(window.lane, row)
        return self._lane_start(window.lane) + start, size

    def window_segments(self, window: WindowId) -> list[Segment]:
        """The samples of a window in stored order, as runs within shards."""
        line, size = self.window_line(window)
        return self.epoch(window.epoch).span(line, size, self.counts)

    def following(self, window: WindowId) -> WindowId:
        """The window behind one in its lane; behind the last one the next lane's first, behind all the very first."""
        rest = self.lane_length(window.lane) - self._first_window(window.lane)
        if window.number < -(-rest // self.window):
            return window._replace(number=window.number + 1)
        return window._replace(lane=(window.lane + 1) % self.lanes, number=0)

    def preceding(self, window: WindowId) -> WindowId:
        """The window that another one is `following`."""
        if window.number:
            return window._replace(number=window.number - 1)
        lane = (window.lane - 1) % self.lanes
        rest = self.lane_length(lane) - self._first_window(lane)
        return window._replace(lane=lane, number=max(0, -(-rest // self.window)))

    def home(self, epoch: int, shard: int, sample: int) -> tuple[WindowId, int]:
        """The window in which a sample lies in an epoch, and its place there in stored order."""
        order = self.epoch(epoch)
        line = int(order.starts[int(np.flatnonzero(order.shards == shard)[0])]) + sample
        longer = self._extra * (self._base + 1)
        lane = line // (self._base + 1) if line < longer else self._extra + (line - longer) // self._base
        row = line - self._lane_start(lane)
        index, start, _ = self._window_at(lane, row)
        return WindowId(epoch, lane, index), row - start

    def turn(self, window: WindowId, slot: int) -> int:
        """The position that consumes the sample at a place of a window: the inverse of `place`."""
        line, _ = self.window_line(window)
        row = line - self._lane_start(window.lane) + int(np.flatnonzero(self.window_slots(window) == slot)[0])
        return window.epoch * self.num_samples + row * self.lanes + window.lane

    def window_slots(self, window: WindowId) -> I64:
        """The samples of a window in the order they are consumed, as places in stored order. int64 [size]."""
        _, size = self.window_line(window)
        key = hash64(self.epoch(window.epoch).window_key, window.lane, window.number)
        return permute_array(
            np.arange(size, dtype=np.int64), np.full(size, size, np.int64), np.full(size, key, np.uint64)
        )

    def locate_many(self, positions: I64) -> tuple[I64, I64, I64]:
        """`locate` for an array: int64 [n] -> epochs, shards, samples, each int64 [n]."""
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        rows, lanes = np.divmod(offsets, self.lanes)
        first = self.window - lanes * self.window // self.lanes
        length = self._base + (lanes < self._extra)
        index = np.where(rows < first, 0, (rows - first) // self.window + 1)
        start = np.where(rows < first, 0, first + (index - 1) * self.window)
        size = np.where(rows < first, np.minimum(first, length), np.minimum(self.window, length - start))
        lane_starts = lanes * self._base + np.minimum(lanes, self._extra)
        shards, samples = np.empty_like(offsets), np.empty_like(offsets)
        for epoch in np.unique(epochs):
            indices = np.flatnonzero(epochs == epoch)
            order = self.epoch(int(epoch))
            keys = _window_keys(order.window_key, lanes[indices], index[indices])
            slots = permute_array(rows[indices] - start[indices], size[indices], keys)
            shards[indices], samples[indices] = order.find_many(lane_starts[indices] + start[indices] + slots)
        return epochs, shards, samples

    def read_amplification(self, ranks: int) -> int:
        """How many ranks read each lane's bytes: W / gcd(W, C); 1 where whole lanes are owned."""
        return ranks // gcd(ranks, self.lanes)


def _window_keys(window_key: int, lanes: I64, index: I64) -> U64:
    """hash64(window_key, lane, index) for arrays. uint64 [n]."""
    golden = np.uint64(GOLDEN_GAMMA)
    state = np.uint64((mix64((window_key + GOLDEN_GAMMA) & MASK64) + GOLDEN_GAMMA) & MASK64)
    by_lane = mix64_array(lanes.astype(np.uint64) + state)
    return mix64_array(index.astype(np.uint64) + (by_lane + golden))


def describe_identity_change(current: dict[str, Any], saved: dict[str, Any], prefix: str = "") -> list[str]:
    """Where a saved stream belongs to another order: 'seed: 1 here, 0 there', one text each.

    Args:
        current: this run's identity as plain data, nested for a mixture.
        saved: the saved one.
        prefix: of the names.
    """
    changes = []
    for name in [*current, *(name for name in saved if name not in current)]:
        a, b, path = current.get(name), saved.get(name), f"{prefix}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            changes += describe_identity_change(a, b, f"{path}.")
        elif a != b:
            changes.append(f"{path}: {_shown(a)} here, {_shown(b)} there")
    return changes


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(value) if isinstance(value, dict) else repr(value)
