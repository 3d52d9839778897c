"""The host memory that a checkpoint is copied to: pinned beside a GPU, and then taken ahead of the first save."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from vit_dist.core.memory import pinned_bytes
from vit_dist.engines._slices import WEIGHT, EngineState


def pins() -> bool:
    """Whether host memory is pinned here: copies from a GPU are asynchronous to pinned memory alone."""
    return torch.cuda.is_available()


def taken_bytes(num_bytes: int) -> int:
    """What `allocate` takes of the host for so many bytes."""
    return pinned_bytes(num_bytes) if pins() else num_bytes


def allocate(num_bytes: int) -> Tensor:
    """[num_bytes] uint8 of host memory. Pinning is slow: every page is touched and locked, seconds for gigabytes."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pins())


def expected_bytes(state: EngineState, moments: float) -> int:
    """Bytes of this rank's slices once its optimizer has moments too.

    Args:
        state: of an engine.
        moments: numbers that the optimizer is going to keep for each weight; 0 where the state has them already.
    """
    sizes = {WEIGHT: 0}
    for piece in state.slices:
        sizes[piece.kind] = sizes.get(piece.kind, 0) + piece.data.numel() * piece.data.element_size()
    # Ranks cut all tensors in equal runs, so that with moments a cut may fall a few elements elsewhere.
    slack = math.ceil(4096 * moments)
    return sum(sizes.values()) + math.ceil(moments * sizes[WEIGHT]) + slack


class HostMemory:
    """One block of host memory, used by one checkpoint after the other; `prepare` begins to take it in a thread."""

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_taken(self) -> bool:
        """Whether there is a block, or will be as soon as `block` is called."""
        return self._thread is not None or self._block is not None

    def prepare(self, num_bytes: int) -> None:
        """Begin to take a block, and return at once."""

        def take() -> None:
            try:
                self._block = allocate(num_bytes)
            # Whatever it was: the first save tries again, in the training thread, and fails there for all to see.
            except Exception:
                self._block = None

        self._thread = threading.Thread(target=take, name="checkpoint memory", daemon=True)
        self._thread.start()

    def block(self, num_bytes: int) -> Tensor:
        """A block of at least so many bytes: the one before, where it is large enough. Waits for `prepare`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._block is None or self._block.numel() < num_bytes:
            # The smaller one first, or both are held for a moment.
            self._block = None
            self._block = allocate(num_bytes)
        return self._block
