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

from vit_dist.config.cache import CacheConfig
from vit_dist.core.seeding import I64
from vit_dist.data.buffers import Buffers
from vit_dist.data.cache import CachedReads, Fetch
from vit_dist.data.index import ShardIndex
from vit_dist.data.members import part_of_sample
from vit_dist.data.order import Segment
from vit_dist.data.ranges import MOST_RANGE_BYTES, RangeReader
from vit_dist.data.sets import Part, Parts
from vit_dist.data.tarheader import TarFormatError, walk

MERGE_GAP = 256 << 10
"""Bytes nobody wants that are read all the same when they lie between two wanted samples.

A request costs a store some 10 to 50 ms; a quarter of a megabyte takes 3 ms of one connection at 85 MB/s.
"""


Into = Callable[[int, memoryview], None]
"""Reads the bytes of a tar from this one on into memory, as many as that has."""


def cuts(begin: int, end: int) -> list[int]:
    """The ends of the equal parts in which [begin, end) is read."""
    parts = max(1, -(-(end - begin) // MOST_RANGE_BYTES))
    return [begin + (end - begin) * part // parts for part in range(1, parts + 1)]


@dataclass(frozen=True)
class Range:
    """Bytes of a tar, in parts each of which is being read or read.

    Attributes:
        start: the first one.
        content: their memory.
        ends: of each part.
        parts: done, once it is there.
    """

    start: int
    content: memoryview
    ends: Sequence[int]
    parts: Sequence[Future[None]]

    def bytes(self, begin: int, end: int) -> memoryview:
        """The bytes [begin, end) of the tar. Waits for them; raises what their reading raised."""
        for number in range(bisect_right(self.ends, begin), len(self.ends)):
            self.parts[number].result()
            if end <= self.ends[number]:
                break
        return self.content[begin - self.start : end - self.start]


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
        ranges: that hold them.
        anew: reads a range from where the shard lies, past any cache; None where none was asked.
    """

    part: Part
    shard: int
    samples: I64
    index: ShardIndex
    starts: Sequence[int]
    ranges: list[Range]
    anew: Fetch | None = None

    def image(self, sample: int) -> memoryview:
        """The bytes of a sample's image. Waits for them; raises what their reading raised."""
        begin = int(self.index.image_offsets[sample])
        return self._slice(begin, begin + int(self.index.image_bytes[sample]))

    def difference(self, sample: int, key: str) -> str:
        """What the tar has where the index says a sample and its image are; '' where it is just that."""
        there = self._difference(sample, key)
        if there and self.anew is not None:
            # A cache may have it from before the shard was mended.
            number = bisect_right(self.starts, int(self.index.offsets[sample])) - 1
            begin, end, there_now = self.starts[number], self.ranges[number].ends[-1], Future[None]()
            there_now.set_result(None)
            self.ranges[number] = Range(begin, memoryview(self.anew(begin, end)), [end], [there_now])
            there = self._difference(sample, key)
        return there

    def _difference(self, sample: int, key: str) -> str:
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
        return self.ranges[bisect_right(self.starts, begin) - 1].bytes(begin, end)


class SegmentReader:
    """Reads segments in threads of its own, with the indexes they need.

    A piece is there as soon as its index is; its bytes follow. So no thread of the pool ever waits for another one.

    Args:
        parts: what the segments count in.
        threads: reads in flight at once.
        num_indexes: how many indexes to keep, asked anew each time.
        cache: of the node, which remote ranges go through; left out: the machine's, where there is one.

    Attributes:
        pace: where reads are counted.
    """

    def __init__(
        self, parts: Parts, threads: int, num_indexes: Callable[[], int], cache: CacheConfig | None = None
    ) -> None:
        self._parts, self._num_indexes = parts, num_indexes
        self._cache = CachedReads(cache, parts)
        self._ranges, self._buffers = RangeReader(), Buffers()
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
        self._cache.stop()
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
        ranges, first_part = self._begin(self._into(part, shard), spans)
        first_part()
        anew = self._cache.anew(part, shard, self._ranges.read)
        piece = Piece(part, shard, samples, index, [begin for begin, _ in spans], ranges, anew)
        return self.pace.hold(piece, sum(end - begin for begin, end in spans))

    def _into(self, part: Part, shard: int) -> Into:
        self._ranges.expect(part.manifest.shard_url(shard), part.manifest.shards[shard].num_bytes)
        cached = self._cache.read(part, shard, self._ranges.read)
        if cached is None:
            return partial(self._ranges.read_into, part.manifest.shard_url(shard))

        def copy(start: int, into: memoryview) -> None:
            mine = self.pace.mine
            before, size = mine.read_bytes, len(into)
            into[:] = cached(start, start + size)
            mine.asked_bytes += size
            # What it lacks is read in this thread, in whole blocks.
            mine.hit_bytes += max(0, size - (mine.read_bytes - before))

        return copy

    def _begin(self, read_into: Into, spans: Sequence[tuple[int, int]]) -> tuple[list[Range], Callable[[], None]]:
        """Ranges that are being read, and what reads the first part of them in this thread: the usual case needs no
        second turn in the queue."""
        ranges, here = list[Range](), list[Callable[[], None]]()
        for begin, end in spans:
            content, ends, parts = self._buffers.take(end - begin), cuts(begin, end), list[Future[None]]()
            for first, last in zip([begin, *ends], ends, strict=False):
                read = partial(read_into, first, content[first - begin : last - begin])
                if here:
                    parts.append(self._pool.submit(read))
                else:
                    parts.append(Future())
                    here.append(partial(_settle, parts[0], read))
            ranges.append(Range(begin, content, ends, parts))
        return ranges, here[0]

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


def _settle(future: Future[None], read: Callable[[], None]) -> None:
    try:
        read()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(None)
