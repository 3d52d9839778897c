"""The streams: a rank's batches of training examples from any position, and of a validation set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.schema import DataConfig, Recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.log import log
from vit_dist.core.memory import pinned_bytes
from vit_dist.core.seeding import I64
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.data.augment import Augment
from vit_dist.data.decode import centre
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.mixture import MixtureIdentity
from vit_dist.data.order import OrderIdentity, Segment, WindowId
from vit_dist.data.reader import Batch, Reader, Replacement
from vit_dist.data.sets import Part, Parts, TrainingSet
from vit_dist.data.subset import Subset, select


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: `position` examples were consumed; the identity says of which order."""

    position: int
    identity: OrderIdentity | MixtureIdentity


class TrainStream:
    """One rank's batches of a run, from `position` on, for ever; each with the stream's state after it.

    Rank r of W owns the positions g = r mod W, so the global batch of every step is the same set of examples, in
    the same order, whatever W.

    Args:
        data: the set, or the mixture.
        recipe: of the run.
        world: this rank's place.
        position: examples consumed before.
        reuse: each batch is given back (Batch.give_back) before the next but `data.prefetch_batches` is asked for.

    Raises:
        ConfigError: the ranks do not divide the batch, or the read-ahead is over the memory limit.
    """

    def __init__(self, data: TrainingSet, recipe: Recipe, world: World, position: int, *, reuse: bool = False) -> None:
        config, rank_batch = recipe.data, world.rank_batch(recipe.global_batch)
        self._data, self._batch, self._position = data, recipe.global_batch, position
        images = rank_batch * 3 * config.image_size**2
        # Beside a GPU the reader pins its batches.
        images = pinned_bytes(images) if torch.cuda.is_available() else images
        self.memory_bytes = data.read_ahead_bytes(world.size) + (config.prefetch_batches + 1) * images
        if self.memory_bytes > config.memory_limit:
            raise ConfigError(
                f"reading ahead would take {format_bytes(self.memory_bytes)} a rank, over data.memory_limit="
                f"{format_bytes(config.memory_limit)}: {data.order.lanes} lanes on {world.size} ranks; use more ranks, "
                f"fewer data.lanes, a smaller data.window or data.prefetch_batches, or raise the limit"
            )
        augment = Augment.of(config, recipe.seed)
        self._reader = Reader(
            data.parts,
            data.order,
            _positions(position, recipe.global_batch, world),
            lambda image, epoch, ordinal: augment.apply(image, epoch=epoch, ordinal=ordinal),
            config,
            whole_shards=data.fits_in_memory,
            reuse=reuse,
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


class EvalBatches:
    """A validation set, or a subset of one, in stored order, cut into equal runs for the ranks.

    Every rank yields the same number of batches (collectives inside the model need that); past the end of a rank's
    run its batches are shorter, at last None. A sample that cannot be decoded is replaced by its neighbour, and logged.

    Args:
        manifest: the set.
        config: image size, crop, classes, threads.
        world: whose ranks share the set.
        batch: examples a rank gets at once.
        subset: which of them; None: all.
        view: what an image becomes, given S and the fraction that the crop keeps.
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
    ) -> None:
        if manifest.num_samples == 0:
            raise DataError(f"the validation set {manifest.name!r} has no samples")
        subset = subset or select(manifest, None)
        total = subset.num_samples
        per_rank = -(-total // world.size)
        positions = range(min(total, world.rank * per_rank), min(total, (world.rank + 1) * per_rank))
        self._rounds = -(-per_rank // batch)
        chunks = [positions[i * batch : (i + 1) * batch] for i in range(self._rounds)]
        size, crop = config.image_size, config.val_fraction
        self._reader = Reader(
            Parts([Part(manifest, subset)]),
            StoredOrder(subset.counts),
            iter([c for c in chunks if len(c)]),
            lambda image, _epoch, _ordinal: view(image, size, crop),
            config,
            whole_shards=False,
        )

    def __iter__(self) -> Iterator[Batch | None]:
        replaced: list[Replacement] = []
        try:
            for _ in range(self._rounds):
                batch = self._reader.next()
                replaced += batch.replaced if batch is not None else []
                yield batch
            if replaced:
                first = replaced[0]
                log(
                    f"  {len(replaced)} validation examples cannot be decoded and count as their neighbours do; the "
                    f"first: {first.key!r} of {first.shard}: {first.reason}"
                )
        finally:
            self._reader.close()
