"""What waiting for the parts of all ranks asks of the file system, and what it says where one does not come."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vit_dist.core.errors import RunError
from vit_dist.train.checkpoint.parts import finish_part, forget_parts, wait_for_parts

RANKS = 512


class Calls(Counter[str]):
    """Counts the calls to the file system that look at something, but those of the ranks that write."""

    counts = True


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counting(*given: Any, **named: Any) -> Any:
            counted[name] += counted.counts
            return real(*given, **named)

        monkeypatch.setattr(owner, name, counting)

    for name in ("listdir", "scandir", "stat"):
        watch(os, name)
    for name in ("read_text", "exists"):
        watch(Path, name)
    return counted


class Clock(threading.Event):
    """Is waited for in no time, and remembers how long; every second it is, another rank is done."""

    def __init__(self, folder: Path, first: int, every_s: float, calls: Calls) -> None:
        super().__init__()
        self.calls = calls
        self.folder, self.next, self.every_s = folder, first, every_s
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        self.calls.counts = False
        while self.next < RANKS and sum(self.waited) >= self.every_s * (self.next + 1):
            finish_part(self.folder, self.next, 7, f"x{self.next}")
            self.next += 1
        self.calls.counts = True
        return self.is_set()


@pytest.mark.parametrize(("first", "every_s"), [(0, 0.0), (0, 0.001), (0, 0.05), (1, 0.5), (511, 1.0), (512, 0.0)])
def test_a_look_is_one_listing_whatever_the_number_of_ranks(
    tmp_path: Path, calls: Calls, first: int, every_s: float
) -> None:
    for rank in range(first):
        finish_part(tmp_path, rank, 7, f"x{rank}")
    clock = Clock(tmp_path, first, every_s, calls)
    calls.clear()
    files = wait_for_parts(tmp_path, RANKS, clock, lambda: "", 1e9, time.monotonic())
    assert list(files) == [f"rank-{rank:05d}.safetensors" for rank in range(RANKS)]
    assert files["rank-00077.safetensors"] == {"bytes": 7, "xxh128": "x77"}
    looks = len(clock.waited) + 1
    assert calls["listdir"] == looks
    assert calls["read_text"] == RANKS
    assert calls["stat"] + calls["scandir"] + calls["exists"] == 0
    # More and more seldom, up to a second.
    assert clock.waited == sorted(clock.waited)
    assert max(clock.waited, default=0) <= 1.0
    assert looks <= 12 + sum(clock.waited)
    forget_parts(tmp_path, RANKS)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_does_not_come_is_named_and_an_error_of_this_rank_goes_first(tmp_path: Path) -> None:
    missing = tmp_path / "not yet made"
    with pytest.raises(RunError, match=r"ranks \[0, 1\] have not written their parts"):
        wait_for_parts(missing, 2, threading.Event(), lambda: "", 0.0, time.monotonic() - 1)
    with pytest.raises(RunError, match="rank 0: disk full"):
        wait_for_parts(missing, 2, threading.Event(), lambda: "rank 0: disk full", 1e9, time.monotonic())
    abort = threading.Event()
    abort.set()
    with pytest.raises(RunError, match="another rank could not write its part"):
        wait_for_parts(missing, 2, abort, lambda: "", 1e9, time.monotonic())
