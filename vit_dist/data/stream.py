"""The streams: a rank's batches of training examples from any position, and of a validation set."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.log import log
from vit_dist.core.memory import pinned_bytes
from vit_dist.core.seeding import I64
from vit_dist.core.units import counted, format_bytes
from vit_dist.core.world import World
from vit_dist.data.augment import Augment
from vit_dist.data.batch import Batch, Make, Replacement
from vit_dist.data.decode import Encoded, centre
from vit_dist.data.decode_pool import Processes, num_processes
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.mixture import MixtureIdentity
from vit_dist.data.order import OrderIdentity, Segment, WindowId
from vit_dist.data.pace import Pace
from vit_dist.data.reader import Reader
from vit_dist.data.regions import check_installed
from vit_dist.data.rows import Order, RowsOf, Stages
from vit_dist.data.sets import Part, Parts, TrainingSet, Wanted
from vit_dist.data.subset import Subset, select
from vit_dist.data.takedown import taken_in
from vit_dist.data.waits import told_to_nobody


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: `position` examples were consumed; the identity says of which order."""

    position: int
    identity: OrderIdentity | MixtureIdentity


class TrainStream:
    """One rank's batches of a run, from `position` on; each with the stream's state after it.

    Rank r of W owns the positions g = r mod W, so the global batch of every step is the same set of examples, in
    the same order, whatever W.

    Args:
        data: the set, or the mixture.
        recipe: of the run, or of the stream.
        world: this rank's place.
        position: examples consumed before.
        reuse: each batch is given back (Batch.give_back) before the next but `data.prefetch_batches` is asked for.
        uneven: where the ranks do not divide the batch, some have one example more than others.
        end: the position at which it ends, with a smaller batch where no whole one is left; None: never.
        stored: in the order in which the samples lie in the shards, in place of the set's order.
        make: see RowsOf. Threads decode then: not all that can be called can be sent to processes.
        taken_down: see RowsOf.
        labelled: see RowsOf.
        at_once: where processes decode, the first batch waits for them; else threads begin.
        timeout_s: see Reader.
        told: see Reader.

    Raises:
        ConfigError: the ranks do not divide the batch, the read-ahead is over the memory limit, or the decoder is not
            installed.
    """

    def __init__(
        self,
        data: TrainingSet,
        recipe: Wanted,
        world: World,
        position: int,
        *,
        reuse: bool = False,
        uneven: bool = False,
        end: int | None = None,
        stored: bool = False,
        make: Make | None = None,
        taken_down: Mapping[int, int] | None = None,
        labelled: bool = True,
        at_once: bool = False,
        timeout_s: float = 0.0,
        told: Callable[[str], None] = told_to_nobody,
    ) -> None:
        config, batch = recipe.data, recipe.global_batch
        if config.decoder == "nvimgcodec":
            check_installed()
        rank_batch = -(-batch // world.size) if uneven else world.rank_batch(batch)
        self._data, self._batch, self._position, self._end = data, batch, position, end
        num_lanes = data.order.lanes // math.gcd(data.order.lanes, world.size)
        # Of a set that fits in memory a process has all shards.
        at_most = None if data.fits_in_memory else num_lanes
        processes = 0 if stored or make is not None else num_processes(config, at_most)
        images = rank_batch * 3 * config.image_size**2
        # Beside a GPU the reader pins its batches, by torch's allocator or, where processes write them, as they are.
        images = pinned_bytes(images) if torch.cuda.is_available() and not processes else images
        images *= config.prefetch_batches + 1
        windows = data.windows_at_once(world.size, config.memory_limit - images)
        # Each process has all of a set that fits in memory; so have the threads that begin.
        holders = 1 + processes if data.fits_in_memory else 1
        self.memory_bytes = holders * windows * data.read_ahead_bytes(world.size) + images
        if self.memory_bytes > config.memory_limit:
            raise ConfigError(
                f"reading ahead would take {format_bytes(self.memory_bytes)} a rank, over data.memory_limit="
                f"{format_bytes(config.memory_limit)}: {counted(data.order.lanes, 'lane')} on "
                f"{counted(world.size, 'rank')}; use more ranks, fewer data.lanes, a smaller data.window or "
                f"data.prefetch_batches, or raise the limit"
            )
        order: Order = StoredOrder(data.parts[0].subset.counts) if stored else data.order
        view = functools.partial(_augmented, Augment.of(config, recipe.seed))
        rows = RowsOf(
            data.parts,
            order,
            view,
            config,
            whole_shards=data.fits_in_memory,
            windows_at_once=1 if stored else windows,
            make=make,
            taken_down=dict(taken_down or {}),
            labelled=labelled,
            regions=config.decoder == "nvimgcodec",
        )
        lanes = None if data.fits_in_memory else data.order.lanes_of
        self._reader = Reader(
            rows,
            _positions(position, batch, world, end),
            reuse=reuse,
            processes=Processes(processes, rank_batch, lanes, num_lanes, at_once) if processes else None,
            timeout_s=timeout_s,
            told=told,
        )

    def __iter__(self) -> Iterator[tuple[Batch, StreamState]]:
        while True:
            batch = self._reader.next()
            if batch is None:
                return
            self._position = _after(self._position, self._batch, self._end)
            yield batch, StreamState(self._position, self._data.identity)

    def __enter__(self) -> TrainStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and processes."""
        self._reader.close()

    @property
    def pace(self) -> Pace:
        """What its threads do, counted."""
        return self._reader.pace


def _augmented(augment: Augment, image: Encoded, epoch: int, ordinal: int) -> Stages:
    height, width = image.size
    draw = augment.draw(height, width, epoch=epoch, ordinal=ordinal)
    yield 3 * height * width
    cut = augment.cut(image, draw)
    yield cut.numel()
    return augment.change(cut, draw)


def _looked_at(
    view: Callable[[Tensor, int, float], Tensor], size: int, crop: float, image: Encoded, _epoch: int, _ordinal: int
) -> Stages:
    pixels = image.whole()
    yield pixels.numel()
    return view(pixels, size, crop)


def _positions(position: int, global_batch: int, world: World, end: int | None) -> Iterator[Sequence[int]]:
    while end is None or position < end:
        after = _after(position, global_batch, end)
        yield range(position + world.rank, after, world.size)
        position = after


def _after(position: int, global_batch: int, end: int | None) -> int:
    """The position behind the next batch."""
    return position + global_batch if end is None else min(end, position + global_batch)


STORED_WINDOW = 256


class StoredOrder:
    """Samples as they lie in the shards, epoch after epoch the same: the order of evaluation."""

    def __init__(self, counts: I64) -> None:
        self.counts = counts
        self._ends = np.cumsum(counts)

    def place(self, position: int) -> tuple[WindowId, int]:
        """See Order."""
        epoch, line = divmod(position, int(self._ends[-1]))
        return WindowId(epoch, 0, line // STORED_WINDOW), line % STORED_WINDOW

    def window_segments(self, window: WindowId) -> list[Segment]:
        """See Order."""
        line = window.number * STORED_WINDOW
        todo = min(STORED_WINDOW, int(self._ends[-1]) - line)
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

    def following(self, window: WindowId) -> WindowId:
        """See Order."""
        windows = -(-int(self._ends[-1]) // STORED_WINDOW)
        return window._replace(number=(window.number + 1) % windows)


class EvalBatches:
    """A validation set, or a subset of one, in stored order, cut into equal runs for the ranks.

    Every rank yields the same number of batches (collectives inside the model need that); past the end of a rank's
    run its batches are shorter, at last None. A sample that cannot be decoded, or that `data.takedown` names, is
    replaced by its neighbour, and logged.

    Args:
        manifest: the set.
        config: image size, crop, classes, threads.
        world: whose ranks share the set.
        batch: examples a rank gets at once.
        subset: which of them; None: all.
        view: what an image becomes, given S and the fraction that the crop keeps.
        name: of the set in a mixture, by which a line of `data.takedown` may mean it alone.
    """

    def __init__(
        self,
        manifest: ShardManifest,
        config: DataConfig,
        world: World,
        batch: int,
        *,
        subset: Subset | None = None,
        view: Callable[[Tensor, int, float], Tensor] = centre,
        name: str = "",
    ) -> None:
        if manifest.num_samples == 0:
            raise DataError(f"the validation set {manifest.name!r} has no samples")
        subset = subset or select(manifest, None)
        total = subset.num_samples
        per_rank = -(-total // world.size)
        positions = range(min(total, world.rank * per_rank), min(total, (world.rank + 1) * per_rank))
        self._rounds = -(-per_rank // batch)
        chunks = [positions[i * batch : (i + 1) * batch] for i in range(self._rounds)]
        parts = Parts([Part(manifest, subset, name)])
        taken_down = {ordinal: 0 for found in taken_in(config.takedown, parts).values() for ordinal in found}
        rows = RowsOf(
            parts,
            StoredOrder(subset.counts),
            functools.partial(_looked_at, view, config.image_size, config.val_fraction),
            config,
            whole_shards=False,
            taken_down=taken_down,
        )
        # In threads: an evaluation ends about when processes would be there.
        self._reader = Reader(rows, iter([c for c in chunks if len(c)]))

    def __iter__(self) -> Iterator[Batch | None]:
        replaced: list[Replacement] = []
        try:
            for _ in range(self._rounds):
                batch = self._reader.next()
                replaced += batch.replaced if batch is not None else []
                yield batch
            for what, some in (
                ("cannot be decoded", [r for r in replaced if not r.taken_down]),
                ("are taken down", [r for r in replaced if r.taken_down]),
            ):
                if some:
                    first = some[0]
                    log(
                        f"  {len(some)} validation examples {what} and count as their neighbours do; the first: "
                        f"{first.key!r} of {first.shard}: {first.reason}"
                    )
        finally:
            self._reader.close()
