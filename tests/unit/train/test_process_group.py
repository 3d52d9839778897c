"""A rank's device, where what it sees is not what its number says, and what Slurm lets it see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launcher.preflight import run as preflight
from launcher.slurm.cluster import load_cluster
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World, gpu_of
from vit_dist.train import process_group as joining
from vit_dist.train.health import node_probe
from vit_dist.train.process_group import process_group


@pytest.mark.parametrize(("visible", "local_rank", "index"), [(1, 0, 0), (1, 1, 0), (1, 7, 0), (8, 5, 5)])
def test_local_rank_names_the_device_that_the_rank_computes_on(
    monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, index: int
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": str(local_rank)}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")  # so that what the block sets is gone after the test
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "new_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(name="H100", uuid=local_rank))
    monkeypatch.setattr(joining, "join", lambda *_, **__: SimpleNamespace(set_timeout=lambda _: None))
    with process_group(World(local_rank, 8, local_rank)) as device:
        assert chosen == [device] == [torch.device("cuda", index)]
        # DeepSpeed calls set_device with this number, whatever was set before.
        assert os.environ["LOCAL_RANK"] == str(index)
        assert os.environ["RANK"] == str(local_rank)


@pytest.mark.parametrize(
    "tasks",
    [
        {"LOCAL_WORLD_SIZE": "8"},
        {"SLURM_NTASKS_PER_NODE": "8"},
        {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4"},
        {"LOCAL_RANK": "7"},
    ],
)
def test_more_ranks_than_gpus_are_refused_by_training_and_preflight(
    monkeypatch: pytest.MonkeyPatch, tasks: dict[str, str]
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    local_rank = int(tasks.get("LOCAL_RANK", "1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = "8 ranks on this node share 4 GPUs"
    with pytest.raises(ConfigError, match=words), process_group(World(local_rank, 8, local_rank)):
        pass
    with pytest.raises(ConfigError, match=words):
        node_probe._device(local_rank)
    # Bound to one GPU each, or one for each: as many as there are.
    assert gpu_of(local_rank, 1) == 0
    assert gpu_of(local_rank, 8) == local_rank


@pytest.mark.parametrize(("cluster", "bound"), [("dgx-h100", True), ("aws-p5", True), ("dev", False)])
def test_the_preflight_of_a_cluster_with_gpus_sees_all_of_a_node(
    monkeypatch: pytest.MonkeyPatch, cluster: str, bound: bool
) -> None:
    started: list[Sequence[str]] = []

    def take(commands: Sequence[tuple[Sequence[str], Any]], *_: Any) -> None:
        started.extend(command for command, _ in commands)

    monkeypatch.setattr(preflight, "_examine", take)
    preflight.examine_cluster(load_cluster(cluster), ["a", "b"], preflight.PreflightOptions())
    assert [("--gpu-bind=none" in command) for command in started] == [bound]
