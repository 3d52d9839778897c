"""The cluster of the tests itself: it starts jobs, loses nodes, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import SCRIPT, dev_cluster, job_processes, running_cluster, wait_for

pytestmark = pytest.mark.slurm


def submit(cluster, folder: Path, body: str, *options: str) -> str:
    script = folder / "job.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    return cluster.run("sbatch", "--parsable", "-o", str(folder / "%x-%j.out"), *options, str(script)).stdout.strip()


def test_a_node_is_killed_with_all_that_it_runs_and_can_be_revived(slurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "srun /bin/sleep 600", "-N2", "--requeue")
    wait_for("both tasks run", lambda: sum(p == "/bin/sleep 600" for p in job_processes(slurm).values()) == 2)
    assert slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.split() == ["n[1-2]"]
    slurm.kill("n2")
    assert slurm.daemon("n2") is None
    assert not slurm.processes("n2")
    assert slurm.daemon("n1") is not None
    assert "/bin/sleep 600" in slurm.processes("n1").values()
    slurm.revive("n2")
    assert slurm.daemon("n2") is not None
    slurm.run("scancel", job)
    wait_for("no process of the job is left", lambda: not job_processes(slurm))


def test_daemons_killed_alone_leave_the_tasks_running(slurm, tmp_path: Path) -> None:
    submit(slurm, tmp_path, "sleep 600", "-N1", "-w", "n3")
    wait_for("the job runs", lambda: "sleep 600" in job_processes(slurm).values())
    slurm.kill("n3", orphans=True)
    assert "sleep 600" in slurm.processes("n3").values()
    slurm.kill("n3")
    assert not slurm.processes("n3")


def test_a_cluster_ends_when_the_tests_are_killed(tmp_path: Path) -> None:
    code = (
        "from tests.slurm.cluster import running_cluster\n"
        "import sys, time\n"
        "with running_cluster(nodes=1) as cluster:\n"
        "    print(cluster.dir, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with running_cluster(nodes=1):  # skips where there is no Slurm
        pass
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    cluster = dev_cluster().DevCluster(Path(process.stdout.readline().strip()))
    assert cluster.processes()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_for("the cluster is gone", lambda: not cluster.processes(), 60)


def test_wrong_arguments_say_what_to_do(tmp_path: Path) -> None:
    def fails(*arguments: str) -> str:
        done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "start one with `up`" in fails("status", "--dir", str(tmp_path))
    assert "at least 1" in fails("up", "--dir", str(tmp_path), "--nodes", "0")
    assert "give a shorter one with --dir" in fails("up", "--dir", str(tmp_path / ("x" * 80)))
    assert "no space" in fails("up", "--dir", "/tmp/a b")
