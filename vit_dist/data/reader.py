"""From positions of an order to batches of uint8 images, ahead of whoever takes them.

One planner thread walks the order ahead; reader threads keep byte ranges in flight; decode threads write uint8
straight into the batch's buffer. There are no worker processes, so there is no worker state: a position is the
whole state of a stream.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import DataError
from vit_dist.core.files import redact
from vit_dist.core.seeding import I64
from vit_dist.core.world import rank_cpus
from vit_dist.data.decode import decode
from vit_dist.data.images import DecodeError
from vit_dist.data.order import Segment, WindowId
from vit_dist.data.ring import Buffers, Copied, Ring
from vit_dist.data.segments import Piece, SegmentReader
from vit_dist.data.sets import Parts

_MOST_DECODERS = 32
"""Of themselves: more threads than these wait for Python's lock, and take it from the thread that trains."""

View = Callable[[Tensor, int, int], Tensor]
"""What an image becomes: (uint8 [3, H, W], epoch, ordinal) -> uint8 [3, S, S]."""


@dataclass(frozen=True)
class Sample:
    """Which sample is made an example of, and which example.

    Attributes:
        key: as the tar has it.
        set: its name in a mixture; '' where there is one set.
        ordinal: in its manifest; in a mixture, manifests count on from each other.
        epoch: of its set, from 0.
        position: of the example in the order, from 0.
    """

    key: str
    set: str
    ordinal: int
    epoch: int
    position: int


Make = Callable[[memoryview, Sample], Any]
"""What becomes of a sample in place of pixels in the batch's buffer: (bytes of its image, which it is) -> anything."""


@dataclass(frozen=True)
class Replacement:
    """A sample that could not be decoded when its turn came, or was taken down, and what was read in its place."""

    shard: str
    key: str
    ordinal: int
    reason: str
    replaced_by: str

    @property
    def taken_down(self) -> bool:
        """Whether somebody wanted it so; else the sample is broken."""
        return self.reason == TAKEN_DOWN


TAKEN_DOWN = "taken down"


@dataclass
class Batch:
    """Examples of one rank, in the order of the global batch. B of them.

    Attributes:
        images: uint8 [B, 3, S, S].
        labels: int64 [B, L]; -1 where a sample has fewer than L labels.
        weights: float32 [B, L]; 1 but for soft labels, 0 where the label is -1.
        ordinals: int64 [B]; each sample's ordinal in its manifest; in a mixture, manifests count on from each other.
        positions: int64 [B]; where in the order each example stood.
        samples: B of them: which sample each example was made of.
        made: B of them: what `Make` gave, where images are not made here; else None each.
        replaced: the undecodable samples among those whose turn it was, and those that were taken down.
        ring: where images, labels and weights go back to, if their memory is used again.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    ordinals: Tensor
    positions: Tensor
    samples: list[Sample] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    replaced: list[Replacement] = field(default_factory=list)
    ring: Ring | None = None

    def give_back(self, copied: Copied | None = None) -> None:
        """Images, labels and weights are read no more, once `copied` is through on the device. Once a batch."""
        if self.ring is not None:
            self.ring.give_back(Buffers(self.images, self.labels, self.weights), copied)


class Order(Protocol):
    """What the reader asks of an order: GlobalOrder, MixtureOrder, or StoredOrder for evaluation."""

    def place(self, position: int) -> tuple[WindowId, int]:
        """The window of a position, and the place in it of the sample to consume."""

    def window_segments(self, window: WindowId) -> list[Segment]:
        """The samples of a window in stored order."""

    def window_slots(self, window: WindowId) -> I64:
        """The places of a window in the order they are consumed."""

    def following(self, window: WindowId) -> WindowId:
        """The window behind one, and so on through all of the epoch, or of a mixture's set, in a circle."""


class _Window:
    """A window that is being read: its segments, each a future of a piece."""

    def __init__(self, identity: WindowId, segments: Sequence[Segment], pieces: Sequence[Future[Piece]]) -> None:
        self.identity, self._segments, self._pieces = identity, segments, pieces
        self._ends = np.cumsum([s.length for s in segments]).tolist()

    def sample(self, slot: int, *, whole_shards: bool) -> tuple[Piece, int]:
        """The piece of a place in the window, once it is here, and the sample as the piece's index counts it."""
        piece_number = 0
        while slot >= self._ends[piece_number]:
            piece_number += 1
        inner = slot - (self._ends[piece_number - 1] if piece_number else 0)
        piece = self._pieces[piece_number].result()
        return piece, int(piece.samples[inner + (self._segments[piece_number].first if whole_shards else 0)])


class Reader:
    """Turns positions into batches.

    Args:
        parts: what `order` counts in.
        order: where a position's example is.
        positions: of each batch to come; the planner thread takes them.
        view: what an image becomes.
        config: threads, prefetch, image size, classes.
        whole_shards: read shards whole and keep them: for sets that fit in memory.
        reuse: whoever takes a batch gives it back (Batch.give_back), and its memory is written again.
        make: what becomes of a sample in place of pixels by `view`; images are without pixels then, [B, 3, 0, 0].
        taken_down: ordinals of samples that are left out, each with the first position at which it is.
        labelled: a sample without a label is an error; else its labels are -1.

    Attributes:
        pace: what its threads do, counted.
    """

    def __init__(
        self,
        parts: Parts,
        order: Order,
        positions: Iterator[Sequence[int]],
        view: View,
        config: DataConfig,
        *,
        whole_shards: bool,
        reuse: bool = False,
        make: Make | None = None,
        taken_down: Mapping[int, int] | None = None,
        labelled: bool = True,
    ) -> None:
        # As many as are ahead, and the one that is taken.
        self._ring = Ring(config.prefetch_batches + 1) if reuse else None
        self._order, self._positions, self._view = order, positions, view
        self._config, self._whole_shards, self._make = config, whole_shards, make
        self._decode = functools.partial(decode, upright=config.upright)
        self._taken_down, self._labelled = taken_down or {}, labelled
        self._max_labels = max(part.manifest.max_labels for part in parts)
        self._windows: dict[int, _Window] = {}
        self._segments = SegmentReader(parts, config.read_threads, lambda: max(64, 2 * len(self._windows)))
        self.pace = self._segments.pace
        self.pace.decoders, self.pace.readers = config.decode_threads or default_decode_threads(), config.read_threads
        self._decoders = _decoders(self.pace.decoders)
        self._planner = ThreadPoolExecutor(1, "plan")
        self._closed = False
        self._ahead: deque[Future[tuple[Batch, list[Future[None]]] | None]] = deque()
        for _ in range(config.prefetch_batches):
            self._ahead.append(self._planner.submit(self._plan_batch))

    def next(self) -> Batch | None:
        """The next batch, or None once there are no more positions.

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
        # Threads end in any order; the list is the same in every run.
        batch.replaced.sort(key=lambda r: r.ordinal)
        self.pace.mine.replaced += len(batch.replaced)
        return batch

    def close(self) -> None:
        """Stop the threads; what is in flight is dropped."""
        # The readers first: a decode thread that waits for bytes must get its error, or the pools never end.
        self._closed = True
        if self._ring is not None:
            self._ring.close()
        self._segments.stop()
        for pool in (self._planner, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._planner, self._decoders):
            pool.shutdown(wait=True)
        self._segments.close()

    def _plan_batch(self) -> tuple[Batch, list[Future[None]]] | None:
        positions = next(self._positions, None)
        if positions is None:
            return None
        n, width = len(positions), self._max_labels
        size = self._config.image_size if self._make is None else 0
        buffers = self._ring.take(n, size, width) if self._ring is not None else Buffers.make(n, size, width)
        if buffers is None:
            return None
        batch = Batch(
            images=buffers.images,
            labels=buffers.labels.fill_(-1),
            weights=buffers.weights.zero_(),
            ordinals=torch.zeros(n, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            samples=[_NO_SAMPLE] * n,
            made=[None] * n,
            ring=self._ring,
        )
        tasks = []
        for row, position in enumerate(positions):
            identity, slot = self._order.place(position)
            window = self._windows.get(identity.lane)
            if window is None or window.identity != identity:
                # A lane's windows are met one after the other: the old one lives on only in the tasks that need it.
                window = self._windows[identity.lane] = self._open(identity)
            tasks.append(self._decoders.submit(self._fill, batch, row, position, window, slot))
        return batch, tasks

    def _open(self, identity: WindowId) -> _Window:
        segments = self._order.window_segments(identity)
        read = self._segments.read_whole if self._whole_shards else self._segments.read
        return _Window(identity, segments, [read(segment) for segment in segments])

    def _fill(self, batch: Batch, row: int, position: int, window: _Window, slot: int) -> None:
        """Decode the sample at a place of a window into row `row`; in its stead the next decodable one.

        Only the sample whose turn it is counts as replaced: those after it have turns of their own. Where samples of a
        window were taken down, and no other one of it is whole, the next window's are tried.
        """
        if self._closed:
            return
        first: Replacement | None = None
        tried, all_broken, begun, turn = 0, False, window.identity, slot
        while not all_broken:
            all_broken = True
            for candidate in self._candidates(window, turn):
                self.pace.thread.wants()
                piece, sample = window.sample(candidate, whole_shards=self._whole_shards)
                key, tried = piece.index.key(sample), tried + 1
                ordinal = piece.part.ordinal(piece.shard, sample)
                which = Sample(key, piece.part.name, ordinal, window.identity.epoch, position)
                reason = self._problem(batch, row, piece, sample, which)
                if not reason:
                    if first is not None:
                        batch.replaced.append(replace(first, replaced_by=key))
                    return
                first = first or Replacement(_url(piece), key, ordinal, reason, "")
                all_broken = all_broken and reason != TAKEN_DOWN
            following = self._order.following(window.identity)
            if following == begun:
                break
            if not all_broken:
                window = self._open(following)
                turn = int(self._order.window_slots(following)[0])
        assert first is not None
        raise DataError(
            f"{first.shard}: none of the {tried} samples around {first.key!r} can be decoded (the first: "
            f"{first.reason}); the shard is damaged: run `vit-dist data verify`"
        )

    def _problem(self, batch: Batch, row: int, piece: Piece, sample: int, which: Sample) -> str:
        """Make a sample the example of a row; why it cannot be, or ''."""
        # First: of one that was taken down not a byte is looked at, and its bytes may have been wiped.
        if self._taken_down.get(which.ordinal, which.position + 1) <= which.position:
            return TAKEN_DOWN
        _check_header(piece, sample, which.key)
        self.pace.thread.has()
        try:
            if self._make is not None:
                batch.made[row] = self._make(piece.image(sample), which)
            else:
                batch.images[row].copy_(self._view(self._decode(piece.image(sample)), which.epoch, which.ordinal))
        except DecodeError as error:
            return str(error) or "it cannot be decoded"
        finally:
            self.pace.thread.decoded(lambda: f"{which.key!r} of {_url(piece)}")
        self._fill_labels(batch, row, piece, sample, which.key)
        batch.ordinals[row], batch.samples[row] = which.ordinal, which
        return ""

    def _candidates(self, window: _Window, slot: int) -> Iterator[int]:
        yield slot
        slots = self._order.window_slots(window.identity)
        start = int(np.flatnonzero(slots == slot)[0])
        for step in range(1, len(slots)):
            yield int(slots[(start + step) % len(slots)])

    def _fill_labels(self, batch: Batch, row: int, piece: Piece, sample: int, key: str) -> None:
        labels, weights = piece.index.sample_labels(sample)
        if not len(labels) and not self._labelled:
            return
        if not len(labels):
            raise DataError(
                f"{_url(piece)}: sample {key!r} has no label; `vit-dist data index --skip-bad` makes a manifest "
                f"of its tars that leaves such samples out"
            )
        labels = labels + piece.part.label_offset
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self._config.num_classes:
            bad = low if low < 0 else high
            moved = f" (label_offset={piece.part.label_offset} added)" if piece.part.label_offset else ""
            raise DataError(
                f"{_url(piece)}: sample {key!r} has label {bad}{moved}, but the head knows classes 0 to "
                f"{self._config.num_classes - 1} (data.num_classes={self._config.num_classes})"
            )
        batch.labels[row, : len(labels)] = torch.from_numpy(labels)
        batch.weights[row, : len(labels)] = torch.from_numpy(weights)


def default_decode_threads() -> int:
    """All CPUs of the rank but one for the thread that trains and one for those that plan and read: 2 to 32."""
    return min(_MOST_DECODERS, max(2, rank_cpus() - 2))


def _decoders(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads resize images themselves, without a team of OpenMP threads each."""
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "decode", initializer=_alone)
    # torch.set_num_threads() is for the thread that calls it, and for all that use torch for the first time later. So
    # the pool's threads all begin now, and the number for later ones is set back by this one, whose own it is.
    begun = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(begun.wait)
        begun.wait()
    except RuntimeError:  # the system gives no more threads: those that wait must not wait for ever
        begun.abort()
        raise
    torch.set_num_threads(own)
    return pool


def _alone() -> None:
    torch.get_num_threads()  # a thread's first use of torch takes the number of the process, over what was set before
    torch.set_num_threads(1)


_NO_SAMPLE = Sample("", "", -1, -1, -1)


def _url(piece: Piece) -> str:
    return redact(piece.part.manifest.shard_url(piece.shard))


def _check_header(piece: Piece, sample: int, key: str) -> None:
    there = piece.difference(sample, key)
    if there:
        raise DataError(
            f"{_url(piece)}: the index says sample {key!r} begins at byte {int(piece.index.offsets[sample])}, the tar "
            f"has {there}: the manifest does not match its tars; run `vit-dist data verify`"
        )
