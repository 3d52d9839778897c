"""What the streams give: a batch of examples, which samples they were made of, and which were replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vit_dist.data.ring import Buffers, Copied, Ring


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
        images: uint8 [B, 3, S, S], in the memory of `Buffers`.
        labels: int64 [B, L]; -1 where a sample has fewer than L labels.
        weights: float32 [B, L]; 1 but for soft labels, 0 where the label is -1.
        ordinals: int64 [B]; each sample's ordinal in its manifest; in a mixture, manifests count on from each other.
        positions: int64 [B]; where in the order each example stood.
        samples: B of them: which sample each example was made of.
        made: B of them: what `Make` gave, where images are not made here; else None each.
        replaced: the undecodable samples among those whose turn it was, and those that were taken down.
        ring: where the buffers go back to, if their memory is used again.
        buffers: that images, labels and weights are, or are the beginning of.
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
    buffers: Buffers | None = None

    @classmethod
    def blank(cls, positions: Sequence[int], buffers: Buffers, ring: Ring | None) -> Batch:
        """To be filled: one row a position."""
        n = len(positions)
        return cls(
            images=buffers.images[:n],
            labels=buffers.labels[:n].fill_(-1),
            weights=buffers.weights[:n].zero_(),
            ordinals=torch.zeros(n, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            samples=[_NO_SAMPLE] * n,
            made=[None] * n,
            ring=ring,
            buffers=buffers,
        )

    def in_memory_of_its_own(self) -> Batch:
        """The same in fresh memory; the buffers go back to their ring."""
        n, size = len(self.images), self.images.shape[-1]
        fresh = Buffers.make(n, size, self.labels.shape[1])
        fresh.images.copy_(self.images)
        fresh.labels.copy_(self.labels)
        fresh.weights.copy_(self.weights)
        self.give_back()
        return replace(self, images=fresh.images, labels=fresh.labels, weights=fresh.weights, ring=None, buffers=fresh)

    def give_back(self, copied: Copied | None = None) -> None:
        """Images, labels and weights are read no more, once `copied` is through on the device. Once a batch."""
        if self.ring is not None:
            assert self.buffers is not None
            self.ring.give_back(self.buffers, copied)


_NO_SAMPLE = Sample("", "", -1, -1, -1)
