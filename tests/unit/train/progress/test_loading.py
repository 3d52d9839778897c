"""What a stall is put down to, and what is said of it; by streams whose store, decoder or host is slow in truth."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.shards import write_set
from tests.streams import recipe
from tests.unit.data.test_ranges import Store
from vit_dist.core.run import log as runlog
from vit_dist.core.world import World
from vit_dist.data import sets, stream
from vit_dist.data.decode import Encoded
from vit_dist.data.pace import Counts, Interval, Slowest
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream
from vit_dist.train.progress import loading as module
from vit_dist.train.progress.clock import Window
from vit_dist.train.progress.loading import Loading, StallTeller, find_stall, loading, loading_scalars

URL = "s3://bucket/train-000007.tar"


@pytest.fixture
def set_of_60(tmp_path: Path) -> str:
    return write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)


@pytest.fixture(autouse=True)
def short_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALL_S", 0.0)


def trained(manifest: str, *overrides: str, step_s: float = 0.0) -> Loading:
    """What a loop that takes `step_s` a step finds: 60 examples in 5 steps, the first of which is not counted."""
    config = recipe(
        manifest, "data.lanes=4", "data.window=5", "data.decode_threads=2", "data.prefetch_batches=1", *overrides
    )
    wait = train = 0.0
    with TrainStream(open_training_set(config), config, World(), 0, end=60) as batches:
        taken = iter(batches)
        next(taken)
        batches.pace.since_last()
        for _ in range(4):
            began = time.perf_counter()
            next(taken)
            wait += time.perf_counter() - began
            time.sleep(step_s)
            train += step_s
        interval = batches.pace.since_last()
    return loading(Window(1.0, 4, 48, {"wait": wait, "train": train}, {}, None, interval), "n1")


def test_a_slow_decoder_is_the_cause_and_is_said_to_be(set_of_60: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Encoded.whole

    def slow(image: Encoded) -> torch.Tensor:
        time.sleep(0.01)
        return whole(image)

    monkeypatch.setattr(Encoded, "whole", slow)
    found = trained(set_of_60)
    assert found.busy > found.starved
    stall = find_stall([found])
    assert stall is not None
    assert stall.cause == "decode"
    assert "decoding is the cause: 2 threads" in stall.text
    assert "data bench" in stall.text


def test_a_slow_store_is_the_cause_and_its_slowest_shard_is_named(
    tmp_path: Path, set_of_60: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A window a request, so that the store is asked again and again.
    monkeypatch.setattr(sets, "LEAST_RANGE_BYTES", 1)
    with Store({}, tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        config_url = f"{server.url}/manifest.json"
        server.troubles = [""] * 4 + ["sleep 0.1"] * 100
        try:
            found = trained(config_url)
        finally:
            server.shutdown()
            thread.join()
    stall = find_stall([found])
    assert stall is not None
    assert stall.cause == "store"
    assert "the store is the cause" in stall.text
    assert f"{server.url}/shard-00000" in stall.text
    assert "data.read_threads, now 8" in stall.text


def test_a_planner_that_is_late_is_the_host(set_of_60: str, monkeypatch: pytest.MonkeyPatch) -> None:
    positions = stream._positions

    def slow(*given: Any) -> Iterator[Any]:
        for one in positions(*given):
            time.sleep(0.2)
            yield one

    monkeypatch.setattr(stream, "_positions", slow)
    stall = find_stall([trained(set_of_60)])
    assert stall is not None
    assert stall.cause == "host"
    assert "the host is the cause" in stall.text


def test_a_step_that_takes_longer_than_its_batch_is_no_stall(set_of_60: str) -> None:
    found = trained(set_of_60, step_s=0.3)
    assert found.wait < 0.2
    assert find_stall([found]) is None


def rank(wait: float = 0.5, busy: float = 0.9, starved: float = 0.1, cpus: int = 8, **changes: Any) -> Loading:
    counts = Counts(
        requests=40, retries=3, read_bytes=200_000_000, waited_s=1.0, images=1000, decode_s=10.0,
        decode_cpu_s=9.0, replaced=2,
    )  # fmt: skip
    slow = {"read": Slowest(4.2, f"3.1 MB of {URL}"), "image": Slowest(0.812, f"'cat/17' of {URL}")}
    interval = Interval(seconds=10.0, counts=counts, held_bytes=3 << 20, decoders=7, readers=4, **slow)
    return Loading("n1", cpus, wait, 10 * wait, busy, starved, replace(interval, **changes))


@pytest.mark.parametrize(
    ("one", "cause", "words"),
    [
        (rank(), "decode", ["7 threads at it 90% of the time", "10.0 ms an image, 9.0 of them CPU time",
                            "812 ms of CPU time: 'cat/17' of s3://", "more CPUs (now 8", "--resize-shorter"]),
        (rank(cpus=64), "decode", ["more threads (data.decode_threads, of 64 CPUs"]),
        (rank(cpus=64, processes=True), "decode", ["7 processes at it", "more processes (data.decode_workers, of 64"]),
        (rank(processes=True, decoders=1), "decode", ["1 process at it"]),
        (rank(counts=Counts(images=10, decode_s=10.0, decode_cpu_s=4.0)), "decode", ["share 8 CPUs"]),
        (rank(busy=0.2, starved=0.8), "store", ["no bytes 80% of the time, at 20.0 MB/s in 40 requests, 3 of them",
                                                 f"took 4.2 s: 3.1 MB of {URL}", "data.read_threads, now 4"]),
        (rank(busy=0.0, starved=1.0, counts=Counts(requests=26, retries=21)), "store",
         ["26 requests, 21 of them asked again", "Most requests failed at first: nothing in the recipe mends that"]),
        (rank(busy=0.1, starved=0.1), "host", ["idle 80% of the time"]),
        (rank(busy=0.5, starved=0.5), "decode", []),
        (rank(counts=Counts()), "decode", ["0.0 ms an image"]),
        (rank(busy=0.0, starved=1.0, counts=Counts(), seconds=0.0), "store", ["0.0 MB/s in 0 requests;"]),
    ],
)  # fmt: skip
def test_a_stall_says_why_where_and_what_to_do(one: Loading, cause: str, words: list[str]) -> None:
    stall = find_stall([one])
    assert stall is not None
    assert stall.cause == cause
    assert [word for word in words if word not in stall.text] == []
    assert stall.text.startswith("training waits for data 50% of the time; ")


def test_the_rank_that_waits_longest_is_the_one_that_is_told() -> None:
    stall = find_stall([rank(wait=0.3), replace(rank(busy=0.0, starved=0.9), node="n2"), rank(wait=0.1)])
    assert stall is not None
    assert stall.cause == "store"
    assert "50% of the time (rank 1 on n2); the store" in stall.text


def test_short_windows_and_little_waits_are_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_stall([rank(wait=0.19)]) is None
    monkeypatch.setattr(module, "_STALL_S", 6.0)
    assert find_stall([rank(wait=0.5)]) is None


def test_scalars_are_sums_means_and_the_fullest_rank() -> None:
    found = loading_scalars([rank(), rank(busy=0.5, starved=0.3, held_bytes=5 << 20, seconds=5.0)])
    assert found == pytest.approx(
        {
            runlog.DATA_READ: 40.0,
            runlog.DATA_REQUESTS: 80,
            runlog.DATA_RETRIES: 6,
            runlog.DATA_REPLACED: 4,
            runlog.DATA_DECODE: 9.0,
            runlog.DATA_HELD: 5,
            runlog.DATA_DECODERS_BUSY: 0.7,
            runlog.DATA_DECODERS_STARVED: 0.2,
        }
    )
    none = loading_scalars([rank(counts=Counts())])
    assert runlog.DATA_DECODE not in none, "no image, no time an image"
    assert runlog.DATA_CACHE_HITS not in none, "no cache, no share of it"
    both = [rank(counts=Counts(asked_bytes=30, hit_bytes=30)), rank(counts=Counts(asked_bytes=10, hit_bytes=0))]
    assert loading_scalars(both)[runlog.DATA_CACHE_HITS] == 0.75


def test_threads_that_go_on_during_an_evaluation_count_as_busy_at_most_all_the_time() -> None:
    interval = Interval(seconds=100.0, counts=Counts(decode_s=50.0, waited_s=30.0, images=9), decoders=2)
    found = loading(Window(1.0, 4, 48, {"wait": 2.0, "train": 8.0, "eval": 90.0}, {}, None, interval), "n1")
    assert (found.busy, found.starved, found.wait) == (1.0, 1.0, 0.2)


def test_a_stall_is_told_once_in_a_while_and_when_its_cause_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    teller, decode_bound, store_bound = StallTeller(), find_stall([rank()]), find_stall([rank(busy=0, starved=1)])

    def told(stall: Any, later_s: float) -> int:
        now[0] += later_s
        teller.tell(stall)
        return capsys.readouterr().err.count("training waits for data")

    steps = [(decode_bound, 0), (decode_bound, 30), (None, 30), (decode_bound, 30), (store_bound, 30),
             (store_bound, 30), (store_bound, 600), (None, 700)]  # fmt: skip
    assert [told(stall, later) for stall, later in steps] == [1, 0, 0, 0, 1, 0, 1, 0]
