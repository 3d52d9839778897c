"""Two jobs share a cache of shards on a disk that is full: both go on without it, and it serves once there is room."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.shards import write_set
from tests.unit.data.test_ranges import Store

JOB = """
import hashlib, sys, vit_dist
url, cache, seed = sys.argv[1:]
said = hashlib.sha256()
with vit_dist.open_stream(
    url, batch=16, epochs=2, image_size=28, seed=int(seed), lanes=4, window=4, workers=2,
    **({"cache": {"dir": cache, "size": "100 MB"}} if cache else {}),
) as stream:
    for batch, _ in stream:
        said.update(batch.images.numpy().tobytes())
print(said.hexdigest())
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where this user may mount one."""
    at = tmp_path / "disk"
    at.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", at], check=False, capture_output=True
    ).returncode:
        pytest.skip("no disk can be mounted here")
    yield at
    subprocess.run(["umount", at], check=True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Store]:
    write_set(tmp_path / "set", num_samples=160, samples_per_shard=40, num_classes=4)
    with Store({}, tmp_path / "set") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def jobs(url: str, cache: str) -> list[tuple[str, str]]:
    """What two jobs of two seeds, at once, give and say."""
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, f"{url}/manifest.json", cache, seed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for seed in "01"
    ]
    found = [job.communicate(timeout=120) for job in begun]
    assert [job.returncode for job in begun] == [0, 0], found
    return found


def test_two_jobs_go_on_without_a_cache_whose_disk_is_full(disk: Path, served: Store) -> None:
    expected = [given for given, _ in jobs(served.url, "")]
    found = jobs(served.url, str(disk))
    assert [given for given, _ in found] == expected
    for _, said in found:
        assert said.count("cannot be written: the disk is full") == 1
    # What lies there is whole, and more comes to it.
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert jobs(served.url, str(disk)) == [(given, "") for given in expected]
    served.asked.clear()
    assert jobs(served.url, str(disk)) == [(given, "") for given in expected]
    assert not [name for name, _ in served.asked if name.endswith(".tar")]
