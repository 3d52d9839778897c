"""What a window comes to: utilization, shares, the slowest rank, memory; a GPU is faked by its name alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vit_dist.core.run.log import RunInfo
from vit_dist.core.world import World
from vit_dist.engines._timer import PHASES, StepTimer
from vit_dist.train.progress import performance
from vit_dist.train.progress.clock import Window
from vit_dist.train.progress.performance import RankSample, describe_device, measure

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = {
    "allocated_bytes.all.peak": 3 << 30,
    "reserved_bytes.all.peak": 4 << 30,
    "num_alloc_retries": 2,
    "num_ooms": 1,
}
PHASE_S = {"transfer": 0.5, "forward": 2.0, "backward": 4.0, "optimizer": 1.0}
WINDOW = Window(
    loss=1.0, steps=10, examples=10_000, seconds={"train": 8.0, "wait": 2.0, "eval": 6.0, "save": 4.0},
    phases=PHASE_S, first_step_s=None,
)  # fmt: skip


def info(**changes: Any) -> RunInfo:
    words = dict.fromkeys(("name", "model", "dataset", "dataset_fingerprint", "code_version", "recipe_hash"), "x")
    counts = dict.fromkeys(
        ("num_params", "num_classes", "image_size", "subset", "subset_seed", "seed", "planned_examples",
         "planned_steps", "global_batch", "world_size"), 1,
    )  # fmt: skip
    given = {"precision": "bf16", "base_lr": 1e-3, "weight_decay": 0.0, "macs_per_image": 10**10, **changes}
    return RunInfo(engine="plain", **words, **counts, **given)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name by which the driver calls the device."""
    name = ["NVIDIA H100 80GB HBM3"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name[0])
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _: MEMORY)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    return name


def test_utilization_is_six_times_the_multiply_adds_over_the_peak(gpu: list[str]) -> None:
    found = measure(WINDOW, info(), World(), GPU, trained=10**9)
    assert found.scalars["train/examples_per_s"] == 1000
    assert found.scalars["throughput/tflops_per_device"] == pytest.approx(60)
    assert found.scalars["throughput/mfu"] == pytest.approx(60 / 989)
    assert found.scalars["throughput/exaflops"] == pytest.approx(60)
    assert found.shown["MFU"] == "6.1%"
    assert found.shown["GiB"] == 3
    assert "TFLOP/s" not in found.shown
    assert {tag: value for tag, value in found.scalars.items() if tag.startswith("memory/")} == {
        "memory/peak_allocated_gib": 3,
        "memory/peak_reserved_gib": 4,
        "memory/alloc_retries": 2,
        "memory/ooms": 1,
    }


def test_a_device_or_a_precision_that_is_not_known_has_no_utilization(gpu: list[str]) -> None:
    assert "throughput/mfu" in measure(WINDOW, info(precision="fp32"), World(), GPU, trained=0).scalars
    assert "throughput/mfu" not in measure(WINDOW, info(precision="fp8"), World(), GPU, trained=0).scalars
    gpu[0] = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    found = measure(WINDOW, info(), World(), GPU, trained=0)
    assert "throughput/mfu" not in found.scalars
    assert found.shown["TFLOP/s"] == pytest.approx(60)
    assert "no MFU" in describe_device(GPU, "bf16")
    gpu[0] = "NVIDIA H200"
    assert describe_device(GPU, "bf16") == "cuda (NVIDIA H200, peak 989 TFLOP/s in bf16)"
    found = measure(WINDOW, info(), World(), CPU, trained=0)
    assert not {"throughput/mfu", "memory/ooms"} & found.scalars.keys()
    assert found.scalars["memory/peak_rss_gib"] > 0.01
    assert "throughput/exaflops" not in measure(WINDOW, info(macs_per_image=None), World(), CPU, trained=9).scalars


def test_shares_of_the_time_add_up_and_the_rest_is_called_other() -> None:
    found = measure(WINDOW, info(), World(), CPU, trained=0).scalars
    shares = {tag.removeprefix("time_share/"): value for tag, value in found.items() if tag.startswith("time_share/")}
    seconds = {"data_wait": 2, "evaluation": 6, "checkpoint": 4, "other": 0.5, **PHASE_S}
    assert shares == pytest.approx({name: value / 20 for name, value in seconds.items()})
    assert [found[f"step_time/{name}_s"] for name in ("min", "median", "max")] == [1, 1, 1]
    assert found["before_sync/median_s"] == pytest.approx(0.45)


def test_the_first_step_alone_has_a_time_but_no_rate() -> None:
    first = replace(WINDOW, steps=0, examples=0, seconds={}, phases=dict.fromkeys(PHASES, 0.0), first_step_s=7.0)
    found = measure(first, info(), World(), CPU, trained=4)
    assert found.scalars["start/first_step_s"] == 7
    assert not [tag for tag in found.scalars if tag.startswith(("train/", "step_time/", "before_sync/"))]
    assert "img/s" not in found.shown


def test_the_slowest_rank_is_named_where_it_is_behind_by_a_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(sample: RankSample, world: World) -> list[RankSample]:
        assert world.size == 4
        slow = replace(sample, node="node07", before_sync_s=sample.before_sync_s + late, memory={"peak_rss_gib": 50.0})
        return [sample, sample, slow, sample]

    monkeypatch.setattr(performance, "all_gather_object", others)
    for late, shown in (0.2, "rank 2 on node07 (+20% of a step)"), (0.01, None):
        found = measure(WINDOW, info(), World(size=4), CPU, trained=0)
        assert found.scalars["before_sync/slowest_rank"] == 2
        assert found.scalars["before_sync/max_s"] == pytest.approx(0.45 + late)
        assert found.scalars["before_sync/median_s"] == found.scalars["before_sync/min_s"] == pytest.approx(0.45)
        assert found.shown.get("slowest") == shown
        assert found.scalars["memory/peak_rss_gib"] == 50
        assert found.scalars["throughput/examples_per_s_per_device"] == 250


def test_a_timer_counts_each_phase_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr("vit_dist.engines._timer.time.perf_counter", lambda: now[0])
    timer = StepTimer()
    for _ in range(3):
        with timer.phase("forward"):
            now[0] += 2
        now[0] += 100
    assert timer.take() == {"transfer": 0, "forward": 6, "backward": 0, "optimizer": 0}
    assert sum(timer.take().values()) == 0


class Event:
    """As a CUDA event of a device that works through its queue only when somebody waits."""

    made: list[Event]
    clock = 0.0

    def __init__(self, **_: bool) -> None:
        self.at, self.waits = 0.0, 0
        Event.made.append(self)

    def record(self) -> None:
        Event.clock += 1500
        self.at = Event.clock

    def query(self) -> bool:
        return self.waits > 0

    def synchronize(self) -> None:
        self.waits += 1

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_on_a_gpu_nothing_waits_for_the_device_until_the_timer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Event.made = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = StepTimer(GPU)
    for _ in range(600):
        with timer.phase("backward"):
            pass
    assert sum(event.waits for event in Event.made) == 0
    assert timer.take()["backward"] == pytest.approx(600 * 1.5)
    for event in Event.made:
        event.waits = 1
