"""Memory that bytes of shards are read into, used again once nobody looks at it. No torch.

Fresh memory costs a page fault every 4 KiB, a tenth of what a fast store's bytes cost in all, and a process that makes
and frees blocks of many sizes grows.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

SPARE_BYTES = 64 << 20
"""Of blocks that nobody uses, at most."""
_LEAST_BITS = 12


class Buffers:
    """Blocks that go round. Safe to use from many threads."""

    def __init__(self) -> None:
        self._spare: dict[int, list[NDArray[np.uint8]]] = {}
        self._spare_bytes = 0
        # Not under the lock: a block comes back whenever Python drops it, maybe in a thread that holds the lock.
        self._returned: deque[NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def take(self, size: int) -> memoryview:
        """Memory without a value, of `size` bytes. It comes back once neither it nor any part of it is referred to."""
        length = rounded(size)
        with self._lock:
            self._sort_returned()
            spare = self._spare.get(length)
            block = spare.pop() if spare else None
            if block is not None:
                self._spare_bytes -= length
        if block is None:
            block = np.empty(length, np.uint8)
        lent = block[:size]
        # Its memoryview and slices of that refer to `lent`; an array that is a slice of `lent` would refer to `block`.
        weakref.finalize(lent, self._returned.append, block).atexit = False
        return lent.data

    def _sort_returned(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            if self._spare_bytes + len(block) <= SPARE_BYTES:
                self._spare.setdefault(len(block), []).append(block)
                self._spare_bytes += len(block)


def rounded(size: int) -> int:
    """The length of the block for so many bytes: at most an eighth more, so that few lengths serve all."""
    step = 1 << max(_LEAST_BITS, max(1, size - 1).bit_length() - 4)
    return -(-size // step) * step
