"""The stream: batches of a rank's examples, in the global order, from any position.

One planner thread walks the order ahead; reader threads keep byte ranges in flight; decode threads write uint8
straight into the batch's buffer. There are no worker processes, so there is no worker state: a position is the
whole state of a stream.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.schema import DataConfig, Recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import redact
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.data.decode import Augment, DecodeError, centre, decode
from vit_dist.data.index import ShardIndex
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.order import I64, SMALL_SET_BYTES, GlobalOrder, OrderIdentity, Segment, WindowId, resolve_lanes
from vit_dist.data.ranges import RangeReader
from vit_dist.data.subset import Subset, select


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: `position` examples were consumed; the identity says of which order."""

    position: int
    identity: OrderIdentity


@dataclass(frozen=True)
class Replacement:
    """A sample that could not be decoded, and what was read in its place."""

    shard: str
    key: str
    ordinal: int
    reason: str
    replaced_by: str


@dataclass
class Batch:
    """Examples of one rank, in the order of the global batch. B of them.

    Attributes:
        images: uint8 [B, 3, S, S].
        labels: int64 [B, L]; -1 where a sample has fewer than L labels.
        weights: float32 [B, L]; 1 but for soft labels, 0 where the label is -1.
        ordinals: int64 [B]; each sample's ordinal in its manifest.
        replaced: the undecodable samples met on the way.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    ordinals: Tensor
    replaced: list[Replacement] = field(default_factory=list)


class Order(Protocol):
    """What the reader asks of an order: GlobalOrder for training, StoredOrder for evaluation."""

    counts: I64

    def place(self, position: int) -> tuple[WindowId, int]:
        """The window of a position, and the place in it of the sample to consume."""

    def window_segments(self, window: WindowId) -> list[Segment]:
        """The samples of a window in stored order."""

    def window_slots(self, window: WindowId) -> I64:
        """The places of a window in the order they are consumed."""


class StoredOrder:
    """Samples as they lie in the shards, once: the order of evaluation."""

    _WINDOW = 256

    def __init__(self, counts: I64) -> None:
        self.counts = counts
        self._ends = np.cumsum(counts)

    def place(self, position: int) -> tuple[WindowId, int]:
        """See Order."""
        return WindowId(0, 0, position // self._WINDOW), position % self._WINDOW

    def window_segments(self, window: WindowId) -> list[Segment]:
        """See Order."""
        line = window.number * self._WINDOW
        todo = min(self._WINDOW, int(self._ends[-1]) - line)
        segments, shard = [], int(np.searchsorted(self._ends, line, side="right"))
        while todo > 0:
            first = line - int(self._ends[shard] - self.counts[shard])
            length = min(todo, int(self.counts[shard]) - first)
            if length:
                segments.append(Segment(shard, first, length))
            line, todo, shard = line + length, todo - length, shard + 1
        return segments

    def window_slots(self, window: WindowId) -> I64:
        """See Order."""
        return np.arange(sum(s.length for s in self.window_segments(window)), dtype=np.int64)


@dataclass(frozen=True)
class _Piece:
    """Bytes [start, ...) of a shard's tar, with the shard's index."""

    shard: int
    start: int
    content: memoryview
    index: ShardIndex

    def image(self, sample: int) -> memoryview:
        begin = int(self.index.image_offsets[sample]) - self.start
        return self.content[begin : begin + int(self.index.image_bytes[sample])]

    def header_key(self, sample: int) -> str | None:
        """The key that the tar itself names at the sample's place; None where its header is not a plain one."""
        begin = int(self.index.offsets[sample]) - self.start
        header = self.content[begin : begin + 512].tobytes()
        if len(header) < 512 or header[257:262] != b"ustar":
            return ""
        if header[156:157] not in (b"0", b"\0"):
            return None  # a pax or GNU long name comes first
        name, prefix = (header[a:b].partition(b"\0")[0] for a, b in ((0, 100), (345, 500)))
        path = prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name
        folder, slash, file = path.rpartition(b"/")
        return (folder + slash + file.partition(b".")[0]).decode("utf-8", "replace").removeprefix("./")


class _Window:
    """A window on its way: its segments, each a future of bytes."""

    def __init__(self, identity: WindowId, segments: Sequence[Segment], pieces: Sequence[Future[_Piece]]) -> None:
        self.identity, self.segments, self.pieces = identity, segments, pieces
        self._ends = np.cumsum([s.length for s in segments]).tolist()

    def sample(self, slot: int) -> tuple[Future[_Piece], Segment, int]:
        """The bytes, the segment, and the sample within the subset's shard, of a place in the window."""
        at = 0
        while slot >= self._ends[at]:
            at += 1
        segment = self.segments[at]
        return self.pieces[at], segment, segment.first + slot - (self._ends[at - 1] if at else 0)


class _Reader:
    """Turns positions into batches, ahead of the consumer.

    Args:
        manifest: of the shards.
        subset: what `order` counts in.
        order: where a position's example is.
        plan: the positions of each batch to come; the planner thread walks it.
        view: what an image becomes: (uint8 [3, H, W], epoch, ordinal) -> uint8 [3, S, S].
        config: threads, prefetch, image size, classes.
        whole_shards: read shards whole and keep them: for sets that fit in memory.
    """

    def __init__(
        self,
        manifest: ShardManifest,
        subset: Subset,
        order: Order,
        plan: Iterator[Sequence[int]],
        view: Any,
        config: DataConfig,
        *,
        whole_shards: bool,
    ) -> None:
        self._manifest, self._subset, self._order, self._plan = manifest, subset, order, plan
        self._view, self._config, self._whole_shards = view, config, whole_shards
        self._ranges = RangeReader()
        self._readers = ThreadPoolExecutor(config.read_threads, "read")
        self._decoders = ThreadPoolExecutor(config.decode_threads, "decode")
        self._planner = ThreadPoolExecutor(1, "plan")
        self._windows: dict[int, _Window] = {}
        self._shards: dict[int, Future[_Piece]] = {}
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._index_locks: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._ahead: deque[Future[tuple[Batch, list[Future[None]]] | None]] = deque()
        for _ in range(config.prefetch_batches):
            self._ahead.append(self._planner.submit(self._plan_batch))

    def next(self) -> Batch | None:
        """The next batch, or None at the end of the plan.

        Raises:
            DataError: what a thread met: a shard that cannot be read, or does not fit its index.
        """
        planned = self._ahead.popleft().result()
        if planned is None:
            return None
        self._ahead.append(self._planner.submit(self._plan_batch))
        batch, tasks = planned
        for task in tasks:
            task.result()
        batch.replaced.sort(key=lambda r: r.ordinal)
        return batch

    def close(self) -> None:
        """Stop the threads; what is in flight is dropped."""
        self._closed = True
        for pool in (self._planner, self._decoders, self._readers):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._planner, self._decoders, self._readers):
            pool.shutdown(wait=True)
        self._ranges.close()

    def _plan_batch(self) -> tuple[Batch, list[Future[None]]] | None:
        positions = next(self._plan, None)
        if positions is None:
            return None
        n, size, width = len(positions), self._config.image_size, self._manifest.max_labels
        batch = Batch(
            images=torch.empty((n, 3, size, size), dtype=torch.uint8, pin_memory=torch.cuda.is_available()),
            labels=torch.full((n, width), -1, dtype=torch.int64),
            weights=torch.zeros((n, width), dtype=torch.float32),
            ordinals=torch.zeros(n, dtype=torch.int64),
        )
        tasks = []
        for row, position in enumerate(positions):
            identity, slot = self._order.place(position)
            window = self._windows.get(identity.lane)
            if window is None or window.identity != identity:
                # A lane's windows are met one after the other: the old one lives on only in the tasks that need it.
                window = self._windows[identity.lane] = self._open(identity)
            tasks.append(self._decoders.submit(self._fill, batch, row, window, slot))
        return batch, tasks

    def _open(self, identity: WindowId) -> _Window:
        segments = self._order.window_segments(identity)
        pieces = []
        for segment in segments:
            if self._whole_shards:
                if segment.shard not in self._shards:
                    self._shards[segment.shard] = self._readers.submit(self._read_whole, segment.shard)
                pieces.append(self._shards[segment.shard])
            else:
                pieces.append(self._readers.submit(self._read_segment, segment))
        return _Window(identity, segments, pieces)

    def _index(self, shard: int) -> ShardIndex:
        with self._lock:
            found = self._indexes.get(shard)
            if found is not None:
                self._indexes.move_to_end(shard)
                return found
            lock = self._index_locks.setdefault(shard, threading.Lock())
        with lock:
            with self._lock:
                found = self._indexes.get(shard)
            if found is None:
                found = self._manifest.read_index(shard)
                with self._lock:
                    self._indexes[shard] = found
                    while len(self._indexes) > max(64, 2 * len(self._windows)):
                        self._indexes.popitem(last=False)
        return found

    def _read_whole(self, subset_shard: int) -> _Piece:
        # Only as far as the subset reaches; lengths beyond it would have to be read for nothing.
        return self._read_segment(Segment(subset_shard, 0, int(self._subset.counts[subset_shard])))

    def _read_segment(self, segment: Segment) -> _Piece:
        shard, first = self._subset.sample(segment.shard, segment.first)
        _, last = self._subset.sample(segment.shard, segment.first + segment.length - 1)
        index = self._index(shard)
        start, end = int(index.offsets[first]), int(index.offsets[last + 1])
        return _Piece(shard, start, memoryview(self._ranges.read(self._manifest.shard_url(shard), start, end)), index)

    def _fill(self, batch: Batch, row: int, window: _Window, slot: int) -> None:
        """Decode the sample at a place of a window into row `row`; in its stead the next decodable one."""
        if self._closed:
            return
        failed: list[tuple[str, str, int, str]] = []
        for candidate in self._candidates(window, slot):
            future, segment, inner = window.sample(candidate)
            piece = future.result()
            _, sample = self._subset.sample(segment.shard, inner)
            key = piece.index.key(sample)
            found = piece.header_key(sample)
            url = redact(self._manifest.shard_url(piece.shard))
            if found is not None and found != key:
                raise DataError(
                    f"{url}: the index says sample {key!r} begins at byte {int(piece.index.offsets[sample])}, the tar "
                    f"has {found!r} there: the manifest does not match its tars; run `vit-dist data verify`"
                )
            ordinal = int(self._manifest.first_ordinals[piece.shard]) + sample
            try:
                image = self._view(decode(piece.image(sample)), window.identity.epoch, ordinal)
            except DecodeError as error:
                failed.append((url, key, ordinal, str(error)))
                continue
            batch.images[row].copy_(image)
            self._fill_labels(batch, row, piece, sample, key)
            batch.ordinals[row] = ordinal
            batch.replaced += [Replacement(u, k, o, reason, key) for u, k, o, reason in failed]
            return
        url, key, _, reason = failed[0]
        raise DataError(
            f"{url}: none of the {len(failed)} samples around {key!r} can be decoded (the first: {reason}); "
            f"the shard is damaged: run `vit-dist data verify`"
        )

    def _candidates(self, window: _Window, slot: int) -> Iterator[int]:
        yield slot
        slots = self._order.window_slots(window.identity)
        start = int(np.flatnonzero(slots == slot)[0])
        for step in range(1, len(slots)):
            yield int(slots[(start + step) % len(slots)])

    def _fill_labels(self, batch: Batch, row: int, piece: _Piece, sample: int, key: str) -> None:
        labels, weights = piece.index.sample_labels(sample)
        if not len(labels):
            raise DataError(f"{redact(self._manifest.shard_url(piece.shard))}: sample {key!r} has no label")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self._config.num_classes:
            bad = low if low < 0 else high
            raise DataError(
                f"{redact(self._manifest.shard_url(piece.shard))}: sample {key!r} has label {bad}, but the head knows "
                f"classes 0 to {self._config.num_classes - 1} (data.num_classes={self._config.num_classes})"
            )
        batch.labels[row, : len(labels)] = torch.from_numpy(labels)
        batch.weights[row, : len(labels)] = torch.from_numpy(weights)


@dataclass(frozen=True)
class TrainingSet:
    """The examples of a run and their order; made from the manifest alone, before any sample is read."""

    manifest: ShardManifest
    subset: Subset
    order: GlobalOrder
    identity: OrderIdentity

    @property
    def num_samples(self) -> int:
        """Examples of an epoch."""
        return self.order.num_samples


def open_training_set(recipe: Recipe, manifest: ShardManifest) -> TrainingSet:
    """Choose the subset and fix the order.

    Raises:
        ConfigError: a subset larger than the set, more lanes than examples, another number of classes.
    """
    config = recipe.data
    if manifest.num_classes > config.num_classes:
        raise ConfigError(
            f"data.num_classes={config.num_classes}, but the set {manifest.name!r} has {manifest.num_classes} classes; "
            f"set data.num_classes={manifest.num_classes}"
        )
    subset = select(manifest, config.subset, config.subset_seed)
    n = subset.num_samples
    lanes, window = resolve_lanes(n, subset.num_bytes, config.lanes, config.window)
    order = GlobalOrder(subset.counts, seed=recipe.seed, lanes=lanes, window=window)
    identity = OrderIdentity(manifest.fingerprint, n, config.subset_seed, lanes, window, recipe.seed)
    return TrainingSet(manifest, subset, order, identity)


class TrainStream:
    """One rank's batches of a run, from `position` on, for ever; each with the stream's state after it.

    Rank r of W owns the positions g = r mod W, so the global batch of every step is the same set of examples, in
    the same order, whatever W.

    Raises:
        ConfigError: the ranks do not divide the batch, or the read-ahead is over the memory limit.
    """

    def __init__(self, data: TrainingSet, recipe: Recipe, world: World, position: int) -> None:
        config, share = recipe.data, world.share(recipe.global_batch)
        self._data, self._batch, self._position = data, recipe.global_batch, position
        self.memory_bytes = _read_ahead(data, config, world, share)
        if self.memory_bytes > config.memory_limit:
            raise ConfigError(
                f"reading ahead would take {format_bytes(self.memory_bytes)} a rank, over data.memory_limit="
                f"{format_bytes(config.memory_limit)}: {data.order.lanes} lanes of windows of {data.order.window} on "
                f"{world.size} ranks; use more ranks, fewer data.lanes, a smaller data.window, or raise the limit"
            )
        augment = Augment.of(config, recipe.seed)
        self._reader = _Reader(
            data.manifest,
            data.subset,
            data.order,
            _positions(position, recipe.global_batch, world),
            lambda image, epoch, ordinal: augment.apply(image, epoch=epoch, ordinal=ordinal),
            config,
            whole_shards=_fits_in_memory(data),
        )

    def __iter__(self) -> Iterator[tuple[Batch, StreamState]]:
        while True:
            batch = self._reader.next()
            assert batch is not None, "the order of training has no end"
            self._position += self._batch
            yield batch, StreamState(self._position, self._data.identity)

    def __enter__(self) -> TrainStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._reader.close()


def _positions(position: int, global_batch: int, world: World) -> Iterator[Sequence[int]]:
    while True:
        yield range(position + world.rank, position + global_batch, world.size)
        position += global_batch


def _fits_in_memory(data: TrainingSet) -> bool:
    return data.subset.num_bytes < SMALL_SET_BYTES and data.order.window == data.num_samples and data.order.lanes == 1


def _read_ahead(data: TrainingSet, config: DataConfig, world: World, share: int) -> int:
    """Bytes a rank holds at once, about: windows in flight and decoded batches."""
    images = (config.prefetch_batches + 1) * share * 3 * config.image_size**2
    if _fits_in_memory(data):
        return data.subset.num_bytes + images
    windows = data.order.read_ahead_windows(world.size) * data.order.window
    return min(data.subset.num_bytes, windows * data.subset.num_bytes // data.num_samples) + images


class EvalBatches:
    """A validation set in stored order, cut into equal runs for the ranks.

    Every rank yields the same number of batches (collectives inside the model need that); past the end of a rank's
    run its batches are shorter, at last None.
    """

    def __init__(self, manifest: ShardManifest, config: DataConfig, world: World, batch: int) -> None:
        total = manifest.num_samples
        if total == 0:
            raise DataError(f"the validation set {manifest.name!r} has no samples")
        share = -(-total // world.size)
        mine = range(min(total, world.rank * share), min(total, (world.rank + 1) * share))
        self._rounds = -(-share // batch)
        chunks = [mine[i * batch : (i + 1) * batch] for i in range(self._rounds)]
        size, crop = config.image_size, config.val_crop
        self._reader = _Reader(
            manifest,
            select(manifest, None),
            StoredOrder(manifest.counts),
            iter([c for c in chunks if len(c)]),
            lambda image, _epoch, _ordinal: centre(image, size, crop),
            config,
            whole_shards=False,
        )

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            for _ in range(self._rounds):
                yield self._reader.next()
        finally:
            self._reader.close()
