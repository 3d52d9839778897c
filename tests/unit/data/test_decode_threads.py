"""How many threads decode, and what they leave to the thread that trains."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from launcher.processes.ranks import _rank_environment
from launcher.processes.side_by_side import SideBySide
from vit_dist.config.load import resolve
from vit_dist.core.world import World, rank_cpus
from vit_dist.data.decode import Encoded
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def met(manifest: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[set[int], int]:
    """The numbers of OpenMP threads that decode threads see while a stream is read, and how many of these there are."""
    seen: dict[str, int] = {}

    whole = Encoded.whole

    def looking(image: Encoded) -> torch.Tensor:
        seen[threading.current_thread().name] = torch.get_num_threads()
        return whole(image)

    monkeypatch.setattr(Encoded, "whole", looking)
    recipe = resolve(
        {
            "horizon": "3 epochs",
            "global_batch": 12,
            "model": "vit-test",
            "data": {"num_classes": 4, "train": manifest, "image_size": 28},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
        },
        overrides,
    )
    # Those of a stream whose decoder hung live on, left behind.
    before = set(threading.enumerate())
    with TrainStream(open_training_set(recipe), recipe, World(), 0) as stream:
        for _, (batch, _) in zip(range(10), stream, strict=False):
            assert len(batch.images) == 12
        threads = [t for t in set(threading.enumerate()) - before if t.name.startswith("decode")]
    assert seen
    return set(seen.values()), len(threads)


@pytest.mark.usefixtures("three_threads")
def test_a_decode_thread_has_one_openmp_thread_and_training_keeps_its_own(
    small_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert met(small_set, monkeypatch, "data.decode_threads=4") == ({1}, 4)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as later:  # a thread that meets torch for the first time
        assert later.submit(torch.get_num_threads).result() == 3


@pytest.mark.parametrize(("cpus", "threads"), [(1, 2), (4, 2), (14, 12), (192, 32)])
def test_threads_follow_the_cpus_of_the_rank(
    small_set: str, monkeypatch: pytest.MonkeyPatch, cpus: int, threads: int
) -> None:
    monkeypatch.setenv("VIT_DIST_CPUS", str(cpus))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert met(small_set, monkeypatch)[1] == threads
    assert met(small_set, monkeypatch, "data.decode_threads=3")[1] == 3


def test_ranks_of_our_launchers_share_the_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("VIT_DIST_CPUS", raising=False)
    assert rank_cpus(_rank_environment({}, 1, 4, {}, tmp_path)) == 4
    side = SideBySide(nproc=2, jobs=2)
    assert rank_cpus(_rank_environment(side._environ, 0, 2, {}, tmp_path)) == 4
