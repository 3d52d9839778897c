"""A node that vanishes without a word: two network namespaces with a switch between them that goes dark.

Needs root and network namespaces. The ranks are real ones that train over gloo; nothing closes their connections, as
no FIN and no RST can get through any more.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import command
from tests.laws.test_recovery import LONG, end_all, wait_until_running
from tests.laws.test_resume import recipe_file
from vit_dist.core.run import history

pytestmark = [pytest.mark.drill, pytest.mark.distributed]

_SWITCH = f"vd{os.getpid()}-switch"
_NODES = [f"vd{os.getpid()}-node{n}" for n in range(2)]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two namespaces, 10.99.0.1 and 10.99.0.2, that see each other through a bridge in a third."""
    try:
        for name in (_SWITCH, *_NODES):
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        ip_says = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"POWER LOSS IS NOT TESTED HERE: it needs root, iproute2 and network namespaces: {ip_says.strip()}")
    try:
        ip("-n", _SWITCH, "link", "add", "bridge", "type", "bridge")
        ip("-n", _SWITCH, "link", "set", "bridge", "up")
        for n, node in enumerate(_NODES):
            ip("-n", node, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{n}", "netns", _SWITCH)
            ip("-n", _SWITCH, "link", "set", f"port{n}", "master", "bridge", "up")
            ip("-n", node, "addr", "add", f"10.99.0.{n + 1}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")
            ip("-n", node, "link", "set", "lo", "up")
        yield _NODES
    finally:
        for name in (_SWITCH, *_NODES):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_that_loses_power_takes_the_others_down_within_seconds(
    tmp_path: Path, small_set: str, small_val: str, nodes: list[str], victim: int
) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    shared = {"MASTER_ADDR": "10.99.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth0"}
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", node, *command("train", str(recipe), *LONG, "--run-dir", str(run_dir))],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, node in enumerate(nodes)
    ]
    try:
        wait_until_running(run_dir, 20)
        # Both ends keep their carrier: no kernel learns of it, as when a node loses power.
        ip("-n", _SWITCH, "link", "set", "bridge", "down")
        began = time.monotonic()
        ranks[victim].kill()
        code = ranks[1 - victim].wait(90)
        took = time.monotonic() - began
    finally:
        outputs = end_all(ranks)
    print(f"rank {victim}'s node lost its power: the other rank left after {took:.1f}s with exit code {code}")
    assert code == 70, outputs
    assert "is gone: no collective can complete" in outputs[1 - victim]
    assert took < 20
    if victim == 1:
        status = history.read(run_dir).status
        assert status is not None
        assert (status.status, status.reason) == ("failed", "rank 1 is gone")
