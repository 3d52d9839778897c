"""Decoders that do not come back, and processes that stand still: who waits is told for which image, and gets away."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vit_dist
from tests.decoding import Ends, Hangs, descendants, reader
from tests.places import ROOT
from tests.shards import write_set
from tests.unit.data.test_ranges import Store
from vit_dist.core.errors import ConfigError, DataError, DataTimeoutError
from vit_dist.core.process import lives, wait_until
from vit_dist.data import reader as readers
from vit_dist.data import waits
from vit_dist.data.reader import Reader

HANGS = Hangs(7)
IMAGE = r"has been at the image 'k000007' of .*shard-000000\.tar for [\d.]+"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "TELL_EVERY_S", 0.4)


def take_all(batches: Reader) -> None:
    while True:
        assert batches.next() is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_on_which_a_decoder_hangs_is_named_and_nothing_waits_for_it(
    small_set: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if workers:
        # Their server has to import what it needs, once.
        with contextlib.closing(reader(small_set, Ends(-1, 0), workers)) as first:
            assert first.next() is not None
    told: list[str] = []
    who = (r"decode process \d \(pid \d+\) " if workers else r"thread decode_\d ") + IMAGE
    batches = reader(small_set, HANGS, workers, timeout_s=2, told=told.append)
    try:
        with pytest.raises(DataTimeoutError, match=rf"^no batch within timeout=2 seconds: {who}.*data\.takedown"):
            take_all(batches)
        # Nor does it come after.
        with pytest.raises(TimeoutError, match=who):
            batches.next()
        processes = set(descendants(os.getpid())) if workers else set()
    finally:
        began = time.monotonic()
        batches.close()
    assert time.monotonic() - began < 5
    assert told[-1] == ""
    assert re.search(who, told[-2])
    said = capsys.readouterr().err
    assert len(re.findall(rf"no batch for [\d.]+.*{who}", said)) == 1, "once, however often it is told"
    assert bool(re.search(rf"1 of its threads do not end: thread decode_\d {IMAGE}", said)) == (not workers)
    # The server alone is left.
    assert wait_until(lambda: sum(map(lives, processes)) <= 1, 10, 0.05)
    assert not readers.waits_now()


def test_a_process_that_stands_still_is_told_and_goes_on(small_set: str) -> None:
    batches = reader(small_set, Ends(-1, 0), 2)
    found: list[str] = []
    try:
        assert batches.next() is not None
        pids = batches._pool._pids  # type: ignore[union-attr]
        os.kill(pids[1], signal.SIGSTOP)

        def look() -> None:
            found.append(readers.waits_now() if wait_until(lambda: bool(readers.waits_now()), 20, 0.05) else "")
            time.sleep(0.5)
            found.append(readers.waits_now())
            os.kill(pids[1], signal.SIGCONT)

        looks = threading.Thread(target=look)
        looks.start()
        # More than were made before.
        for _ in range(20):
            assert batches.next() is not None
        looks.join()
    finally:
        batches.close()
    stopped = rf"decode process 1 \(pid {pids[1]}\) has been stopped by a signal.*`kill -CONT {pids[1]}`"
    assert re.match(stopped, found[-1])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Store]:
    with Store({}, tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_store_that_does_not_answer_is_the_cause(tmp_path: Path, served: Store) -> None:
    write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    stream = vit_dist.open_stream(f"{served.url}/manifest.json", batch=4, image_size=28, timeout=1)
    served.troubles = ["sleep 3"] * 50
    with stream, pytest.raises(DataError, match=r"has waited [\d.]+ ?s for the bytes of .*/shard-\d+\.tar"):
        list(stream)


ALONE = """
import sys, time, vit_dist
def transform(image, sample):
    while sample.key == "k000007":
        time.sleep(60)
    return image
with vit_dist.open_stream(sys.argv[1], batch=8, epochs=1, transform=transform, image_size=28, timeout=1) as stream:
    for batch, state in stream:
        pass
"""


def test_a_program_of_ones_own_ends_with_the_error(small_set: str) -> None:
    """Though one of its threads never does."""
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, small_set], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert re.search(rf"DataTimeoutError: no batch within timeout=1 seconds: thread decode_\d {IMAGE}", ended.stderr)


@pytest.mark.parametrize("value", [-1, "60", True, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(small_set: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"timeout=.*: expected seconds, or 0 for none"):
        vit_dist.open_stream(small_set, batch=8, timeout=value)  # type: ignore[arg-type]
