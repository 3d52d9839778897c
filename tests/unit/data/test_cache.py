"""The cache of shards: what is read through it, what it holds, who may use it, and what damages and full disks do."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_dist.config.cache import CacheConfig
from vit_dist.core.errors import AwayError, ConfigError, DataError, MissingError
from vit_dist.core.locks import LockHeldError, held, holder_of
from vit_dist.core.node_cache import DIR_VARIABLE, SIZE_VARIABLE
from vit_dist.data import cache as cache_module
from vit_dist.data.cache import ShardCache, counts, open_cache
from vit_dist.data.cache_counts import CacheCounts
from vit_dist.data.cache_files import CELL, CHUNK, DRAWERS, CachedShard, Chunk, folder_of, open_folder, runs
from vit_dist.data.cache_ledger import kept

SIZE = 5 * CELL + 1234
CONTENT = np.random.default_rng(0).bytes(SIZE)
SHARD = CachedShard.of("s3://bucket/a.tar", SIZE, "0" * 32)
PLENTY = 64 << 20


def counted(size: int) -> bytes:
    """Bytes of which no part is like another one."""
    return np.arange(size // 4 + 1, dtype="<u4").tobytes()[:size]


class Store:
    """Gives bytes of a file, and remembers what it was asked for."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.asked = content, list[tuple[int, int]]()

    def __call__(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        if end > len(self.content):
            raise DataError(f"ends at byte {len(self.content)}")
        return self.content[start:end]

    @property
    def num_bytes(self) -> int:
        return sum(end - start for start, end in self.asked)


def made(place: Path, bound: int = PLENTY) -> ShardCache:
    return ShardCache(place, bound, "data.cache.dir")


def made_up(number: int, size: int = 3 * CELL) -> tuple[CachedShard, bytes]:
    content = np.random.default_rng(number).bytes(size)
    return CachedShard.of(f"s3://bucket/{number}.tar", size, f"{number:032x}"), content


def shards(number: int) -> list[tuple[CachedShard, bytes]]:
    return [made_up(i) for i in range(number)]


def disk_bytes(place: Path) -> int:
    return kept(folder_of(place))[1]


def test_what_was_read_once_is_not_read_from_the_store_again(tmp_path: Path) -> None:
    store = Store()
    assert made(tmp_path).read(SHARD, 70_000, 200_000, store) == CONTENT[70_000:200_000]
    assert store.asked == [(CELL, 4 * CELL)]
    # Another process, after the first has ended: nothing is in memory.
    again = made(tmp_path)
    assert again.read(SHARD, 100_000, 190_000, store) == CONTENT[100_000:190_000]
    assert len(store.asked) == 1
    assert (again.counts().hits, again.counts().hit_bytes, again.counts().miss_bytes) == (1.0, 90_000, 0)


def test_only_what_is_missing_is_read_and_small_gaps_with_it(tmp_path: Path) -> None:
    size = 600 * CELL
    content = counted(size)
    shard, store, cache = CachedShard.of("gs://b/x", size, "1" * 32), Store(content), made(tmp_path)
    for cell, count in ((2, 1), (20, 5), (300, 4)):
        cache.read(shard, cell * CELL, (cell + count) * CELL, store)
    store.asked.clear()
    assert cache.read(shard, 0, size, store) == content
    assert store.asked == [(0, 20 * CELL), (25 * CELL, size)]
    found = cache.counts()
    assert (found.hit_bytes, found.miss_bytes) == (10 * CELL, size)
    assert len(list(folder_of(tmp_path).glob("?/*"))) == 3
    assert found.waits == found.unstored_bytes == found.damaged_cells == 0


@given(st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_read_damaged_or_removed_meanwhile_the_bytes_are_those_of_the_store(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, 300 * CELL), "size")
    content = counted(size)
    shard, place = CachedShard.of("az://b/x", size, "2" * 32), tmp_path_factory.mktemp("cache")
    cache, store = made(place, data.draw(st.sampled_from([PLENTY, 1 << 20, 100_000]), "bound")), Store(content)
    for _ in range(data.draw(st.integers(1, 6), "steps")):
        if data.draw(st.booleans(), "harm"):
            harm(place, data)
        start = data.draw(st.integers(0, size - 1), "start")
        end = data.draw(st.integers(start + 1, min(size, start + 20 * CELL)), "end")
        assert cache.read(shard, start, end, store) == content[start:end]


def harm(place: Path, data: st.DataObject) -> None:
    """Flip a byte anywhere in a chunk, cut it off, make it longer, remove it."""
    for path in sorted(folder_of(place).glob("?/*")):
        how, size = data.draw(st.sampled_from(["flip", "cut", "grow", "remove", "leave"])), path.stat().st_size
        if how == "remove":
            path.unlink()
        elif how in {"cut", "grow"}:
            os.truncate(path, data.draw(st.integers(0, size - 1)) if how == "cut" else size + 5)
        elif how == "flip":
            with path.open("r+b") as file:
                file.seek(data.draw(st.integers(0, size - 1)))
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 0x40]))


DAMAGES: dict[str, Callable[[bytearray], bytes]] = {
    "a bit of a cell": lambda raw: bytes(raw[:5000]) + bytes([raw[5000] ^ 1]) + bytes(raw[5001:]),
    "a bit of a checksum": lambda raw: bytes(raw[:2049]) + bytes([raw[2049] ^ 1]) + bytes(raw[2050:]),
    "a bit of the name": lambda raw: bytes(raw[:30]) + bytes([raw[30] ^ 1]) + bytes(raw[31:]),
    "cut within a cell": lambda raw: bytes(raw[:9000]),
    "cut within the header": lambda raw: bytes(raw[:300]),
    "zeros where a cell was": lambda raw: bytes(raw[:4096]) + bytes(CELL) + bytes(raw[4096 + CELL :]),
    "two cells in each other's place, checksums too": lambda raw: (
        bytes(raw[:2048] + raw[2056:2064] + raw[2048:2056] + raw[2064:4096])
        + bytes(raw[4096 + CELL : 4096 + 2 * CELL] + raw[4096 : 4096 + CELL] + raw[4096 + 2 * CELL :])
    ),
    "another file": lambda _: b"\x89PNG" + bytes(9000),
}


CELLS_DAMAGED = {"cut within a cell": 6, "two cells in each other's place, checksums too": 2}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_told_once_and_read_from_the_store_again(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store()
    made(tmp_path).read(SHARD, 0, SIZE, store)
    (path,) = folder_of(tmp_path).glob("?/*")
    cache = made(tmp_path)
    for _ in range(2):
        path.write_bytes(DAMAGES[how](bytearray(path.read_bytes())))
        store.asked.clear()
        assert cache.read(SHARD, 0, SIZE, store) == CONTENT
        assert store.asked
        # It is mended by that.
        assert cache.read(SHARD, 0, SIZE, store) == CONTENT
        assert len(store.asked) == 1
    told = capsys.readouterr().err
    assert told.count("is damaged") == 1
    assert str(path) in told
    assert cache.counts().damaged_cells == 2 * CELLS_DAMAGED.get(how, 1)


def test_a_chunk_that_was_copied_to_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    (one, first), (other, second) = shards(2)
    cache = made(tmp_path)
    cache.read(one, 0, one.size, Store(first))
    wrong = Chunk(folder_of(tmp_path), other, 0).path
    wrong.write_bytes(Chunk(folder_of(tmp_path), one, 0).path.read_bytes())
    assert cache.read(other, 0, other.size, Store(second)) == second


@pytest.mark.parametrize(
    ("url", "size", "digest"),
    [
        ("s3://bucket/b.tar", SIZE, "0" * 32),
        ("gs://bucket/a.tar", SIZE, "0" * 32),
        ("s3://other/a.tar", SIZE, "0" * 32),
        ("s3://bucket/a.tar", SIZE + 1, "0" * 32),
        ("s3://bucket/a.tar", SIZE, "0" * 31 + "1"),
        ("s3://bucket//a.tar", SIZE, "0" * 32),
        ("https://bucket/a.tar", SIZE, "0" * 32),
    ],
)
def test_shards_that_differ_in_anything_are_different_ones(url: str, size: int, digest: str) -> None:
    assert CachedShard.of(url, size, digest).key != SHARD.key


def test_a_signature_that_was_renewed_makes_no_other_shard() -> None:
    one, other = (CachedShard.of(f"https://h/a.tar?X-Amz-Signature={s}", 9, "a" * 32) for s in ("1", "2"))
    assert one == other


@pytest.mark.parametrize("cut", [SIZE - 1, SIZE - CELL, CELL + 1])
def test_of_a_shard_that_was_cut_off_what_is_there_is_read(tmp_path: Path, cut: int) -> None:
    store, cache = Store(CONTENT[:cut]), made(tmp_path)
    assert cache.read(SHARD, cut - 50, cut, store) == CONTENT[cut - 50 : cut]
    with pytest.raises(DataError, match=f"ends at byte {cut}$"):
        cache.read(SHARD, cut - 50, cut + 1, store)
    assert cache.counts().stored_bytes == 0


@pytest.mark.parametrize("error", [AwayError("gone"), MissingError("no such key")])
def test_a_store_that_does_not_answer_is_not_asked_for_less(tmp_path: Path, error: DataError) -> None:
    asked = []

    def fetch(start: int, end: int) -> bytes:
        asked.append((start, end))
        raise error

    with pytest.raises(type(error)):
        made(tmp_path).read(SHARD, 1, 2, fetch)
    assert len(asked) == 1


# ---- the bound


def test_the_bound_holds_and_what_others_used_the_longest_ago_goes(tmp_path: Path) -> None:
    files, bound = shards(12), 1 << 20
    for number, (shard, content) in enumerate(files):
        cache = made(tmp_path, bound)
        assert cache.read(shard, 0, shard.size, Store(content)) == content
        assert disk_bytes(tmp_path) <= bound
        # As if each had been used a minute after the other; the first is used all the time.
        for later, (used, _) in enumerate(files[: number + 1]):
            path = Chunk(folder_of(tmp_path), used, 0).path
            if path.exists():
                os.utime(path, (1e9 + 60 * (later or 99),) * 2)
    left = {chunk.key for chunk in kept(folder_of(tmp_path))[0]}
    order = [number for number, (shard, _) in enumerate(files) if shard.key in left]
    assert order[0] == 0
    assert order[1:] == list(range(12 - len(order) + 1, 12))
    assert len(order) >= 3


def test_what_is_read_again_counts_as_used(tmp_path: Path) -> None:
    (shard, content), *_ = shards(1)
    made(tmp_path).read(shard, 0, 100, Store(content))
    path = Chunk(folder_of(tmp_path), shard, 0).path
    os.utime(path, (1e9, 1e9))
    cache = made(tmp_path)
    cache.read(shard, 0, 100, Store(content))
    assert path.stat().st_mtime > time.time() - 60
    os.utime(path, (1e9, 1e9))
    # Not each time: that would be a write a range.
    cache.read(shard, 0, 100, Store(content))
    assert path.stat().st_mtime == 1e9


def test_another_smaller_bound_is_kept_from_the_start(tmp_path: Path) -> None:
    cache = made(tmp_path)
    for shard, content in shards(12):
        cache.read(shard, 0, shard.size, Store(content))
    assert disk_bytes(tmp_path) > 2 << 20
    made(tmp_path, 1 << 20)
    assert 300_000 < disk_bytes(tmp_path) <= 1 << 20


def write_shards(place: str, seed: int, bound: int, done: multiprocessing.Queue[int]) -> None:
    cache = made(Path(place), bound)
    generator = np.random.default_rng(seed)
    for _ in range(40):
        shard, content = made_up(int(generator.integers(30)))
        start = int(generator.integers(shard.size - 1))
        end = int(generator.integers(start + 1, shard.size))
        if cache.read(shard, start, end, Store(content)) != content[start:end]:
            done.put(-1)
            return
    done.put(cache.counts().stored_bytes)


def test_four_writers_at_once_never_hold_more_than_the_bound(tmp_path: Path) -> None:
    processes, bound = multiprocessing.get_context("fork"), 1 << 20
    done = processes.Queue()
    writers = [processes.Process(target=write_shards, args=(str(tmp_path), i, bound, done)) for i in range(4)]
    for writer in writers:
        writer.start()
    most = looks = 0
    while any(writer.is_alive() for writer in writers):
        # Nothing is removed while this is held: else a file that is gone would be counted with what took its place.
        with contextlib.suppress(LockHeldError, FileNotFoundError), held(folder_of(tmp_path) / "ledger.lock"):
            most, looks = max(most, disk_bytes(tmp_path)), looks + 1
        time.sleep(0.01)
    assert [writer.exitcode for writer in writers] == [0] * 4
    stored = [done.get(timeout=60) for _ in writers]
    assert all(number >= 0 for number in stored)
    assert sum(stored) > 2 * bound
    assert bound // 2 < most <= bound
    assert looks > 3
    assert not list((folder_of(tmp_path) / "locks").iterdir())
    assert not list((folder_of(tmp_path) / "writing").iterdir())


@pytest.mark.parametrize(
    "says",
    [b"0 another-start-of-the-machine", b"", b"0", b"-1 x", b"\0" * 64, b"9" * 5000, b"0 " + b"x" * 40, b"\xff\xfe"],
)
def test_a_ledger_that_says_nothing_that_holds_is_counted_anew(tmp_path: Path, says: bytes) -> None:
    cache, bound = made(tmp_path, 1 << 20), 1 << 20
    for shard, content in shards(4):
        cache.read(shard, 0, shard.size, Store(content))
    for number in range(4, 9):
        (folder_of(tmp_path) / "ledger").write_bytes(says)
        shard, content = made_up(number)
        cache.read(shard, 0, shard.size, Store(content))
        assert disk_bytes(tmp_path) <= bound
    assert cache.counts().unstored_bytes == 0


# ---- several processes and threads


def test_of_many_that_want_a_range_one_reads_it_and_the_others_wait(tmp_path: Path) -> None:
    asked, begun = list[tuple[int, int]](), threading.Barrier(4)

    def fetch(start: int, end: int) -> bytes:
        asked.append((start, end))
        time.sleep(0.2)
        return CONTENT[start:end]

    def work(cache: ShardCache) -> None:
        begun.wait()
        results.append(cache.read(SHARD, 10, SIZE - 10, fetch) == CONTENT[10:-10])

    results: list[bool] = []
    caches = [made(tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    assert asked == [(0, SIZE)]
    total = sum((cache.counts() for cache in caches), CacheCounts())
    assert (total.waits, total.hits) == (3, 0.75)


def read_slowly(place: str, begun: multiprocessing.Queue[int]) -> None:
    def fetch(start: int, end: int) -> bytes:
        begun.put(1)
        time.sleep(60)
        raise AssertionError

    made(Path(place)).read(SHARD, 0, SIZE, fetch)


def test_one_that_is_killed_while_it_reads_is_not_waited_for(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    begun = processes.Queue()
    reader = processes.Process(target=read_slowly, args=(str(tmp_path), begun))
    reader.start()
    begun.get(timeout=60)
    store, cache = Store(), made(tmp_path)
    lock = folder_of(tmp_path) / "locks" / Chunk(folder_of(tmp_path), SHARD, 0).name
    assert holder_of(lock) is not None
    killer = threading.Timer(0.1, reader.kill)
    killer.start()
    assert cache.read(SHARD, 0, SIZE, store) == CONTENT
    assert (store.asked, cache.counts().waits) == ([(0, SIZE)], 1)
    killer.join()
    reader.join()
    assert not lock.exists()


@pytest.mark.parametrize("why", ["it takes too long", "the reader is to stop"])
def test_one_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, store = made(tmp_path), Store()
    if why == "it takes too long":
        monkeypatch.setattr(cache_module, "_WAIT_S", 0.05)
    with held(folder_of(tmp_path) / "locks" / Chunk(folder_of(tmp_path), SHARD, 0).name):
        assert cache.read(SHARD, 0, SIZE, store, lambda: why == "the reader is to stop") == CONTENT
    assert store.asked == [(0, SIZE)]
    assert cache.read(SHARD, 0, SIZE, store) == CONTENT
    assert len(store.asked) == 1


def test_locks_that_the_killed_have_left_are_removed_at_the_next_start(tmp_path: Path) -> None:
    made(tmp_path)
    folder = folder_of(tmp_path)
    left = [folder / "locks" / "a-000001", folder / "writing" / "17-abc"]
    for path in left:
        path.write_text("1000000")
    with held(folder / "locks" / "b-000001"), held(folder / "writing" / "18-abc", "50000"):
        made(tmp_path)
        assert [path.exists() for path in left] == [False, False]
        assert {path.name for path in folder.glob("*/*-*")} == {"b-000001", "18-abc"}
        # What is being written counts.
        assert int((folder / "ledger").read_text().split()[0]) >= 50_000


def killed_at_random(place: Path, seed: int) -> None:
    """Read and write until somebody kills it."""
    cache, generator = made(place, 1 << 20), np.random.default_rng(seed)
    while True:
        shard, content = made_up(int(generator.integers(12)))
        start = int(generator.integers(shard.size - 1))
        cache.read(shard, start, int(generator.integers(start + 1, shard.size)), Store(content))


def test_whatever_moment_kills_the_writers_the_next_reads_what_is_right_within_the_bound(tmp_path: Path) -> None:
    processes, generator = multiprocessing.get_context("fork"), np.random.default_rng(5)
    hits = 0
    for trial in range(24):
        writers = [processes.Process(target=killed_at_random, args=(tmp_path, trial * 2 + i)) for i in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(float(generator.uniform(0.0, 0.05)))
        for writer in writers:
            writer.kill()
            writer.join()
        cache = made(tmp_path, 1 << 20)
        assert disk_bytes(tmp_path) <= 1 << 20
        number = trial % 12
        shard, content = made_up(number)
        assert cache.read(shard, 0, shard.size, Store(content)) == content
        found = cache.counts()
        assert found.damaged_cells == 0
        hits += found.hit_bytes
    assert hits > 0
    assert not list((folder_of(tmp_path) / "writing").iterdir())


def dies_at(place: Path, look: int) -> None:
    """Fill a small cache, and die at the n-th look at the file system, half of what is written there being written."""
    looks = 0

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def watching(*args: object, **options: object) -> object:
            nonlocal looks
            looks += 1
            if looks == look:
                if call is pwrite:
                    handle, content, at = args
                    # No number is written by half: the kernel writes them at once.
                    pwrite(handle, memoryview(content)[: len(content) // 16 * 8], at)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return watching

    pwrite = os.pwrite
    for name in ("open", "pwrite", "ftruncate", "unlink", "mkdir", "replace", "rename", "utime", "scandir"):
        setattr(os, name, watched(getattr(os, name)))
    cache = made(place, 400_000)
    for shard, content in shards(2):
        cache.read(shard, 0, shard.size, Store(content))
    os._exit(0)


def test_killed_at_every_look_at_the_disk_what_is_read_is_right_and_within_the_bound(tmp_path: Path) -> None:
    process, look, ended = multiprocessing.get_context("fork").Process, 0, -signal.SIGKILL
    hits = 0
    while ended == -signal.SIGKILL:
        # While the folders are made one death is like another.
        look += 1 if look > 50 else 7
        place = tmp_path / str(look)
        place.mkdir()
        writer = process(target=dies_at, args=(place, look))
        writer.start()
        writer.join()
        ended = writer.exitcode
        before = len(list(folder_of(place).glob("?/*")))
        cache = made(place, 400_000)
        for shard, content in shards(2):
            assert cache.read(shard, 0, shard.size, Store(content)) == content
            assert disk_bytes(place) <= 400_000
        found = cache.counts()
        assert found.damaged_cells == 0
        assert found.unstored_bytes == 0
        assert before <= 1
        hits += found.hit_bytes
    assert ended == 0
    assert look > 90
    assert hits > 0


# ---- full disks, and others' folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_on_a_full_disk_reading_goes_on_from_the_store_with_one_warning(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_AGAIN_S", 0.0)
    cache, files = made(small_disk), shards(12)
    for _ in range(2):
        for shard, content in files:
            assert cache.read(shard, 5, shard.size - 5, Store(content)) == content[5:-5]
    found = cache.counts()
    assert found.hit_bytes > 0
    assert found.stored_bytes > 0
    assert found.unstored_bytes > 0
    assert found.damaged_cells == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "cannot be written: the disk is full" in told
    assert str(small_disk) in told


def test_a_disk_that_is_full_from_the_start_is_one_warning_too(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(OSError), (small_disk / "others").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    config = CacheConfig(dir=str(small_disk), size=PLENTY)
    cache = open_cache(config)
    told = capsys.readouterr().err
    if cache is None:
        assert "there is no cache of shards: the disk is full" in told
    else:
        assert cache.read(SHARD, 0, SIZE, Store()) == CONTENT
        told += capsys.readouterr().err
    assert open_cache(config) is cache
    assert told.count("\n") == 1


@pytest.mark.parametrize("gone", ["", "locks", "writing", "drawers"])
def test_a_cache_that_is_removed_in_mid_run_is_told_once_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(cache_module, "_AGAIN_S", 0.0)
    cache, folder = made(tmp_path), folder_of(tmp_path)
    for name in DRAWERS if gone == "drawers" else [gone]:
        shutil.rmtree(folder / name)
    assert not capsys.readouterr().err
    for _ in range(3):
        assert cache.read(SHARD, 0, SIZE, Store()) == CONTENT
    assert cache.counts().hit_bytes >= SIZE
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"the cache of shards in {folder} cannot be written: it was removed" in told
    assert open_folder(tmp_path, "test") == folder


def test_a_cache_that_stays_removed_costs_no_more_than_hits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_AGAIN_S", 0.0)
    place = tmp_path / "scratch"
    place.mkdir()
    cache = made(place)
    shutil.rmtree(place)
    for put in (lambda: None, lambda: place.write_bytes(b"")):
        put()
        for _ in range(2):
            assert cache.read(SHARD, 0, SIZE, Store()) == CONTENT
    assert cache.counts().hit_bytes == 0


def test_whoever_cleans_up_may_take_any_file_of_it(tmp_path: Path) -> None:
    made(tmp_path).read(SHARD, 0, SIZE, Store())
    folder = folder_of(tmp_path)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()
        assert made(tmp_path).read(SHARD, 0, SIZE, Store()) == CONTENT
        path.write_bytes(content)


def test_a_pipe_in_the_place_of_a_chunk_is_not_waited_for(tmp_path: Path) -> None:
    made(tmp_path).read(SHARD, 0, SIZE, Store())
    for path in folder_of(tmp_path).glob("?/*"):
        path.unlink()
        os.mkfifo(path)
    assert made(tmp_path).read(SHARD, 0, SIZE, Store()) == CONTENT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("call", ["pwrite", "preadv", "open"])
def test_no_error_of_the_disk_is_one_of_reading(
    tmp_path: Path, number: int, call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, store = made(tmp_path), Store()
    cache.read(SHARD, 0, 100, store)
    right, others = getattr(os, call), made_up(1)

    def wrong(*args: object, **options: object) -> object:
        if call == "open" and not str(args[0]).startswith(str(tmp_path)):
            return right(*args, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, wrong)
    assert cache.read(SHARD, 0, SIZE, store) == CONTENT
    assert cache.read(others[0], 0, CELL, Store(others[1])) == others[1][:CELL]
    monkeypatch.undo()
    assert cache.read(SHARD, 0, SIZE, store) == CONTENT
    assert capsys.readouterr().err.count("cannot be") == 1


def test_the_folder_is_nobody_elses(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.mkdir()
    folder.chmod(0o777)
    made(tmp_path).read(SHARD, 0, SIZE, Store())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("?/*"))


def _owned_by_another(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


def _linked(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


def _with_something_else(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("")


def _of_another_version(folder: Path) -> None:
    folder.mkdir()
    (folder / "FORMAT").write_text("vit_dist shard cache 2\n")


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another user's": (_owned_by_another, r"belongs to user 12345"),
    "a link": (_linked, r"is no folder but a file or a link"),
    "a file": (lambda folder: folder.write_text(""), r"is no folder but a file or a link"),
    "something else": (_with_something_else, r"holds something else .*: thesis\.tex"),
    "another version": (_of_another_version, r"another version's: FORMAT"),
    "nothing to lie in": (lambda folder: folder.parent.rmdir(), r"is no directory on "),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_ours_is_refused_in_words(tmp_path: Path, what: str) -> None:
    if what == "another user's" and os.getuid():
        pytest.skip("only root can give a folder away")
    place = tmp_path / "scratch"
    place.mkdir()
    make, words = OTHERS[what]
    make(folder_of(place))
    with pytest.raises(ConfigError, match=words) as raised:
        open_cache(CacheConfig(dir=str(place), size=PLENTY))
    assert "data.cache.dir" in str(raised.value)
    assert not (tmp_path / "scratch" / "elsewhere").exists() or not list((place / "elsewhere").iterdir())


# ---- what says where it is


def test_the_recipe_wins_over_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, machine = tmp_path / "own", tmp_path / "machine"
    own.mkdir()
    machine.mkdir()
    assert open_cache(None) is None
    monkeypatch.setenv(DIR_VARIABLE, str(machine))
    monkeypatch.setenv(SIZE_VARIABLE, "100 MB")
    before = counts()
    cache = open_cache(None)
    assert cache is not None
    assert folder_of(machine).is_dir()
    cache.read(SHARD, 0, SIZE, Store())
    assert (counts() - before).miss_bytes == SIZE
    assert open_cache(CacheConfig.model_validate({"size": "0 B"})) is None
    assert open_cache(CacheConfig(size=PLENTY)) is not cache
    assert not list(own.iterdir())
    assert open_cache(CacheConfig(dir=str(own), size=PLENTY)) is not None
    assert folder_of(own).is_dir()


@pytest.mark.parametrize(
    ("folder", "size", "words"),
    [
        ("/tmp", "", "VIT_DIST_DATA_CACHE_SIZE=: expected a size such as"),
        ("/tmp", "100", "VIT_DIST_DATA_CACHE_SIZE=100: "),
        ("/tmp", "lots", "VIT_DIST_DATA_CACHE_SIZE=lots: expected a size"),
        ("/tmp", "1 MB", r"VIT_DIST_DATA_CACHE_SIZE=1 MB: .* is too small; give 64\.0 MiB or more"),
        ("s3://bucket/x", "1 GB", "VIT_DIST_DATA_CACHE=s3://bucket/x: not on a file system of this machine"),
        ("/no/such/place", "1 GB", "VIT_DIST_DATA_CACHE=/no/such/place: /no/such/place is no directory on"),
    ],
)
def test_a_machine_that_says_it_wrongly_is_told(
    folder: str, size: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIR_VARIABLE, folder)
    monkeypatch.setenv(SIZE_VARIABLE, size)
    with pytest.raises((ConfigError, DataError), match=words):
        open_cache(None)


def test_a_size_alone_wants_a_directory() -> None:
    with pytest.raises(ConfigError, match=re.escape("data.cache.dir is not given, and VIT_DIST_DATA_CACHE names none")):
        open_cache(CacheConfig(size=PLENTY))


def test_runs() -> None:
    assert runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 7), (9, 10)]
    assert CHUNK == 16 << 20
