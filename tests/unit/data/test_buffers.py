"""Memory for bytes of shards: used again once nobody looks at it, never before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from vit_dist.data import buffers
from vit_dist.data.buffers import Buffers, rounded

MIB = 1 << 20


def address(view: memoryview) -> int:
    return np.asarray(view).ctypes.data


def test_memory_goes_round() -> None:
    pool = Buffers()
    places = set()
    for size in (3 * MIB, 3 * MIB - 100, 3 * MIB):
        view = pool.take(size)
        assert len(view) == size
        places.add(address(view))
        del view
    assert len(places) == 1


KEEPERS: dict[str, Callable[[memoryview], Any]] = {
    "itself": lambda view: view,
    "a slice": lambda view: view[5:9],
    "a slice of a slice": lambda view: view[5:][2:9],
    "an array": np.asarray,
    "a part of an array": lambda view: np.frombuffer(view, np.uint8)[3:7],
    "a tensor": lambda view: torch.frombuffer(view, dtype=torch.uint8)[10:20],
    "a cast": lambda view: view[:80].cast("Q"),
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_memory_that_somebody_looks_at_is_not_given_away(keep: Callable[[memoryview], Any]) -> None:
    pool = Buffers()
    view = pool.take(4 * MIB)
    view[:] = bytes([7]) * len(view)
    place, kept = address(view), keep(view)
    before = bytes(kept) if isinstance(kept, memoryview) else kept.tolist()
    del view
    other = pool.take(4 * MIB)
    other[:] = bytes(len(other))
    assert address(other) != place
    assert (bytes(kept) if isinstance(kept, memoryview) else kept.tolist()) == before
    del kept
    assert address(pool.take(4 * MIB)) == place


def test_spare_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "SPARE_BYTES", 10 * MIB)
    pool = Buffers()
    held = [pool.take(4 * MIB) for _ in range(9)]
    held.clear()
    pool.take(1)
    assert pool._spare_bytes == 8 * MIB


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 32768, 32769, MIB, MIB + 1, 16 * MIB - 5, 123_456_789])
def test_a_block_is_little_larger_than_what_it_is_for(size: int) -> None:
    assert size <= rounded(size) <= max(4096, size + size / 8 + 4096)
    assert rounded(rounded(size)) == rounded(size)
    assert len(Buffers().take(size)) == size


def test_threads_never_share_a_block() -> None:
    pool, wrong = Buffers(), []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(300):
            view = pool.take(8192)
            view[:8] = number.to_bytes(8, "big")
            view[-8:] = view[:8]
            if view[:8] != number.to_bytes(8, "big"):
                wrong.append(number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert not wrong
