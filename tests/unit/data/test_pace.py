"""What the stages of a stream count: bytes, requests, retries, images, broken ones, memory; summed over threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shards import write_set
from tests.streams import recipe
from tests.unit.data.test_ranges import Store
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.pace import Counts, Interval, Pace
from vit_dist.data.ranges import RangeReader
from vit_dist.data.segments import MERGE_GAP
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

WINDOWED = ("data.lanes=4", "data.window=5")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Store]:
    with Store({}, tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def read_epoch(manifest: str, *overrides: str) -> tuple[Interval, Counts, int]:
    """One epoch: what was counted, in all after the stream was closed, and examples that came."""
    config = recipe(manifest, *overrides)
    data = open_training_set(config)
    examples = 0
    with TrainStream(data, config, World(), 0, end=data.num_samples) as stream:
        for batch, _ in stream:
            examples += len(batch.samples)
        interval = stream.pace.since_last()
    return interval, stream.pace.total(), examples


def spans(manifest: str) -> list[int]:
    """Bytes of each shard from its first sample's header to the end of its last image."""
    opened = read_manifest(manifest)
    indexes = [opened.read_index(i) for i in range(len(opened.shards))]
    return [int((i.image_offsets + i.image_bytes).max() - i.offsets.min()) for i in indexes]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_set_that_is_read_whole_counts_each_byte_request_and_image_once(small_set: str, threads: int) -> None:
    interval, _, examples = read_epoch(small_set, f"data.decode_threads={threads}")
    expected, counts = spans(small_set), interval.counts
    assert (counts.read_bytes, counts.requests, counts.retries) == (sum(expected), len(expected), 0)
    assert counts.images == examples == 200
    assert counts.replaced == 0
    assert counts.decode_cpu_s > 0 < counts.decode_s
    assert interval.decoders == threads
    assert interval.held_bytes == sum(expected)


def test_memory_that_is_given_up_is_held_no_longer(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    interval, total, examples = read_epoch(manifest, *WINDOWED)
    # 12 windows of 5 samples; those that the stream is through with are gone, the last of each lane may be there.
    assert examples == 60
    assert 0 <= interval.held_bytes < total.held_bytes / 2
    assert total.held_bytes == interval.counts.read_bytes


def test_nothing_is_held_once_the_stream_is_gone(small_set: str) -> None:
    config = recipe(small_set)
    stream = TrainStream(open_training_set(config), config, World(), 0)
    next(iter(stream))
    pace = stream.pace
    assert pace.since_last().held_bytes > 0
    stream.close()
    del stream
    gc.collect()
    assert pace.since_last().held_bytes == 0


def test_requests_and_retries_are_those_that_the_server_saw(
    tmp_path: Path, served: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    monkeypatch.setattr("vit_dist.data.segments.RangeReader", lambda: RangeReader(first_wait_s=0.01))
    config = recipe(f"{served.url}/manifest.json", *WINDOWED)
    data = open_training_set(config)
    served.asked.clear()
    served.troubles = ["503", "", "503", "", "503"]
    with TrainStream(data, config, World(), 0, end=60) as stream:
        assert sum(len(batch.samples) for batch, _ in stream) == 60
        counts = stream.pace.total()
    assert counts.requests == len(served.asked)
    assert counts.retries == 3


def test_a_connection_that_breaks_amid_a_range_is_a_retry(tmp_path: Path, served: Store) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(1000))
    reader = RangeReader(first_wait_s=0.01)
    served.troubles = ["break 300", "503", "break 0"]
    reader.read(f"{served.url}/a.tar", 0, 1000)
    counts = reader.pace.total()
    reader.close()
    assert (counts.requests, counts.retries, counts.read_bytes) == (len(served.asked), 3, 1000)


def test_images_that_cannot_be_decoded_count_as_replaced(tmp_path: Path) -> None:
    broken = frozenset({3, 17, 18})
    manifest = write_set(tmp_path, num_samples=40, samples_per_shard=20, num_classes=4, broken=broken)
    interval, _, examples = read_epoch(manifest)
    assert interval.counts.replaced == 3
    # Each was tried in its turn; those that stand in for them are decoded a second time.
    assert interval.counts.images > examples == 40


def test_a_takedown_is_replaced_without_being_decoded(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=40, samples_per_shard=20, num_classes=4)
    config = recipe(manifest)
    data = open_training_set(config)
    with TrainStream(data, config, World(), 0, end=40, taken_down={3: 0, 9: 0}) as stream:
        assert sum(len(batch.samples) for batch, _ in stream) == 40
        assert (stream.pace.total().replaced, stream.pace.total().images) == (2, 40)


def test_the_slowest_image_and_the_slowest_read_are_named_without_secrets(tmp_path: Path, served: Store) -> None:
    manifest = write_set(tmp_path, num_samples=40, samples_per_shard=20, num_classes=4)
    interval, _, _ = read_epoch(manifest)
    assert interval.image.what.startswith("'k0000")
    assert "shard-00000" in interval.image.what
    assert "shard-00000" in interval.read.what
    assert interval.image.seconds > 0 < interval.read.seconds
    (tmp_path / "a.tar").write_bytes(bytes(1000))
    reader = RangeReader()
    reader.read(f"{served.url}/a.tar?X-Amz-Signature=hidden", 0, 0)
    assert "hidden" not in reader.pace.since_last().read.what
    reader.close()


def test_two_looks_share_what_was_counted_between_them() -> None:
    pace = Pace()
    pace.mine.requests += 5
    assert pace.since_last().counts.requests == 5
    pace.mine.requests += 2
    pace.mine.decode_s += 0.5
    later = pace.since_last()
    assert (later.counts.requests, later.counts.decode_s, later.seconds > 0) == (2, pytest.approx(0.5), True)
    assert pace.since_last().counts == Counts()
    assert pace.total().requests == 7


def test_threads_count_for_themselves_and_none_is_lost() -> None:
    pace, begun = Pace(), threading.Barrier(8)

    def work() -> None:
        begun.wait()
        for _ in range(2000):
            pace.mine.requests += 1
            pace.thread.wants(str)
            pace.thread.did()
            pace.mine.images += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (pace.total().requests, pace.total().images) == (16_000, 16_000)


def test_a_read_that_fails_has_brought_no_bytes(tmp_path: Path) -> None:
    reader = RangeReader()
    with pytest.raises(Exception, match=r"none\.tar"):
        reader.read(str(tmp_path / "none.tar"), 0, 100)
    assert reader.pace.total().read_bytes == 0
    reader.close()


def test_ranges_that_are_asked_for_apart_are_all_counted(tmp_path: Path) -> None:
    # Subsets by hash leave samples out: with images larger than the gap that is read over, a piece has several ranges.
    manifest = write_set(tmp_path, num_samples=30, samples_per_shard=30, num_classes=4, shuffled=False)
    whole = spans(manifest)[0]
    assert whole < MERGE_GAP, "the set is small: its samples are read as one range"
    interval, _, examples = read_epoch(manifest, "data.subset=10")
    assert examples == 10 == interval.counts.images
    assert interval.counts.requests == 1
    assert interval.counts.read_bytes <= whole
