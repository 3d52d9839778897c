"""Decode processes through faults: each is told in words, with what it was at, and nothing stays behind."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.decoding import Ends, Raises, Tells, Unsendable, descendants, reader
from tests.streams import recipe
from vit_dist.core import store_patience
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.process import lives, wait_until
from vit_dist.core.world import World
from vit_dist.data import decode_pool, decode_start, shared_memory
from vit_dist.data.decode_pool import DecodePool, Processes, num_processes
from vit_dist.data.pace import Pace
from vit_dist.data.reader import Reader
from vit_dist.data.rows import RowsOf
from vit_dist.data.sets import open_training_set
from vit_dist.data.shared_memory import Layout, SharedMemory
from vit_dist.data.stream import TrainStream

NOWHERE = Ends(-1, 0)
"""A view that ends nothing."""


def shared_by_this_process() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:vit_dist-batches")


def take(batches: Reader, count: int) -> None:
    for _ in range(count):
        assert batches.next() is not None


_others: set[int] = set()


@pytest.fixture(autouse=True)
def started_before() -> None:
    """Other tests leave stores and compilers that go on."""
    _others.clear()
    _others.update(descendants(os.getpid()))


def forked() -> set[int]:
    """Decode processes and keepers that live."""
    return set(descendants(os.getpid())) - {server()} - _others


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGSEGV, r"was ended by SIGSEGV at the image 'k000007' of .*shard-000000\.tar: its decoder does not"),
        (signal.SIGABRT, r"was ended by SIGABRT at the image 'k000007' of .*shard-000000\.tar: its decoder does not"),
        (signal.SIGBUS, r"was ended by SIGBUS at the image 'k000007' of .*shard-000000\.tar: its decoder does not"),
        (signal.SIGFPE, r"was ended by SIGFPE at the image 'k000007' of .*shard-000000\.tar: its decoder does not"),
        (signal.SIGKILL, r"was ended by SIGKILL at the image 'k000007' of .*tar, perhaps for want of memory"),
        (-3, r"ended with code 3 at the image 'k000007' of .*shard-000000\.tar: its decoder does not"),
    ],
    ids=["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "exit"],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_decoder_that_ends_its_process_is_told_with_shard_and_key(
    small_set: str, number: int, says: str, workers: int
) -> None:
    batches = reader(small_set, Ends(7, number), workers)
    try:
        with pytest.raises(DataError, match=says):
            take(batches, 5000)
        # So is whatever comes after.
        with pytest.raises(DataError, match=says):
            batches.next()
    finally:
        batches.close()
    assert wait_until(lambda: not forked(), 10, 0.02)


def server() -> int:
    assert decode_start._server is not None
    return decode_start._server._process.pid


def test_a_process_that_is_killed_while_it_waits_is_told(small_set: str) -> None:
    batches = reader(small_set, NOWHERE, 2)
    try:
        assert batches.next() is not None
        first, _ = sorted(forked() - {keeper()})
        os.kill(first, signal.SIGKILL)
        with pytest.raises(DataError, match=rf"pid {first}\) was ended by SIGKILL.*data\.decode_workers=0"):
            take(batches, 5000)
    finally:
        batches.close()


def keeper() -> int:
    (only,) = [int(pid) for pid in Path(f"/proc/{server()}/task/{server()}/children").read_text().split()]
    return only


@pytest.mark.parametrize("who", ["server", "keeper"])
def test_when_those_that_forked_them_are_killed_all_are_gone_and_it_is_told(small_set: str, who: str) -> None:
    batches = reader(small_set, NOWHERE, 2)
    try:
        assert batches.next() is not None
        processes = forked()
        assert len(processes) == 3
        os.kill(server() if who == "server" else keeper(), signal.SIGKILL)
        with pytest.raises(DataError, match=r"could not be started, or were ended all at once .*; their server: pid"):
            take(batches, 5000)
        assert wait_until(lambda: not any(map(lives, processes)), 20, 0.05)
    finally:
        batches.close()
    # The next stream has a server again.
    again = reader(small_set, NOWHERE, 1)
    assert again.next() is not None
    again.close()


def test_nothing_is_left_of_a_stream_that_was_closed(small_set: str) -> None:
    before, files = shared_by_this_process(), open_files()
    batches = reader(small_set, NOWHERE, 3)
    take(batches, 3)
    assert shared_by_this_process() > before
    assert len(forked()) == 4
    batches.close()
    assert wait_until(lambda: not forked(), 10, 0.02)
    assert not [t for t in threading.enumerate() if t.name in {"decode processes", "plan"}]
    del batches
    assert shared_by_this_process() == before
    # The line to the server, which may be new.
    assert open_files() <= files + 1


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stream_may_be_closed_before_there_is_a_process(small_set: str, at_once: bool) -> None:
    decode_start.close_server()
    began = time.monotonic()
    batches = reader(small_set, NOWHERE, 2, at_once=at_once)
    batches.close()
    # Its server is still importing, and nobody has waited for that.
    assert not [t for t in threading.enumerate() if t.name in {"decode processes", "plan"}]
    assert time.monotonic() - began < 60
    with pytest.raises(DataError, match="the stream was closed"):
        batches._pool.submit(0, range(12)).result()  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_what_a_job_or_a_keyboard_asks_does_not_reach_decode_processes(small_set: str, number: int) -> None:
    batches = reader(small_set, NOWHERE, 2)
    try:
        assert batches.next() is not None
        for pid in forked() | {server()}:
            os.kill(pid, number)
        # More than were made before.
        take(batches, 10)
    finally:
        batches.close()


@pytest.mark.parametrize("how", ["nothing", "a server", "a run has begun", "a variable"])
def test_processes_know_what_their_rank_knows_when_the_stream_is_opened(
    small_set: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an outage that they begin with would end a run that had trained for days."""
    # Before: the server of all streams is there, and has its own environment.
    reader(small_set, NOWHERE, 1).close()
    monkeypatch.setattr(store_patience, "_state", store_patience._State())
    if how == "a server":
        store_patience.has_answered("s3://bucket/manifest.json")
    elif how == "a run has begun":
        store_patience.run_has_begun()
    elif how == "a variable":
        monkeypatch.setenv("VIT_DIST_TEST_RENEWED", "1")
    batches = reader(small_set, Tells("s3://bucket/shard.tar", "VIT_DIST_TEST_RENEWED"), 1)
    try:
        batch = batches.next()
        assert batch is not None
        assert set(batch.images.flatten().tolist()) == {{"nothing": 0, "a variable": 2}.get(how, 1)}
    finally:
        batches.close()


def test_a_view_that_cannot_be_sent_is_an_error_and_no_hang(small_set: str) -> None:
    batches = reader(small_set, Unsendable(), 1)
    try:
        with pytest.raises(TypeError, match="this view stays where it is"):
            batches.next()
    finally:
        batches.close()


def test_an_error_that_cannot_be_sent_is_told_by_its_words(small_set: str) -> None:
    batches = reader(small_set, Raises(), 2)
    try:
        with pytest.raises(DataError, match="LocalError: a fault of the view"):
            batches.next()
    finally:
        batches.close()


# Memory.


def test_memory_that_is_not_there_is_refused_with_the_number() -> None:
    with pytest.raises(ConfigError, match=r"[\d.]+ TiB of memory for batches, .* are more than the .* that are free"):
        SharedMemory(Layout(2, 5, 1 << 20, 1024, 1))


def test_memory_that_cannot_be_had_is_refused_with_the_number() -> None:
    files, (soft, hard) = open_files(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(ConfigError, match=r"1\.\d+ MiB of memory for batches, .* cannot be had \(File too large\)"):
            SharedMemory(Layout(2, 5, 2, 200, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_files() == files


class Cudart:
    """Stands for CUDA's own, which a CPU has not: what it is asked, in order; `code` is its answer."""

    def __init__(self, patch: pytest.MonkeyPatch, code: int = 0) -> None:
        self.asked, self._code = list[str](), code
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "cudart", lambda: self)
        patch.setattr(torch.cuda, "synchronize", lambda: self.asked.append("wait for copies"))
        patch.setattr(shared_memory, "_forget_refusal", lambda: self.asked.append("forget"))

    def cudaHostRegister(self, at: int, size: int, flags: int) -> int:
        self.asked.append("pin")
        return self._code

    def cudaHostUnregister(self, at: int) -> int:
        assert shared_by_this_process()
        self.asked.append("unpin")
        return 0


def test_memory_that_may_not_be_locked_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, before = Cudart(monkeypatch, code=2), resource.getrlimit(resource.RLIMIT_MEMLOCK)
    memory = SharedMemory(Layout(2, 5, 2, 200, 1))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"1\.\d+ MiB of batches, .* \(cudaHostRegister: error 2\); .* 64\.0 KiB"):
            memory.pin()
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    memory.release()
    assert cuda.asked == ["pin", "forget"]


@pytest.mark.parametrize("reuse", [True, False])
def test_memory_that_a_gpu_copies_out_of_is_pinned_until_its_copies_are_done(
    small_set: str, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    config = recipe(small_set, "data.decode_workers=1")
    data = open_training_set(config)
    cuda = Cudart(monkeypatch)
    with TrainStream(data, config, World(), 0, reuse=reuse):
        assert cuda.asked == ["pin"] * reuse
    assert cuda.asked == ["pin", "wait for copies", "unpin"] * reuse


class Copy:
    """A copy out of a batch's memory that a device has not done yet."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def synchronize(self) -> None:
        self.done.wait(30)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_written_over_only_once_it_is_copied(small_set: str, workers: int) -> None:
    config = recipe(small_set, f"data.decode_workers={workers}", "data.prefetch_batches=1")
    with TrainStream(open_training_set(config), config, World(), 0, reuse=True, at_once=True) as stream:
        batches, copy = iter(stream), Copy()
        first, second = next(batches)[0], next(batches)[0]
        before = first.images.clone()
        first.give_back(copy)
        second.give_back()
        assert not wait_until(lambda: not torch.equal(first.images, before), 1, 0.05)
        copy.done.set()
        third = next(batches)[0]
        assert third.images.data_ptr() == first.images.data_ptr()
        assert not torch.equal(first.images, before)


@pytest.mark.parametrize(
    ("batch", "size", "labels"), [(1, 1, 0), (7, 28, 1), (12, 33, 5), (3, 224, 2), (64, 56, 1), (5, 1, 130)]
)
def test_slots_are_apart_and_two_mappings_are_one_memory(batch: int, size: int, labels: int) -> None:
    layout = Layout(3, 4, batch, size, labels)
    one = SharedMemory(layout)
    other = SharedMemory(layout, os.dup(one.fd))
    for number, buffers in enumerate(one.buffers()):
        assert buffers.slot == number
        assert buffers.images.shape == (batch, 3, size, size)
        buffers.images.fill_(number + 1)
        buffers.labels.fill_(number + 10)
        buffers.weights.fill_(number + 0.5)
    for process in range(3):
        one.note(process, "decode", f"é{process}" * 3000)
    for number, buffers in enumerate(other.buffers()):
        assert bool((buffers.images == number + 1).all())
        assert bool((buffers.labels == number + 10).all())
        assert bool((buffers.weights == number + 0.5).all())
        assert (buffers.labels.dtype, buffers.weights.dtype) == (torch.int64, torch.float32)
    assert [other.noted(process).text[:4] for process in range(3)] == ["é0é0", "é1é1", "é2é2"]
    one.note(1, "", "")
    assert other.noted(1)[:2] == ("", "")
    one.release()
    other.release()


def test_the_memory_is_in_no_directory(small_set: str) -> None:
    before = set(Path("/dev/shm").iterdir())
    batches = reader(small_set, NOWHERE, 1)
    assert batches.next() is not None
    assert set(Path("/dev/shm").iterdir()) <= before
    batches.close()


# How many.


@pytest.mark.parametrize(
    ("overrides", "cpus", "gpu", "lanes", "expected"),
    [
        ((), 16, True, 4096, 14),
        ((), 6, True, 4096, 4),
        ((), 5, True, 4096, 0),
        ((), 16, False, 4096, 0),
        ((), 192, True, 4096, 32),
        ((), 16, True, 8, 8),
        ((), 16, True, None, 14),
        (("data.decode_threads=4",), 16, True, 4096, 0),
        (("data.decode_workers=0",), 16, True, 4096, 0),
        (("data.decode_workers=3",), 2, False, 4096, 3),
        (("data.decode_workers=3", "data.decode_threads=4"), 2, False, 2, 2),
    ],
)
def test_processes_follow_the_cpus_of_a_rank_with_a_gpu(
    small_set: str,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    cpus: int,
    gpu: bool,
    lanes: int | None,
    expected: int,
) -> None:
    monkeypatch.setenv("VIT_DIST_CPUS", str(cpus))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert num_processes(recipe(small_set, *overrides).data, lanes) == expected


def test_a_system_without_such_memory_refuses_processes_and_has_threads_by_itself(
    small_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pool, "AVAILABLE", False)
    monkeypatch.setenv("VIT_DIST_CPUS", "16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert num_processes(recipe(small_set).data, None) == 0
    with pytest.raises(ConfigError, match=r"data\.decode_workers=2: this system .* has no memory that processes can"):
        num_processes(recipe(small_set, "data.decode_workers=2").data, None)


def test_a_small_set_counts_in_the_memory_of_each_process(small_set: str) -> None:
    sizes = []
    for workers in (0, 2):
        config = recipe(small_set, f"data.decode_workers={workers}")
        data = open_training_set(config)
        with TrainStream(data, config, World(), 0) as stream:
            sizes.append(stream.memory_bytes)
    assert sizes[1] - sizes[0] == 2 * data.read_ahead_bytes(1)


def test_a_server_that_takes_nothing_more_is_told(small_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "send_fds", full)
    files, before = open_files(), shared_by_this_process()
    with pytest.raises(ConfigError, match=re.escape("2 decode processes cannot be started ([Errno 24] Too many open")):
        reader(small_set, NOWHERE, 2)
    assert shared_by_this_process() == before
    assert open_files() <= files + 1


def test_processes_that_the_recipe_has_not_asked_for_give_way_to_threads(
    small_set: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "send_fds", full)
    config = recipe(small_set)
    data = open_training_set(config)
    rows = RowsOf(data.parts, data.order, NOWHERE, config.data, data.fits_in_memory)
    with contextlib.closing(Reader(rows, iter([range(12)]), processes=Processes(2, 12, None, at_once=True))) as reads:
        batch = reads.next()
    assert batch is not None
    assert [sample.position for sample in batch.samples] == list(range(12))
    assert "threads decode, and no processes: 2 decode processes cannot be started" in capsys.readouterr().err


def test_processes_take_over_once_they_have_bytes_and_threads_go_on_until_then(small_set: str) -> None:
    config = recipe(small_set)
    data = open_training_set(config)
    pace = Pace()
    pool = DecodePool(
        RowsOf(data.parts, data.order, NOWHERE, config.data, data.fits_in_memory), Processes(2, 12, None), 2, 2, pace
    )
    try:
        assert not pool.takes_over(range(12))
        assert wait_until(lambda: pool.takes_over(range(12)), 60, 0.01)
        # All that the batch needs was read, and nothing was decoded.
        looked = pace.since_last().counts
        assert looked.images == 0
        assert looked.read_bytes > 0
        samples = pool.submit(0, range(12, 24)).result(60).samples
        assert [sample.position for sample in samples] == list(range(12, 24))
    finally:
        pool.close()
