"""Reusable buffers of batches: one ring, whoever writes into it.

A buffer is written again once whoever had its batch has given it back, and, where a GPU copies out of it, once that
copy is done: the event that says so comes with it. torch's own allocator of pinned memory would do the same for fresh
buffers, but not for memory that it has not allocated, such as that of decode processes (shared_memory.py), and fresh
memory has its pages zeroed at each batch.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Copied(Protocol):
    """Something queued on a device: torch.cuda.Event, in practice."""

    def synchronize(self) -> None:
        """Wait until the device is through with it."""


@dataclass(frozen=True)
class Buffers:
    """What a batch is written into. B examples of at most L labels.

    Attributes:
        images: uint8 [B, 3, S, S] that lie as [B, S, S, 3]: decoders give pixels, not planes. Pinned where there is a
            GPU; so are the next two.
        labels: int64 [B, L].
        weights: float32 [B, L].
        slot: which one of those that processes share; -1: of this process alone.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    slot: int = -1

    @classmethod
    def make(cls, batch: int, size: int, labels: int) -> Buffers:
        """Without a value."""
        pinned = torch.cuda.is_available()
        return cls(
            torch.empty((batch, size, size, 3), dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2),
            torch.empty((batch, labels), dtype=torch.int64, pin_memory=pinned),
            torch.empty((batch, labels), dtype=torch.float32, pin_memory=pinned),
        )


class Ring:
    """A fixed number of buffers that go round.

    Args:
        buffers: that go round; or how many, and each is made when it is first needed.
    """

    def __init__(self, buffers: int | Sequence[Buffers]) -> None:
        self._free: queue.SimpleQueue[tuple[Buffers | None, Copied | None]] = queue.SimpleQueue()
        self._closed = False
        for one in [None] * buffers if isinstance(buffers, int) else buffers:
            self._free.put((one, None))

    def take(self, batch: int, size: int, labels: int) -> Buffers | None:
        """Buffers that nobody uses, once there are any; None after `close`."""
        buffers, copied = self._free.get()
        if self._closed:
            self._free.put((None, None))
            return None
        if copied is not None:
            copied.synchronize()
        return buffers if buffers is not None else Buffers.make(batch, size, labels)

    def give_back(self, buffers: Buffers, copied: Copied | None = None) -> None:
        """Nobody reads them any more, once `copied` is through."""
        self._free.put((buffers, copied))

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closed = True
        self._free.put((None, None))
