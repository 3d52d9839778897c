"""Tests every node of an allocation before training does, and names the slow and the sick. No torch here.

A probe (vit_dist/train/health/node_probe.py) runs on every node; this side sends commands, reads messages and keeps the
time. A probe that never starts, dies, hangs or is cut off is one whose heartbeat stops: it is named, and nobody waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher import bad_nodes
from launcher.preflight.coordinator import Coordinator, PreflightOptions
from launcher.preflight.processes import ProbeProcesses
from launcher.preflight.report import PreflightReport, compare_nodes
from launcher.slurm import commands as slurm
from launcher.slurm.cluster import Cluster
from vit_dist.core.errors import RunError
from vit_dist.core.process import NODE_PROBE_MODULE

__all__ = [
    "PreflightOptions",
    "PreflightReport",
    "examine_cluster",
    "examine_here",
    "examine_nodes",
    "in_allocation",
    "put_on_list",
]


def probe_command(options: PreflightOptions, python: Sequence[str] = (sys.executable,)) -> list[str]:
    """The command line of a probe."""
    lifetime = 2 * options.timeout_s + 60
    reads = ["--reads", json.dumps(options.reads)] if options.reads else []
    return [*python, "-m", NODE_PROBE_MODULE, "--timeout", f"{lifetime:.0f}", *reads]


def examine_here(nodes: int, options: PreflightOptions) -> PreflightReport:
    """Test this machine: one probe, or several that stand for nodes."""
    names = ["this machine"] if nodes == 1 else [f"process {i}" for i in range(nodes)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // nodes))
    commands = []
    for rank, name in enumerate(names):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "VIT_DIST_NODE": name}
        commands.append((probe_command(options), {"OMP_NUM_THREADS": threads, **os.environ, **own}))
    return _examine(commands, names, 1, options)


def examine_nodes(
    nodes: Sequence[str],
    per_node: int,
    options: PreflightOptions,
    srun: Sequence[str] = ("srun", "--mpi=none"),
    python: Sequence[str] = (sys.executable,),
) -> PreflightReport:
    """Test nodes of the allocation that this process runs in.

    Args:
        nodes: their names in Slurm.
        per_node: probes on each: one a GPU, or 1.
        options: how.
        srun: the srun command that training would use, without what it starts; options that must differ are added.
        python: the interpreter on the nodes, with what stands before it (`apptainer exec IMAGE python3`).

    Raises:
        RunError: srun cannot be started.
    """
    own = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "VIT_DIST_NODE", "SLURM_EXPORT_ENV"}
    environment = {k: v for k, v in os.environ.items() if k not in own}
    step = [f"--nodes={len(nodes)}", f"--ntasks={len(nodes) * per_node}", f"--ntasks-per-node={per_node}"]
    # srun takes the last of an option that is given twice. No task may end the others, for which of them are missing
    # is the question; hence no kill on a bad exit, no limit on stragglers, and no end where a node dies.
    step += [f"--nodelist={','.join(nodes)}", "--unbuffered", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"]
    command = [*srun, "--overlap", *step, *probe_command(options, python)]
    return _examine([(command, environment)], nodes, per_node, options)


def _examine(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]],
    nodes: Sequence[str],
    per_node: int,
    options: PreflightOptions,
) -> PreflightReport:
    began = time.monotonic()
    with contextlib.closing(ProbeProcesses(commands)) as probes:
        coordinator = Coordinator(probes, nodes, per_node, options)
        remarks = coordinator.run()
        results = [coordinator.result(node) for node in nodes]
    return compare_nodes(results, remarks, options.slow, options.max_skew_s, time.monotonic() - began)


def put_on_list(report: PreflightReport, run_root: Path, keep_s: float) -> list[str]:
    """Put the slow and the sick on the list of bad nodes; their names."""
    bad = [node for node in report.nodes if node.verdict != "ok"]
    for node in bad:
        bad_nodes.add(run_root, node.node, f"preflight: {node.verdict}: {'; '.join(node.reasons)}", keep_s=keep_s)
    return [node.node for node in bad]


def examine_cluster(cluster: Cluster, nodes: Sequence[str], options: PreflightOptions) -> PreflightReport:
    """Test nodes of this allocation with what a job on this cluster would run: its tasks, CPUs, container.

    Raises:
        RunError: srun cannot be started.
    """
    # As in slurm/_srun.sbatch.j2: the links between GPUs are tested as training will use them.
    bind = ["--gpu-bind=none"] if cluster.devices_per_node and cluster.device_option != "none" else []
    srun = ["srun", f"--cpus-per-task={cluster.cpus_per_task}", *bind, *cluster.srun_options]
    python = [cluster.python or sys.executable]
    # The test runs in the training's own container: its libraries are what is to be tested.
    box = cluster.container
    if box is not None and box.runtime == "pyxis":
        mounts = [f"--container-mounts={','.join(box.mounts)}"] if box.mounts else []
        srun += [f"--container-image={box.image}", *mounts, *box.options]
        python = [box.python]
    elif box is not None:
        binds = [word for mount in box.mounts for word in ("--bind", mount)]
        nvidia = ["--nv"] if cluster.devices_per_node else []
        python = ["apptainer", "exec", *nvidia, *binds, *box.options, box.image, box.python]
    return examine_nodes(nodes, cluster.tasks, options, srun, python)


def in_allocation(nodes: int, cluster: Cluster | None, command: Sequence[str]) -> int:
    """Run a command in a new allocation of so many nodes, and wait for it; its exit code.

    Raises:
        RunError: Slurm gives no allocation.
    """
    options = [f"--nodes={nodes}", "--job-name=vit-dist-preflight", "--quiet", "--time=30"]
    if cluster is not None:
        choices = {
            "partition": cluster.partition,
            "account": cluster.account,
            "qos": cluster.qos,
            "constraint": cluster.constraint,
            "reservation": cluster.reservation,
            "exclude": cluster.exclude,
        }
        options += [f"--{name}={value}" for name, value in choices.items() if value]
        options += [f"--ntasks-per-node={cluster.tasks}", f"--cpus-per-task={cluster.cpus_per_task}"]
        kind = f"{cluster.device_kind}:" if cluster.device_kind else ""
        if cluster.devices_per_node and cluster.device_option == "gpus-per-node":
            options.append(f"--gpus-per-node={kind}{cluster.devices_per_node}")
        elif cluster.devices_per_node and cluster.device_option == "gres":
            options.append(f"--gres=gpu:{kind}{cluster.devices_per_node}")
        options += ["--exclusive"] if cluster.exclusive else []
        options += cluster.sbatch_options
    environment = {**slurm.environment(), **(cluster.env if cluster else {})}
    try:
        return subprocess.run(["salloc", *options, *command], env=environment, check=False).returncode
    except FileNotFoundError:
        raise slurm.NoSlurmError(
            "salloc: not on the PATH, so there is no Slurm here; `vit-dist preflight --local` tests this machine"
        ) from None
    except OSError as error:
        raise RunError(f"salloc: cannot be started: {error.strerror}") from None
