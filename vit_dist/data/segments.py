"""From segments of an order to bytes in memory: sample indexes, and byte ranges that leave out what is not wanted."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from vit_dist.core.seeding import I64
from vit_dist.data.index import ShardIndex
from vit_dist.data.members import part_of_sample
from vit_dist.data.order import Segment
from vit_dist.data.ranges import RangeReader
from vit_dist.data.sets import Part, Parts
from vit_dist.data.tarheader import TarFormatError, walk

MERGE_GAP = 256 << 10
"""Bytes nobody wants that are read all the same when they lie between two wanted samples.

A request costs a store some 10 to 50 ms; a quarter of a megabyte takes 3 ms of one connection at 85 MB/s.
"""


def coalesce(begins: I64, ends: I64, gap: int) -> list[tuple[int, int]]:
    """The fewest ranges that cover all of [begin, end), joined where less than `gap` bytes lie between two.

    Args:
        begins: ascending. int64 [n], n > 0.
        ends: int64 [n].
        gap: in bytes.
    """
    reach = np.maximum.accumulate(ends)
    cuts = np.flatnonzero(begins[1:] - reach[:-1] > gap) + 1
    firsts, lasts = np.concatenate(([0], cuts)), np.concatenate((cuts, [len(begins)])) - 1
    return list(zip(begins[firsts].tolist(), reach[lasts].tolist(), strict=True))


@dataclass(frozen=True)
class Piece:
    """Some samples of one shard: their index, and ranges of the tar, each being read or read.

    Attributes:
        part: the set.
        shard: ordinal in the set's manifest.
        samples: the wanted ones, as the index counts them, in the segment's order. int64 [n].
        index: of the shard.
        starts: first byte of each range, ascending.
        ranges: the bytes of each.
    """

    part: Part
    shard: int
    samples: I64
    index: ShardIndex
    starts: Sequence[int]
    ranges: Sequence[Future[bytes | memoryview]]

    def image(self, sample: int) -> memoryview:
        """The bytes of a sample's image. Waits for them; raises what their reading raised."""
        begin = int(self.index.image_offsets[sample])
        return self._slice(begin, begin + int(self.index.image_bytes[sample]))

    def difference(self, sample: int, key: str) -> str:
        """What the tar has where the index says a sample and its image are; '' where it is just that."""
        begin, image = int(self.index.offsets[sample]), int(self.index.image_offsets[sample])
        try:
            for member in walk(self._bytes, begin, image):
                split = part_of_sample(member)
                if split is not None and split[0] != key:
                    return f"{split[0]!r} there"
                if split is not None and member.content == image:
                    fits = member.size == int(self.index.image_bytes[sample])
                    return "" if fits else f"a member of {member.size} bytes for its image"
        except TarFormatError as error:
            return f"no valid header at byte {error.offset}"
        return f"no member that begins at byte {image}, where its image should be"

    def _bytes(self, begin: int, end: int) -> bytes:
        return self._slice(begin, end).tobytes()

    def _slice(self, begin: int, end: int) -> memoryview:
        range_number = bisect_right(self.starts, begin) - 1
        start = self.starts[range_number]
        return memoryview(self.ranges[range_number].result())[begin - start : end - start]


class SegmentReader:
    """Reads segments in threads of its own, with the indexes they need.

    A piece is there as soon as its index is; its bytes follow. So no thread of the pool ever waits for another one.

    Args:
        parts: what the segments count in.
        threads: reads in flight at once.
        num_indexes: how many indexes to keep, asked anew each time.

    Attributes:
        pace: where reads are counted.
    """

    def __init__(self, parts: Parts, threads: int, num_indexes: Callable[[], int]) -> None:
        self._parts, self._num_indexes = parts, num_indexes
        self._ranges = RangeReader()
        self.pace = self._ranges.pace
        self._pool = ThreadPoolExecutor(threads, "read")
        self._indexes: OrderedDict[tuple[str, int], ShardIndex] = OrderedDict()
        self._index_locks: dict[tuple[str, int], threading.Lock] = {}
        self._lock = threading.Lock()
        self._whole: dict[int, Future[Piece]] = {}

    def read(self, segment: Segment) -> Future[Piece]:
        """Begin to read the samples of a segment."""
        return self._pool.submit(self._open, segment)

    def read_whole(self, segment: Segment) -> Future[Piece]:
        """Read all that a set has in the segment's shard, once, and keep it."""
        piece = self._whole.get(segment.shard)
        if piece is None:
            part, shard = self._parts.find(segment.shard)
            everything = Segment(segment.shard, 0, int(part.subset.counts[shard]))
            piece = self._whole[segment.shard] = self.read(everything)
        return piece

    def stop(self) -> None:
        """Drop what has not begun, and stop trying again."""
        self._ranges.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop, wait for the threads and close the files."""
        self.stop()
        self._pool.shutdown(wait=True)
        self._ranges.close()

    def _open(self, segment: Segment) -> Piece:
        part, own = self._parts.find(segment.shard)
        shard, first = part.subset.sample(own, segment.first)
        index = self._index(part, shard)
        if part.subset.chosen is None:
            samples = np.arange(first, first + segment.length)
        else:
            samples = part.subset.chosen[own][segment.first : segment.first + segment.length]
        # From a sample's first header, which names it, to the end of its image; what follows is in the index.
        ends = index.image_offsets[samples] + index.image_bytes[samples]
        spans = coalesce(index.offsets[samples], ends, MERGE_GAP)
        read = partial(self._ranges.read, part.manifest.shard_url(shard))
        # The usual case needs no second turn in the queue.
        if len(spans) == 1:
            here: Future[bytes | memoryview] = Future()
            here.set_result(read(*spans[0]))
            ranges = [here]
        else:
            ranges = [self._pool.submit(read, begin, end) for begin, end in spans]
        piece = Piece(part, shard, samples, index, [begin for begin, _ in spans], ranges)
        return self.pace.hold(piece, sum(end - begin for begin, end in spans))

    def _index(self, part: Part, shard: int) -> ShardIndex:
        key = (part.name, shard)
        with self._lock:
            index = self._indexes.get(key)
            if index is not None:
                self._indexes.move_to_end(key)
                return index
            lock = self._index_locks.setdefault(key, threading.Lock())
        # A lock for each index: one thread reads it, the others wait, and indexes of other shards come meanwhile.
        with lock:
            with self._lock:
                index = self._indexes.get(key)
            if index is None:
                index = part.manifest.read_index(shard, self._ranges.read_all)
                with self._lock:
                    self._indexes[key] = index
                    while len(self._indexes) > self._num_indexes():
                        self._index_locks.pop(self._indexes.popitem(last=False)[0], None)
        return index
