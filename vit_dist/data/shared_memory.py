"""Memory that a rank and its decode processes share: the buffers of batches, and a note of each process. Linux.

It is a file of the kernel's without a name (memfd), in no directory: neither the size of /dev/shm bounds it nor does
anything stay behind, whoever is killed; it is gone with the last process that has it. All of it is claimed when it is
made, so that want of memory is an error then, and no SIGBUS later.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import resource
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vit_dist.core.errors import ConfigError
from vit_dist.core.memory import available_memory
from vit_dist.core.units import format_bytes
from vit_dist.data.doing import Stage
from vit_dist.data.ring import Buffers

_NOTE_BYTES = 4096
_NOTE_HEAD = struct.Struct("=IId")  # bytes of the text, stage, time
_STAGES: tuple[Stage, ...] = ("", "store", "decode")
_TYPES = ((torch.uint8, 1), (torch.int64, 8), (torch.float32, 4))

AVAILABLE = hasattr(os, "memfd_create")
"""Whether this system has such memory."""


class Note(NamedTuple):
    """What a process was at, in words, and since when, by the clock that all of a machine share (time.monotonic)."""

    stage: Stage
    text: str
    since: float


@dataclass(frozen=True)
class Layout:
    """What lies where: a note of each process, then slots, each the buffers of one batch.

    Attributes:
        processes: that leave notes.
        slots: batches at once.
        batch: rows of one, at most.
        size: side of the images in pixels.
        labels: of an example, at most.
    """

    processes: int
    slots: int
    batch: int
    size: int
    labels: int

    @property
    def num_bytes(self) -> int:
        """Of all."""
        return self._first + self.slots * self._slot_bytes

    @property
    def _first(self) -> int:
        return self.processes * _NOTE_BYTES

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.batch, self.size, self.size, 3), (self.batch, self.labels), (self.batch, self.labels))

    @property
    def _slot_bytes(self) -> int:
        return sum(_paged(math.prod(shape) * size) for shape, (_, size) in zip(self._shapes, _TYPES, strict=True))

    def tensors(self, memory: mmap.mmap, slot: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and weights of a slot."""
        at, found = self._first + slot * self._slot_bytes, []
        for shape, (dtype, size) in zip(self._shapes, _TYPES, strict=True):
            count = math.prod(shape)
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=at) if count else torch.empty(0)
            found.append(flat.to(dtype).view(shape))
            at += _paged(count * size)
        # As `Buffers` has them.
        return found[0].permute(0, 3, 1, 2), found[1], found[2]


class SharedMemory:
    """The memory in this process.

    Args:
        layout: of it.
        fd: of memory that another process has made; it is closed here. None: it is made.

    Raises:
        ConfigError: there is not so much memory, or it cannot be pinned.
    """

    def __init__(self, layout: Layout, fd: int | None = None) -> None:
        self.layout = layout
        self.fd = _claim(layout.num_bytes) if fd is None else fd
        self._memory = mmap.mmap(self.fd, layout.num_bytes)
        self._pinned: Tensor | None = None

    def buffers(self) -> list[Buffers]:
        """Of all slots."""
        return [Buffers(*self.layout.tensors(self._memory, slot), slot) for slot in range(self.layout.slots)]

    def pin(self) -> None:
        """Let a GPU copy out of it while the host goes on.

        Raises:
            ConfigError: the system does not allow it.
        """
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        cuda: Any = torch.cuda
        code = int(cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.numel(), 0))
        if code:
            _forget_refusal()
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            allowed = "unlimited" if limit == resource.RLIM_INFINITY else format_bytes(limit)
            raise ConfigError(
                f"{format_bytes(whole.numel())} of batches, which decode processes write, cannot be pinned for the GPU "
                f"(cudaHostRegister: error {code}); a process here may lock {allowed} (ulimit -l). Raise that limit, "
                f"set fewer data.prefetch_batches, or data.decode_workers=0"
            )
        self._pinned = whole

    def release(self) -> None:
        """No device reads it any more, once those copies that are queued are done. What has its tensors keeps it."""
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            # A device that has failed says so here; it is told of where it matters.
            with contextlib.suppress(RuntimeError):
                torch.cuda.synchronize()
                cuda: Any = torch.cuda
                cuda.cudart().cudaHostUnregister(pinned.data_ptr())
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def note(self, process: int, stage: Stage, text: str) -> None:
        """Leave a text that outlives this process."""
        content = text.encode("utf-8", "replace")[: _NOTE_BYTES - _NOTE_HEAD.size]
        at, behind = process * _NOTE_BYTES, process * _NOTE_BYTES + _NOTE_HEAD.size
        self._memory[at : at + 4] = bytes(4)
        self._memory[behind : behind + len(content)] = content
        # Its length comes last: a process may end between any two of these.
        self._memory[at + 4 : behind] = _NOTE_HEAD.pack(0, _STAGES.index(stage), time.monotonic())[4:]
        self._memory[at : at + 4] = len(content).to_bytes(4, sys.byteorder)

    def noted(self, process: int) -> Note:
        """What a process has left; without a text where it has left none."""
        at = process * _NOTE_BYTES
        length, stage, since = _NOTE_HEAD.unpack(self._memory[at : at + _NOTE_HEAD.size])
        at += _NOTE_HEAD.size
        text = self._memory[at : at + length].decode("utf-8", "replace")
        return Note(_STAGES[stage] if text else "", text, since)


def _forget_refusal() -> None:
    """CUDA keeps an error of this thread, and the next launch of a kernel, wherever it is, would be told of it."""
    # torch has no way to ask for it: a launch of our own takes it. AssertionError: a torch without CUDA.
    with contextlib.suppress(RuntimeError, AssertionError):
        torch.empty(1, device="cuda").zero_()


def _paged(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _claim(size: int) -> int:
    available = available_memory()
    wanted = f"{format_bytes(size)} of memory for batches, which decode processes write, "
    less = "; set fewer data.prefetch_batches, or data.decode_workers=0"
    if available is not None and size > available:
        raise ConfigError(f"{wanted}are more than the {format_bytes(available)} that are free{less}")
    fd = os.memfd_create("vit_dist-batches")
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"{wanted}cannot be had ({error.strerror}){less}") from None
    return fd
