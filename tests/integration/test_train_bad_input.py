"""What cannot be trained is refused in one paragraph, at once, on every rank, and leaves nothing that looks done."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import command
from tests.shards import write_set

pytestmark = pytest.mark.distributed

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def recipe(tmp_path: Path, small_set: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: refused
global_batch: 16
horizon: 40 steps
precision: fp32
model: vit-test
data: {{num_classes: 4, train: {small_set}, image_size: 28, augment: none}}
optim: {{name: adamw, lr: 1e-3}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: plain}}
checkpoint: {{every: 10 steps}}
"""
    )
    return str(path)


def refused(done: subprocess.CompletedProcess[str], *says: str, code: int, at_most: int = 1) -> None:
    """It failed with this code and a paragraph that says these things, without a traceback.

    Ranks that meet the same mistake say it once; `at_most` is more where each may meet one of its own.
    """
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= done.stderr.count("error:") <= at_most, done.stderr
    for text in says:
        assert text in done.stderr


def test_mistakes_that_need_no_process_start_none(vit_dist: Command, recipe: str, tmp_path: Path) -> None:
    run = ("--run-dir", str(tmp_path / "run"))
    refused(
        vit_dist("train", recipe, "--nproc", "3", *run), "not divisible by 3 ranks; nearest that are: 15, 18", code=2
    )
    refused(
        vit_dist("train", recipe, "model=vit-tst", *run), "unknown model 'vit-tst'; did you mean 'vit-test'?", code=2
    )
    refused(vit_dist("train", recipe, "--nproc", "0", *run), "--nproc=0", code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says", "code"),
    [
        (["data.train=/no/such/manifest.json"], "/no/such/manifest.json: no such file", 1),
        (["data.train="], "data.train is empty", 2),
        (["data.subset=201"], "data.subset=201 examples cannot be taken from 200", 2),
        (["schedule.warmup=50 steps"], "warmup=50 steps is 50 steps, longer than the whole run of 40 steps", 2),
        (["horizon=3 examples"], "horizon=3 examples is less than half a step", 2),
        (["data.num_classes=2"], "has 4 classes; set data.num_classes=4", 2),
    ],
)
def test_what_the_ranks_find_is_said_once(
    vit_dist: Command, recipe: str, tmp_path: Path, overrides: list[str], says: str, code: int
) -> None:
    nproc = "2" if "manifest.json" in says else "1"  # two ranks that meet the same mistake say it once
    done = vit_dist("train", recipe, *overrides, "--nproc", nproc, "--run-dir", str(tmp_path / "run"))
    refused(done, says, code=code)


def test_tars_that_do_not_fit_their_manifest_end_the_run(vit_dist: Command, recipe: str, tmp_path: Path) -> None:
    manifest = write_set(tmp_path / "set", num_samples=60, samples_per_shard=20, num_classes=4)
    shard = tmp_path / "set" / "shard-000001.tar"
    content = shard.read_bytes()
    train = ("train", recipe, f"data.train={manifest}", "--nproc", "2", "--run-dir", str(tmp_path / "run"))
    shard.write_bytes(content[:7000])
    refused(vit_dist(*train), "shard-000001.tar: has 7,000 bytes", "index it again", code=1, at_most=2)
    shard.write_bytes(content[1024:] + bytes(1024))
    refused(vit_dist(*train), "shard-000001.tar", "does not match its tars", code=1, at_most=2)
    text = (tmp_path / "set" / "manifest.json").read_text()
    (tmp_path / "set" / "manifest.json").write_text(text.replace('"nsamples": 20', '"nsamples": 21', 1))
    refused(vit_dist(*train), "the manifest was edited by hand", code=1)


def test_too_many_broken_images_stop_the_run_and_are_listed(vit_dist: Command, recipe: str, tmp_path: Path) -> None:
    manifest = write_set(
        tmp_path / "set", num_samples=60, samples_per_shard=20, num_classes=4, broken=frozenset({5, 25, 45})
    )
    run_dir = tmp_path / "run"
    train = ("train", recipe, f"data.train={manifest}", "--nproc", "2", "--run-dir", str(run_dir))
    refused(vit_dist(*train, "data.max_bad=0.02"), "of 60 examples cannot be decoded", "quarantine.jsonl", code=1)
    done = vit_dist(*train, "data.max_bad=0.05", "--run-dir", str(tmp_path / "other"))
    assert done.returncode == 0, done.stderr
    listed = (tmp_path / "other" / "quarantine.jsonl").read_text()
    assert all(key in listed for key in ("k000005", "k000025", "k000045"))


def test_another_recipe_in_the_same_directory_is_refused_with_the_difference(
    vit_dist: Command, recipe: str, tmp_path: Path
) -> None:
    run = ("--run-dir", str(tmp_path / "run"))
    assert vit_dist("train", recipe, "horizon=10 steps", *run).returncode == 0
    again = vit_dist("train", recipe, "horizon=10 steps", *run)
    assert again.returncode == 0
    assert "this run is done" in again.stderr
    done = vit_dist("train", recipe, "horizon=10 steps", "optim.lr=2e-3", *run)
    refused(done, "holds another run: optim.lr: 0.002 here, 0.001 there", code=2)


def test_a_second_run_in_a_directory_in_use_is_refused(vit_dist: Command, recipe: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    long = command("train", recipe, "horizon=100k steps", "--run-dir", str(run_dir))
    with forks.Popen(long, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 100
        while not (run_dir / "alive.json").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = vit_dist("train", recipe, "horizon=100k steps", "--run-dir", str(run_dir))
        assert first.poll() is None
        first.kill()
    refused(done, "another attempt is running in this directory", f"on {os.uname().nodename}", code=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_leaves_no_checkpoint_that_looks_whole(vit_dist: Command, recipe: str, small_disk: Path) -> None:
    done = vit_dist("train", recipe, "--nproc", "2", "--run-dir", str(small_disk / "run"))
    assert "checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert any(word in done.stderr for word in ("No space left", "needed", "free"))
    assert list((small_disk / "run" / "checkpoints").rglob("COMMITTED.json")) == []
    assert list((small_disk / "run" / "checkpoints").glob("step-*")) == []
