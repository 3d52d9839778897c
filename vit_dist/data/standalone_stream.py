"""What `vit_dist.open_stream` gives: an iterator over one rank's batches, each with the state after it."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

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

    def __repr__(self) -> str:
        images = "" if self._images is None else f", images {tuple(self._images.shape)} {self._images.dtype}"
        return f"<StreamBatch of {len(self)} examples{images}, labels {tuple(self.labels.shape)}>"

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
    opened. Its threads end with `close()`, at the end of the last epoch, or with the object. An error or Ctrl-C while
    a batch is waited for ends them too, and costs no example: the next batch is read anew from `state`.

    Attributes:
        num_samples: examples of an epoch; of a mixture, of all its sets together.
        num_classes: that the labels may mean.
        class_names: by label, as far as the sets have names.
        state: where it stands: of the last batch that it gave, or that it was opened with.
    """

    def __init__(
        self,
        start: Callable[[int], TrainStream],
        data: TrainingSet,
        wanted: Wanted,
        world: World,
        position: int,
        end: int | None,
        taken_down: tuple[TakenDown, ...],
        *,
        shuffle: bool,
        device: torch.device | None,
    ) -> None:
        self._start, self._data, self._wanted, self._world = start, data, wanted, world
        self._begin, self._end, self._shuffle, self._device = position, end, shuffle, device
        self._bad, self._taken_down = set[int](), taken_down
        self._ended, self._process = False, os.getpid()
        self._open(position)
        self.num_samples, self.num_classes = data.num_samples, data.num_classes
        self.class_names = data.class_names
        self.state = self._state(position)

    def _open(self, position: int) -> None:
        inner = self._start(position)
        self._batches = iter(inner)
        # Threads hold the reader and not this object: they end with it also where nobody closes it.
        self._close = weakref.finalize(self, _close, inner, self._process)

    def __iter__(self) -> Stream:
        """The stream itself.

        Raises:
            ConfigError: it was gone through to its end, or closed: a loop would silently have no batches.
        """
        if self._ended:
            raise ConfigError(
                "the stream was gone through to its end, or closed, and gives no more batches; for several epochs open "
                "it with epochs=N and loop once; to go on where a closed one stood open another with "
                "position=stream.state"
            )
        return self

    def __next__(self) -> tuple[StreamBatch, StreamPosition]:
        """The next batch and the state after it.

        Raises:
            DataError: a shard that cannot be read, or more undecodable samples on this rank than max_bad.
            ConfigError: this process was forked from the one that opened it, whose threads it has not.
            DataTimeoutError: a batch takes longer than `timeout`, and none comes after it. A TimeoutError, too.
        """
        if self._ended:
            raise StopIteration
        if os.getpid() != self._process:
            raise ConfigError(
                "the stream was opened by the process that this one was forked from, and its threads are there: open "
                "one here (no DataLoader is to be wrapped around a stream)"
            )
        before = self.state
        try:
            if not self._close.alive:
                self._open(before["position"])
            batch, after = next(self._batches)
            self._count_bad(batch.replaced)
            given = self._batch(batch, after.position - before["position"])
            self.state = self._state(after.position)
        except StopIteration:
            self.close()
            raise
        except BaseException:
            # What was interrupted may have taken a batch that nobody has got.
            self.state = before
            self._close()
            raise
        return given, self.state

    def __getitem__(self, index: object) -> NoReturn:
        raise ConfigError(
            "a stream is iterated over, not indexed: `for batch, state in stream`; no DataLoader is to be wrapped "
            "around it, it reads and decodes ahead in threads of its own"
        )

    def __repr__(self) -> str:
        place = f"rank {self._world.rank} of {self._world.size}, at position {self.state['position']:,}"
        what = f"{self.num_samples:,} examples, {self.num_classes:,} classes"
        return f"<Stream of {what}: batch={self._wanted.global_batch}, {place}>"

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
        self._ended = True
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


def _close(inner: TrainStream, process: int) -> None:
    """End its threads, unless this process was forked from the one that has them."""
    if os.getpid() == process:
        inner.close()


def _stacked(items: list[Any]) -> Tensor | None:
    """Tensors of one shape and type as one; None where they are not such. Of no items: an empty one."""
    if not all(isinstance(item, Tensor) for item in items) or len({(x.shape, x.dtype) for x in items}) > 1:
        return None
    return torch.stack(items) if items else torch.empty(0)
