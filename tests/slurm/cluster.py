"""The `slurm` fixture's cluster: a real Slurm from slurm/dev-cluster, clean before and after each test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.places import ROOT

SCRIPT = ROOT / "slurm" / "dev-cluster" / "dev_cluster.py"


def dev_cluster() -> ModuleType:
    """slurm/dev-cluster/dev_cluster.py as a module; its directory's name is no name of a package."""
    if "dev_cluster" not in sys.modules:
        spec = importlib.util.spec_from_file_location("dev_cluster", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["dev_cluster"] = module
        spec.loader.exec_module(module)
    return sys.modules["dev_cluster"]


@contextlib.contextmanager
def running_cluster(**options: Any) -> Iterator[Any]:
    """A cluster for the length of a block. It goes even where this process is killed.

    Where Slurm is not installed the test is skipped, and says so.
    """
    tool = dev_cluster()
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        try:
            cluster = tool.up(Path(folder), first_job=random.randrange(1, 50_000), **options)
        except tool.DevClusterError as error:
            if "not found" not in str(error):
                raise
            pytest.skip(f"SLURM is not installed: {error}")
        guard = subprocess.Popen(
            [sys.executable, str(SCRIPT), "down", "--dir", folder, "--after", str(os.getpid())],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield cluster
        finally:
            guard.kill()
            guard.wait()
            cluster.down()
        assert not cluster.processes()


def wait_for(what: str, ready: Callable[[], Any], timeout: float = 120, detail: Callable[[], str] = str) -> Any:
    """Poll until `ready()` is true, and return what it gave; fails with `what` and `detail()` after `timeout`."""
    deadline = time.monotonic() + timeout
    while not (found := ready()):
        assert time.monotonic() < deadline, f"not within {timeout:.0f}s: {what}\n{detail()}"
        time.sleep(0.05)
    return found


def job_processes(cluster: Any) -> dict[int, str]:
    """What belongs to jobs: everything of the cluster but its daemons."""
    daemons = ("slurmctld", "slurmd ", ": slurmscriptd", "munged")
    return {pid: line for pid, line in cluster.processes().items() if not line.startswith(daemons)}


def settle(cluster: Any) -> None:
    """End all jobs, bring back all nodes, and wait until every node is idle.

    Raises:
        AssertionError: processes of a job outlive it.
    """
    cluster.start_controller()
    for node in cluster.nodes:
        cluster.revive(node)
    with contextlib.suppress(subprocess.SubprocessError):
        cluster.run("scancel", "--user", str(os.getuid()), "--full", timeout=30)

    def quiet() -> bool:
        left = cluster.run("squeue", "-h", "-o", "%i %T", check=False).stdout.split()
        if left:
            cluster.run("scancel", "--user", str(os.getuid()), check=False)  # one may have been lost in a requeue
        return not left and not job_processes(cluster)

    try:
        wait_for("no job and no process of one", quiet, 60, lambda: str(job_processes(cluster)))
    finally:
        for pid in job_processes(cluster):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        states = cluster.node_states()
        for node, state in states.items():
            if state.startswith(("drain", "drng", "down")):
                cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        wait_for(
            "all nodes idle",
            lambda: set(cluster.node_states().values()) == {"idle"},
            60,
            lambda: f"{cluster.node_states()}\n{cluster.logs()}",
        )
