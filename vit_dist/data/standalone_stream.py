"""What `vit_dist.open_stream` gives: an iterator over one rank's batches, each with the state after it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.log import WARNING, log
from vit_dist.core.world import World
from vit_dist.data.batch import Batch, Replacement, Sample
from vit_dist.data.sets import TrainingSet, Wanted
from vit_dist.data.stream import TrainStream
from vit_dist.data.stream_state import StreamPosition, dump_position
from vit_dist.data.takedown import TakenDown


@dataclass(frozen=True)
class StreamBatch:
    """One rank's examples of a global batch, b of them, in the order of the global batch.

    Attributes:
        labels: int64 [b, L], L the most labels that a sample of the sets has; -1 where a sample has fewer, or none.
        weights: float32 [b, L]; 1, or the weight of a soft label; 0 where the label is -1.
        items: b of them: what `transform` gave, or the PIL images or bytes; [] where images are made by `decode="crop"`
            alone.
        samples: b of them: key, set, ordinal, epoch and position of each example.
        replaced: samples of this rank that could not be decoded when their turn came, and what is in their place.
        global_size: examples of this step on all ranks; less than `batch` at the end of the last epoch alone.
        loss_scale: ranks / global_size. A rank's *sum* of losses times this, averaged over the ranks as DDP averages
            gradients, is the mean over the global batch, however unevenly the ranks share it.
    """

    labels: Tensor
    weights: Tensor
    items: list[Any]
    samples: list[Sample]
    replaced: list[Replacement]
    global_size: int
    loss_scale: float
    _images: Tensor | None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def images(self) -> Tensor:
        """uint8 [b, 3, S, S] by `decode="crop"` alone; else what `transform` gave, stacked: [b, ...].

        Raises:
            ConfigError: what it gave are no tensors of one shape; `items` has them.
        """
        if self._images is None:
            what = type(self.items[0]).__name__ if self.items else "nothing"
            raise ConfigError(
                f"batch.images: items of type {what} are not tensors of one shape; take batch.items, or give a "
                f"transform that makes such tensors"
            )
        return self._images

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, as the tars have them."""
        return [sample.key for sample in self.samples]


class Stream(Iterator[tuple[StreamBatch, StreamPosition]]):
    """One rank's batches, each with the state after it. Made by `open_stream`.

    A context manager, and an iterator that is gone through once; `len()` is the batches that were left when it was
    opened. Its threads end with `close()`, at the end of the last epoch, or with the object.

    Attributes:
        num_samples: examples of an epoch; of a mixture, of all its sets together.
        num_classes: that the labels may mean.
        class_names: by label, as far as the sets have names.
        state: where it stands: of the last batch that it gave, or that it was opened with.
    """

    def __init__(
        self,
        inner: TrainStream,
        data: TrainingSet,
        wanted: Wanted,
        world: World,
        position: int,
        end: int | None,
        taken_down: tuple[TakenDown, ...],
        *,
        shuffle: bool,
        device: str | torch.device | None,
    ) -> None:
        self._batches, self._data, self._wanted, self._world = iter(inner), data, wanted, world
        self._begin, self._end, self._shuffle, self._device = position, end, shuffle, device
        self._bad, self._taken_down = set[int](), taken_down
        # Threads hold the reader and not this object: they end with it also where nobody closes it.
        self._close = weakref.finalize(self, inner.close)
        self.num_samples, self.num_classes = data.num_samples, data.num_classes
        self.class_names = data.class_names
        self.state = self._state(position)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[StreamBatch, StreamPosition]:
        """The next batch and the state after it.

        Raises:
            DataError: a shard that cannot be read, or more undecodable samples on this rank than max_bad.
            DataTimeoutError: a batch takes longer than `timeout`, and none comes after it. A TimeoutError, too.
        """
        if not self._close.alive:
            raise StopIteration
        before: int = self.state["position"]
        try:
            batch, after = next(self._batches)
        except StopIteration:
            self.close()
            raise
        self._count_bad(batch.replaced)
        given = self._batch(batch, after.position - before)
        self.state = self._state(after.position)
        return given, self.state

    def __len__(self) -> int:
        if self._end is None:
            raise TypeError("a stream without `epochs` has no length: it never ends")
        return max(0, -(-(self._end - self._begin) // self._wanted.global_batch))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the threads that read ahead; the stream gives no more batches. `state` stays."""
        self._close()

    def _state(self, position: int) -> StreamPosition:
        batch, identity = self._wanted.global_batch, self._data.identity
        return dump_position(position, batch, identity, self._taken_down, shuffle=self._shuffle)

    def _batch(self, batch: Batch, global_size: int) -> StreamBatch:
        # Where items are made of the samples, the buffers of images have no pixels.
        items = [] if batch.images.shape[-1] else batch.made
        images = batch.images if batch.images.shape[-1] else _stacked(items)
        labels, weights = batch.labels, batch.weights
        if self._device is not None:
            labels, weights = (x.to(self._device, non_blocking=True) for x in (labels, weights))
            images = images.to(self._device, non_blocking=True) if images is not None else None
        scale = self._world.size / global_size
        return StreamBatch(labels, weights, items, batch.samples, batch.replaced, global_size, scale, images)

    def _count_bad(self, replaced: list[Replacement]) -> None:
        new = [one for one in replaced if one.ordinal not in self._bad and not one.taken_down]
        if not new:
            return
        first, allowed = new[0], math.ceil(self._wanted.data.max_bad * self._data.num_samples)
        self._bad |= {one.ordinal for one in new}
        log(f"  {first.key!r} of {first.shard} is replaced by {first.replaced_by!r}: {first.reason}", WARNING)
        if len(self._bad) > allowed:
            raise DataError(
                f"{len(self._bad)} examples cannot be decoded on rank {self._world.rank} alone, over max_bad="
                f"{self._wanted.data.max_bad:g} of {self._data.num_samples}; the last: {first.key!r} of {first.shard}: "
                f"{first.reason}. Run `vit-dist data verify --images`, or raise max_bad"
            )


def _stacked(items: list[Any]) -> Tensor | None:
    """Tensors of one shape and type as one; None where they are not such. Of no items: an empty one."""
    if not all(isinstance(item, Tensor) for item in items) or len({(x.shape, x.dtype) for x in items}) > 1:
        return None
    return torch.stack(items) if items else torch.empty(0)
