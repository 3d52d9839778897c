"""What goes over which process group in real training, how long each waits, and ranks that do not come."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.conftest import command, free_ports
from vit_dist.core.exit_codes import TERMINATED
from vit_dist.core.network import is_free
from vit_dist.core.process import wait_until

pytestmark = pytest.mark.distributed


def recipe_file(folder: Path, train: str, val: str, engine: str, hang: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: groups
global_batch: 16
horizon: 4 steps
precision: bf16
model: vit-test
data: {{num_classes: 4, train: {train}, val: {val}, image_size: 28, augment: none}}
optim: {{name: adamw, lr: 1e-3}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {engine}
checkpoint: {{every: 1 s, remote: {folder}/copies}}
eval: {{every: 2 steps}}
log: {{every: 1 step}}
guards: {{hang: {hang}, checksum_every: 1 step}}
"""
    )
    return path


@pytest.mark.parametrize(
    "engine",
    ["{name: plain}", pytest.param("{name: fsdp}", marks=pytest.mark.drill), "{name: deepspeed, zero_stage: 1}"],
)
def test_objects_and_flags_go_over_a_group_of_their_own_and_every_group_waits_as_long(
    run_world: Callable[..., Any], tmp_path: Path, small_set: str, small_val: str, engine: str
) -> None:
    recipe = recipe_file(tmp_path, small_set, small_val, engine, "20s")
    seen = run_world("integration/groups_worker.py", 2, str(recipe), str(tmp_path / "run"), "0")
    names = {name for name, *_ in seen["calls"]}
    assert names >= {"all_gather_object", "broadcast_object_list", "all_reduce"}
    assert [call for call in seen["calls"] if call[1] and call[2]] == []
    # Losses and sums of the evaluation are tensors, and stay on the devices.
    assert ["all_reduce", True, False] in seen["calls"]
    assert len(seen["time_outs"]) >= 2
    # The watchdog speaks at 10 x hang, a minute before.
    assert set(seen["time_outs"]) == {260.0}


def test_a_slow_start_of_one_rank_outlasts_the_time_of_a_step(
    run_world: Callable[..., Any], tmp_path: Path, small_set: str, small_val: str
) -> None:
    recipe = recipe_file(tmp_path, small_set, small_val, "{name: plain}", "5s")
    began = time.monotonic()
    run_world("integration/groups_worker.py", 2, str(recipe), str(tmp_path / "run"), "9")
    assert time.monotonic() - began > 9


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_peers_do_not_come_says_so(tmp_path: Path, small_set: str, small_val: str, rank: int) -> None:
    recipe = recipe_file(tmp_path, small_set, small_val, "{name: plain}", "1s")
    (port,) = free_ports(1)
    world = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    done = forks.run(
        command("train", str(recipe), "--run-dir", str(tmp_path / "run")),
        env={**os.environ, **world},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    says = {
        0: f"1 of 2 ranks came to 127.0.0.1:{port} within 10s; missing: 1",
        1: f"rank 1 of 2: rank 0 did not come to 127.0.0.1:{port} within 10s",
    }
    assert says[rank] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rank_that_waits_for_its_peers_hears_a_stop(tmp_path: Path, small_set: str, small_val: str) -> None:
    recipe = recipe_file(tmp_path, small_set, small_val, "{name: plain}", "10min")
    (port,) = free_ports(1)
    world = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    world |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    with forks.Popen(
        command("train", str(recipe), "--run-dir", str(tmp_path / "run")),
        env={**os.environ, **world},
        stderr=subprocess.PIPE,
        text=True,
    ) as rank:
        try:
            # Its store listens: it waits.
            assert wait_until(lambda: not is_free(port), 120, 0.05)
            rank.terminate()
            _, said = rank.communicate(timeout=60)
        finally:
            rank.kill()
    assert rank.returncode == TERMINATED, said
    assert "rank 0 of 2: SIGTERM before all ranks had come together" in said
    assert "Traceback" not in said
