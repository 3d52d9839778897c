"""Preflight with real probes: healthy, slow, hung and dead nodes; on this machine and on a real Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from launcher import bad_nodes
from launcher.preflight.run import PreflightOptions, examine_here
from tests.conftest import command
from tests.slurm.cluster import wait_for
from vit_dist.data.manifest import read_manifest
from vit_dist.data.readrate import places

pytestmark = pytest.mark.distributed


def probe_of(node: str) -> int | None:
    """The process of the probe that stands for a node, among our children."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if f"VIT_DIST_NODE={node}".encode() in environment and b"vit_dist.train.health.node_probe" in line:
                return int(pid)
    return None


@contextmanager
def meanwhile(work: Any) -> Iterator[None]:
    """Do something to a probe while the block runs."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_machine_that_is_fit_passes_and_its_shards_are_read(small_set: str) -> None:
    reads = tuple(places(read_manifest(small_set)))
    report = examine_here(1, PreflightOptions(reads=reads))
    assert report.ok, report
    figures = report.nodes[0].figures
    assert figures["gemm"] > 1e6
    assert figures["reads"] > 0
    assert figures["shm_free"] > 0


def has_torch(pid: int) -> bool:
    """It is past its start."""
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


def test_a_slow_and_a_dead_probe_are_named_and_nobody_waits_for_them() -> None:
    """Node 1 gets a tenth of the time, node 2 is killed. Slow is below 0.4: other work makes no node so slow."""

    def torment(over: threading.Event) -> None:
        slow = wait_for("a probe", lambda: probe_of("process 1"))
        dead = wait_for("a probe", lambda: probe_of("process 2"))
        wait_for("torch", lambda: has_torch(slow) and has_torch(dead))
        os.kill(dead, signal.SIGKILL)
        with suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(slow, signal.SIGSTOP)
                time.sleep(0.3)
                os.kill(slow, signal.SIGCONT)
                time.sleep(0.03)

    with meanwhile(torment):
        report = examine_here(4, PreflightOptions(timeout_s=120, silence_s=20, slow=0.4))
    assert {n.node: n.verdict for n in report.nodes} == {
        "process 0": "ok",
        "process 1": "slow",
        "process 2": "sick",
        "process 3": "ok",
    }, report
    assert "fell silent during" in report.bad["process 2"]
    assert "matrix product at" in report.bad["process 1"]


@pytest.mark.drill
def test_a_probe_that_hangs_in_the_all_reduce_is_named_and_the_others_are_not() -> None:
    def stop_it(over: threading.Event) -> None:
        pid = wait_for("a probe", lambda: probe_of("process 1"))
        wait_for("threads of the process group", lambda: _in_group(pid) or over.is_set())
        os.kill(pid, signal.SIGSTOP)

    with meanwhile(stop_it):
        report = examine_here(3, PreflightOptions(timeout_s=90, silence_s=6))
    assert list(report.bad) == ["process 1"], report
    assert "fell silent during the all-reduce" in report.bad["process 1"]


def _in_group(pid: int) -> bool:
    names = [p.read_text().strip() for p in Path(f"/proc/{pid}/task").glob("*/comm")]
    return any("gloo" in name or "pt_gloo" in name for name in names)


@pytest.mark.slurm
def test_nodes_of_a_real_slurm_are_tested_and_the_hung_one_goes_to_the_list(slurm: Any, tmp_path: Path) -> None:
    arguments = [
        "preflight",
        "--nodes",
        "3",
        "--cluster",
        "dev",
        "--run-root",
        str(tmp_path),
        "--json",
        "--slow",
        "0.01",
    ]
    process = subprocess.Popen(
        command(*arguments, "--silence", "8"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        probes = wait_for(
            "a probe on n2",
            lambda: [p for p, line in slurm.processes("n2").items() if "vit_dist.train.health.node_probe" in line],
            detail=slurm.logs,
        )
        for pid in probes:
            os.kill(pid, signal.SIGSTOP)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    report = json.loads(out)
    assert process.returncode == 1, err
    assert {n["node"]: n["verdict"] for n in report["nodes"]} == {"n1": "ok", "n2": "sick", "n3": "ok"}, report
    assert list(bad_nodes.active(tmp_path)) == ["n2"]
    # the links between those that are left were tested all the same
    assert "links" in report["nodes"][0]["figures"]
