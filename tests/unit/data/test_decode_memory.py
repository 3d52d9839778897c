"""Decode processes that want more memory than they may have: told with the image, and no image is replaced for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.decoding import Grows, descendants, reader
from vit_dist.core.errors import DataError
from vit_dist.core.process import wait_until
from vit_dist.data.reader import Reader


def take(batches: Reader, count: int) -> None:
    for _ in range(count):
        assert batches.next() is not None


_GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def test_an_image_for_which_there_is_no_memory_is_an_error_and_not_a_broken_image(small_set: str) -> None:
    """As RLIMIT_AS has it: libjpeg and torch say so in errors that damaged files have, too."""
    batches = reader(small_set, Grows(7, 80 << 20), 1)
    try:
        with pytest.raises(
            DataError,
            match=r"shard-000000\.tar: 'k000007', an image of .*: there is not enough memory to decode it in "
            r"decode process 0 \(pid \d+\): .*fewer data\.decode_workers.*data\.takedown",
        ):
            take(batches, 40)
    finally:
        batches.close()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 300 MiB, where this user may make one."""
    folder = next((root for root in _GROUPS if root.is_dir() and os.access(root, os.W_OK)), _GROUPS[1])
    group = folder / f"vit-dist-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())
        limit.write_text(str(300 << 20))
    except (OSError, StopIteration):
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("no control group with a limit on memory can be made here")
    yield group
    assert wait_until(lambda: not (group / "cgroup.procs").read_text(), 20, 0.05)
    group.rmdir()


def test_a_process_that_the_kernel_kills_for_want_of_memory_is_told_and_leaves_nothing(
    small_set: str, group: Path
) -> None:
    before = set(Path("/dev/shm").iterdir())
    batches = reader(small_set, Grows(7), 1, prefetch=1)
    try:
        assert wait_until(batches._pool._ready.is_set, 120, 0.05)  # type: ignore[union-attr]
        (pid,) = batches._pool._pids  # type: ignore[union-attr]
        (group / "cgroup.procs").write_text(str(pid))
        with pytest.raises(
            DataError,
            match=rf"decode process 0 \(pid {pid}\) was ended by SIGKILL at the image 'k000007' of .*tar, by the "
            r"kernel for want of memory\. Start the run again, with fewer data\.decode_workers",
        ):
            take(batches, 40)
    finally:
        batches.close()
    assert wait_until(lambda: pid not in set(descendants(os.getpid())), 10, 0.05)
    assert set(Path("/dev/shm").iterdir()) <= before
