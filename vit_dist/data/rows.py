"""From a position of an order to one row of a batch: which sample, its bytes, its pixels, its labels.

The same code in the threads of a rank and in its decode processes. It has no state that a result depends on: windows
and indexes are kept as long as they are of use.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import DataError
from vit_dist.core.files import redact
from vit_dist.core.memory import is_shortage
from vit_dist.core.seeding import I64
from vit_dist.core.units import format_bytes
from vit_dist.data.batch import TAKEN_DOWN, Batch, Make, Replacement, Sample
from vit_dist.data.decode import Encoded
from vit_dist.data.doing import Stage
from vit_dist.data.images import DecodeError
from vit_dist.data.lookahead import Lookahead, Run
from vit_dist.data.order import Segment, WindowId
from vit_dist.data.regions import RegionDecoder
from vit_dist.data.segments import Piece, SegmentReader
from vit_dist.data.sets import Parts

_MOST_REASON = 200

Stages = Generator[int, None, Tensor]
"""An image on its way to uint8 [3, S, S], which is returned; it stops between drawing, decoding and what is done to its
pixels, and yields how many bytes those take, which are held from there on. Raises DecodeError."""

View = Callable[[Encoded, int, int], Stages]
"""What an image becomes: (it, epoch, ordinal) -> its stages."""

TOGETHER = 8
"""At most so many images go through a stage before any of them goes to the next one: a decoder that comes back after
other stages finds code and tables gone from the nearest caches, which costs a tenth of an image's time."""
_TOGETHER_BYTES = 8 << 20

Noting = Callable[[Stage, str], None]
"""Told what becomes of which image as of now: a decoder that ends its process, or hangs, leaves no other word."""


class Order(Protocol):
    """What is asked of an order: GlobalOrder, MixtureOrder, or StoredOrder for evaluation."""

    def place(self, position: int) -> tuple[WindowId, int]:
        """The window of a position, and the place in it of the sample to consume."""

    def window_segments(self, window: WindowId) -> list[Segment]:
        """The samples of a window in stored order."""

    def window_slots(self, window: WindowId) -> I64:
        """The places of a window in the order they are consumed."""

    def following(self, window: WindowId) -> WindowId:
        """The window behind one, and so on through all of the epoch, or of a mixture's set, in a circle."""


@dataclass(frozen=True)
class RowsOf:
    """All that decides what a row holds. Without `make` it can be sent to other processes, if `view` can.

    Attributes:
        parts: what `order` counts in.
        order: where a position's example is.
        view: what an image becomes.
        config: image size, classes, orientation.
        whole_shards: read shards whole and keep them: for sets that fit in memory.
        windows_at_once: of a lane that are read in one range.
        make: what becomes of a sample in place of pixels by `view`; images are without pixels then, [B, 3, 0, 0].
        taken_down: ordinals of samples that are left out, each with the first position at which it is.
        labelled: a sample without a label is an error; else its labels are -1.
        regions: of a JPEG the region that `view` keeps is decoded alone.
    """

    parts: Parts
    order: Order
    view: View
    config: DataConfig
    whole_shards: bool
    windows_at_once: int = 1
    make: Make | None = None
    taken_down: Mapping[int, int] = field(default_factory=dict)
    labelled: bool = True
    regions: bool = False

    @property
    def image_size(self) -> int:
        """S of a batch's images."""
        return self.config.image_size if self.make is None else 0

    @property
    def max_labels(self) -> int:
        """L of a batch's labels."""
        return max(part.manifest.max_labels for part in self.parts)


class _Window:
    """A window that is being read."""

    def __init__(self, identity: WindowId, runs: Sequence[Run]) -> None:
        self.identity, self._runs = identity, runs

    def sample(self, slot: int) -> tuple[Piece, int]:
        """The piece of a place in the window, once it is here, and the sample as the piece's index counts it."""
        number, place = self.run(slot)
        piece = self._runs[number].piece.result()
        return piece, int(piece.samples[self._runs[number].first + place])

    def is_open(self, slot: int) -> bool:
        """Whether the piece of a place is here, or cannot be had."""
        return self._runs[self.run(slot)[0]].piece.done()

    def run(self, slot: int) -> tuple[int, int]:
        """Which run, as its segments are counted, and the place in that."""
        number = 0
        while slot >= self._runs[number].length:
            slot -= self._runs[number].length
            number += 1
        return number, slot


class Place(NamedTuple):
    """Where the sample of a position is."""

    position: int
    window: _Window
    slot: int


class Failed(NamedTuple):
    """A row that cannot be filled, and why."""

    row: int
    error: Exception


class Rows:
    """Fills rows of batches.

    Args:
        of: what they hold.
        read_threads: byte ranges asked for at once.
        noting: told of each sample before its bytes are waited for, and before they go to a decoder.

    Attributes:
        pace: what is done for them, counted.
    """

    def __init__(self, of: RowsOf, read_threads: int, noting: Noting | None = None) -> None:
        self._of, self._noting = of, noting
        self._windows: dict[int, _Window] = {}
        self._segments = SegmentReader(of.parts, read_threads, lambda: max(64, 2 * len(self._windows)), of.config.cache)
        self._lookahead = Lookahead(of.order, self._segments, of.windows_at_once, whole_shards=of.whole_shards)
        self._regions = RegionDecoder() if of.regions else None
        self.pace = self._segments.pace
        self._stopped = False

    def find(self, position: int) -> Place:
        """The place of a position; its bytes begin to come. Positions ascend, and one thread asks."""
        identity, slot = self._of.order.place(position)
        window = self._windows.get(identity.lane)
        if window is None or window.identity != identity:
            # A lane's windows are met one after the other: the old one lives on only in the places that need it.
            window = self._windows[identity.lane] = _Window(identity, self._lookahead.open(identity))
        return Place(position, window, slot)

    def retire(self) -> None:
        """No more positions come: windows live on only in the places that are not filled yet."""
        self._windows.clear()

    def stop(self) -> None:
        """Drop what is being read; rows that are not begun stay as they are."""
        self._stopped = True
        self._segments.stop()

    def close(self) -> None:
        """Stop, and wait for the threads that read."""
        self._segments.close()

    def fill(self, batch: Batch, rows: Sequence[int], places: Sequence[Place]) -> Failed | None:
        """Decode the sample at each place into its row; in its stead the next decodable one of its window.

        Only the sample whose turn it is counts as replaced: those after it have turns of their own. Where samples of a
        window were taken down, and no other one of it is whole, the next window's are tried.

        Returns:
            The first row that failed: a shard cannot be read, does not fit its index, or has no sample that can be
            decoded. Rows behind it may not be filled then.
        """
        failed: list[Failed] = []
        begun: list[tuple[int, Generator[int]]] = []

        def goes_on(row: int, example: Generator[int]) -> int | None:
            """The bytes that an example holds after its next stage; None: that was the last one."""
            try:
                return next(example, None)
            except Exception as error:
                failed.append(Failed(row, error))
                return None

        def finish() -> None:
            while begun:
                begun[:] = [one for one in begun if goes_on(*one) is not None]

        held = 0
        for row, place in zip(rows, places, strict=True):
            if self._stopped or failed:
                break
            example = self._example(batch, row, place)
            size = goes_on(row, example)
            if size is not None:
                begun.append((row, example))
                held += size
            if len(begun) == TOGETHER or held > _TOGETHER_BYTES:
                finish()
                held = 0
        finish()
        self.pace.thread.rests()
        return min(failed, default=None, key=lambda one: one.row)

    def _example(self, batch: Batch, row: int, place: Place) -> Generator[int]:
        """The stages of what fills a row.

        Raises:
            DataError: see `fill`.
        """
        position, window, turn = place
        first: Replacement | None = None
        tried, all_broken, begun = 0, False, window.identity
        while not all_broken:
            all_broken = True
            for candidate in self._candidates(window, turn):
                self._wants(window, candidate)
                piece, sample = window.sample(candidate)
                key, tried = piece.index.key(sample), tried + 1
                ordinal = piece.part.ordinal(piece.shard, sample)
                which = Sample(key, piece.part.name, ordinal, window.identity.epoch, position)
                reason = yield from self._problem(batch, row, piece, sample, which)
                if not reason:
                    if first is not None:
                        batch.replaced.append(replace(first, replaced_by=key))
                    return
                first = first or Replacement(_url(piece), key, ordinal, reason, "")
                all_broken = all_broken and reason != TAKEN_DOWN
            following = self._of.order.following(window.identity)
            if following == begun:
                break
            if not all_broken:
                window = _Window(following, self._lookahead.open_alone(following))
                turn = int(self._of.order.window_slots(following)[0])
        assert first is not None
        raise DataError(
            f"{first.shard}: none of the {tried} samples around {first.key!r} can be decoded (the first: "
            f"{first.reason}); the shard is damaged: run `vit-dist data verify`"
        )

    def _problem(self, batch: Batch, row: int, piece: Piece, sample: int, which: Sample) -> Generator[int, None, str]:
        """Make a sample the example of a row; why it cannot be, or ''."""
        # First: of one that was taken down not a byte is looked at, and its bytes may have been wiped.
        if self._of.taken_down.get(which.ordinal, which.position + 1) <= which.position:
            return TAKEN_DOWN
        _check_header(piece, sample, which.key)
        content = piece.image(sample)
        self.pace.thread.has()
        try:
            if self._of.make is not None:
                batch.made[row] = self._of.make(content, which)
            else:
                pixels = yield from self._pixels(piece, content, which)
                batch.images[row].copy_(pixels)
        except DecodeError as error:
            return str(error) or "it cannot be decoded"
        except (MemoryError, RuntimeError) as error:
            if is_shortage(error):
                raise _short_of_memory(piece, which.key, len(content), error) from None
            raise
        finally:
            self.pace.thread.did()
            self.pace.mine.images += 1
        self._fill_labels(batch, row, piece, sample, which.key)
        batch.ordinals[row], batch.samples[row] = which.ordinal, which
        return ""

    def _pixels(self, piece: Piece, content: bytes | memoryview, which: Sample) -> Stages:
        """The stages of a sample's view, each counted as work, with word to whoever wants to know whose it is."""
        image = Encoded(content, upright=self._of.config.upright, regions=self._regions)
        stages, what = self._of.view(image, which.epoch, which.ordinal), partial(_told, piece, which)
        while True:
            self._decodes(what)
            try:
                held = next(stages)
            except StopIteration as done:
                pixels: Tensor = done.value
                return pixels
            self.pace.thread.did()
            yield held

    def _decodes(self, what: Callable[[], str]) -> None:
        self.pace.thread.decodes(what)
        if self._noting is not None:
            self._noting("decode", what())

    def _wants(self, window: _Window, slot: int) -> None:
        what = partial(self._named, window, slot)
        self.pace.thread.wants(what)
        if self._noting is not None:
            self._noting("store", what())

    def _named(self, window: _Window, slot: int) -> str:
        """A sample, with its shard; while its index is not here the shard alone. Waits for nothing."""
        if window.is_open(slot):
            with contextlib.suppress(Exception):
                piece, sample = window.sample(slot)
                return f"{piece.index.key(sample)!r} of {_url(piece)}"
        number, _ = window.run(slot)
        part, shard = self._of.parts.find(self._of.order.window_segments(window.identity)[number].shard)
        return f"a sample of {redact(part.manifest.shard_url(shard))}"

    def _candidates(self, window: _Window, slot: int) -> Iterator[int]:
        yield slot
        slots = self._of.order.window_slots(window.identity)
        start = int(np.flatnonzero(slots == slot)[0])
        for step in range(1, len(slots)):
            yield int(slots[(start + step) % len(slots)])

    def _fill_labels(self, batch: Batch, row: int, piece: Piece, sample: int, key: str) -> None:
        labels, weights = piece.index.sample_labels(sample)
        if not len(labels) and not self._of.labelled:
            return
        if not len(labels):
            raise DataError(
                f"{_url(piece)}: sample {key!r} has no label; `vit-dist data index --skip-bad` makes a manifest "
                f"of its tars that leaves such samples out"
            )
        labels, classes = labels + piece.part.label_offset, self._of.config.num_classes
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            bad = low if low < 0 else high
            moved = f" (label_offset={piece.part.label_offset} added)" if piece.part.label_offset else ""
            raise DataError(
                f"{_url(piece)}: sample {key!r} has label {bad}{moved}, but the head knows classes 0 to "
                f"{classes - 1} (data.num_classes={classes})"
            )
        batch.labels[row, : len(labels)] = torch.from_numpy(labels)
        batch.weights[row, : len(labels)] = torch.from_numpy(weights)


def _told(piece: Piece, which: Sample) -> str:
    return f"{which.key!r} of {_url(piece)}"


def _url(piece: Piece) -> str:
    return redact(piece.part.manifest.shard_url(piece.shard))


def _short_of_memory(piece: Piece, key: str, num_bytes: int, error: BaseException) -> DataError:
    why = str(error).split("\n", 1)[0][:_MOST_REASON] or type(error).__name__
    return DataError(
        f"{_url(piece)}: {key!r}, an image of {format_bytes(num_bytes)}: there is not enough memory to decode it in "
        f"{threading.current_thread().name} (pid {os.getpid()}): {why}. Start the run again with more memory for each "
        f"rank, or fewer data.decode_workers, data.decode_threads or data.prefetch_batches; name the key in "
        f"data.takedown if it is the image that is too large"
    )


def _check_header(piece: Piece, sample: int, key: str) -> None:
    there = piece.difference(sample, key)
    if there:
        raise DataError(
            f"{_url(piece)}: the index says sample {key!r} begins at byte {int(piece.index.offsets[sample])}, the tar "
            f"has {there}: the manifest does not match its tars; run `vit-dist data verify`"
        )
