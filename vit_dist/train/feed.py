"""A rank's batch as micro-batches on the device that trains, one ahead of the step.

Beside a GPU copies are queued on a stream of their own, out of buffers that are reused once a copy is done
(data/ring.py), and targets are made on the device: of one label an image eight bytes cross the bus instead of four a
class. The host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vit_dist.config.schema import Recipe
from vit_dist.data.batch import Batch
from vit_dist.data.mixup import PairMix, draw_mix, mix_images, mix_targets
from vit_dist.train.losses import make_targets


class Feed:
    """Brings batches to the device.

    Args:
        recipe: what targets are made by, and how pairs are mixed.
        micro_batch: examples a rank runs at once.
        device: that trains.
        teacher: uint8 images [b, 3, S, S] -> logits [b, K], which stand behind the targets; None: there is none.
    """

    def __init__(
        self,
        recipe: Recipe,
        micro_batch: int,
        device: torch.device,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.recipe, self.micro_batch, self.device, self.teacher = recipe, micro_batch, device, teacher
        cuda: Any = torch.cuda
        self.stream = cuda.Stream(device) if device.type == "cuda" else None

    def micro_batches(self, batch: Batch) -> MicroBatches:
        """Of a batch, to be iterated over once. The first copy begins here."""
        return MicroBatches(self, batch)


class MicroBatches:
    """(uint8 images [b, 3, S, S], float32 targets [b, K], or [b, 2K] with a teacher) each, on the device."""

    def __init__(self, feed: Feed, batch: Batch) -> None:
        self._feed, self._batch = feed, batch
        recipe, size, n = feed.recipe, feed.micro_batch, len(batch.images)
        self._mixes: list[PairMix] = []
        self._parts: list[tuple[slice, ...]] = [(slice(i, i + size),) for i in range(0, n, size)]
        mixing = recipe.data.pair_mixing
        if mixing is not None:
            half, pairs = n // 2, size // 2
            firsts = batch.positions[:half].tolist()
            side = batch.images.shape[-1]
            self._mixes = [draw_mix(mixing, recipe.seed, position, side) for position in firsts]
            # Whole pairs: the first rows of both halves of the batch, then the next ones, and so on.
            self._parts = [(slice(i, i + pairs), slice(half + i, half + i + pairs)) for i in range(0, half, pairs)]
        self._ahead = self._send(0)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(len(self)):
            now = self._ahead
            if i + 1 < len(self):
                self._ahead = self._send(i + 1)
            # All copies are queued. Without a stream there are none: what is yielded is the buffer itself.
            elif now.arrived is not None:
                self._batch.give_back(now.arrived)
            yield self._taught(*now.take())
        if self._feed.stream is None:
            self._batch.give_back()

    def _taught(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        teacher = self._feed.teacher
        # Not before: on the stream that trains, and no sooner than the student needs it.
        return images, targets if teacher is None else torch.cat([targets, teacher(images)], dim=1)

    def _send(self, number: int) -> _Sent:
        stream = self._feed.stream
        if stream is None:
            return _Sent(*self._make(number))
        with torch.cuda.stream(stream):
            images, targets = self._make(number)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        return _Sent(images, targets, arrived)

    def _make(self, number: int) -> tuple[Tensor, Tensor]:
        """Queue the copies of a micro-batch, and what is made of them."""
        device, rows = self._feed.device, self._parts[number]
        recipe, batch = self._feed.recipe, self._batch
        images = [batch.images[r].to(device, non_blocking=True) for r in rows]
        labels, weights = (
            torch.cat([whole[r].to(device, non_blocking=True) for r in rows]) for whole in (batch.labels, batch.weights)
        )
        targets = make_targets(labels, weights, recipe.data.num_classes, recipe.loss)
        if not self._mixes:
            return images[0], targets
        mixes = self._mixes[rows[0]]
        return mix_images(images[0], images[1], mixes), mix_targets(targets, mixes)


class _Sent:
    """A micro-batch on its way."""

    def __init__(self, images: Tensor, targets: Tensor, arrived: torch.cuda.Event | None = None) -> None:
        self._images, self._targets, self.arrived = images, targets, arrived

    def take(self) -> tuple[Tensor, Tensor]:
        """For the stream that trains, which waits for the copy; the host does not."""
        if self.arrived is not None:
            trains = torch.cuda.current_stream(self._images.device)
            trains.wait_event(self.arrived)
            # They were made on the other stream: their memory must not be given to it again while this one reads.
            for tensor in (self._images, self._targets):
                tensor.record_stream(trains)
        return self._images, self._targets
