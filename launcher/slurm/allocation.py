"""The nodes of a job: which are fit to run on, which are gone, and where rank 0 is reached."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from launcher import bad_nodes
from launcher.slurm import commands as slurm
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.log import log
from vit_dist.core.network import is_free

LOST_KEEP_S = 3600.0
"""How long other jobs stay away from a node that was lost: Slurm itself keeps one that is down out of use."""
_CONNECT_S = 3.0


@dataclass(frozen=True)
class Allocation:
    """The job that this process is the batch script of.

    Attributes:
        job: its number; '120_3' for an element of an array.
        number: its own number, which for the last element of an array is the array's.
        restart: how often Slurm has started it again.
        nodes: all that it has, in Slurm's order.
    """

    job: str
    number: int
    restart: int
    nodes: tuple[str, ...]

    @property
    def numbers(self) -> frozenset[str]:
        """Both of its numbers, as people may write them."""
        return frozenset({self.job, str(self.number)})

    def slurm_job(self) -> slurm.Job | None:
        """What Slurm shows of it now; None where it does not answer."""
        # The signal that ends this job also hits the commands that it has just started: those are tried again at once.
        for _ in range(3):
            try:
                return slurm.job(self.job, patience_s=10)
            except VitDistError as error:
                problem = error
        log(f"  supervisor: Slurm cannot be asked about job {self.job}: {problem}")
        return None


def read_allocation(environ: Mapping[str, str] | None = None) -> Allocation:
    """The allocation of the surrounding job.

    Raises:
        ConfigError: there is none.
    """
    env = os.environ if environ is None else environ
    if "SLURM_JOB_ID" not in env:
        raise ConfigError(
            "`vit-dist supervise` is the last line of a job script and runs inside a Slurm job; use `vit-dist submit`, "
            "or `vit-dist run` on this machine"
        )
    job = env["SLURM_JOB_ID"]
    if env.get("SLURM_ARRAY_TASK_ID"):
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    nodes = slurm.hostnames(env.get("SLURM_JOB_NODELIST", ""))
    return Allocation(job, int(env["SLURM_JOB_ID"]), int(env.get("SLURM_RESTART_COUNT") or 0), tuple(nodes))


def lost_nodes(nodes: Sequence[str], *, tcp_probe: bool) -> dict[str, str]:
    """Those of the nodes that are gone, each with what is known.

    Args:
        nodes: to look at.
        tcp_probe: also try to reach their daemons: Slurm takes minutes to call a node down. Where none of them can be
            reached, as behind a firewall, that proves nothing about any of them.
    """
    if not nodes:
        return {}
    listed = ",".join(nodes)
    lost: dict[str, str] = {}
    with contextlib.suppress(VitDistError):
        # A node that is being drained keeps its jobs running: only those that are gone count.
        for node, reason in slurm.down_nodes(listed, patience_s=10).items():
            if not reason.lower().startswith(("drain", "draining", "fail")) or "*" in reason:
                lost[node] = f"is {reason}"
    if tcp_probe:
        with contextlib.suppress(VitDistError):
            addresses = slurm.node_addresses(listed, patience_s=10)
            with ThreadPoolExecutor(16) as pool:
                answers = dict(zip(addresses, pool.map(_answers, addresses.values()), strict=True))
            if any(answers.values()):
                lost = {**{n: "does not answer" for n, there in answers.items() if not there}, **lost}
    return {node: lost[node] for node in nodes if node in lost}


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def choose(allocation: Allocation, wanted: int, run_root: Path, gone: Mapping[str, str]) -> list[str] | None:
    """The nodes of the next attempt, in Slurm's order: none that is gone; ones on the list of bad nodes last.

    Returns:
        None where too few are left.
    """
    listed: Mapping[str, bad_nodes.BadNode] = {}
    with contextlib.suppress(VitDistError):
        listed = bad_nodes.active(run_root)
    left = [node for node in allocation.nodes if node not in gone]
    # Python's sort is stable: among the good ones, and among the bad, Slurm's order stays.
    left.sort(key=lambda node: node in listed)
    if len(left) < wanted:
        return None
    taken = left[:wanted]
    for node in taken:
        if node in listed:
            log(f"  supervisor: {node} is on the list of bad nodes ({listed[node].reason}), but no other is left")
    # In Slurm's order again: srun numbers tasks by it, and rank 0 must be on the first of these nodes (MASTER_ADDR).
    return [node for node in allocation.nodes if node in taken]


def remember_lost(run_root: Path, lost: Mapping[str, str], run: str) -> None:
    """Put nodes that were lost on the list for a while."""
    for node, what in lost.items():
        try:
            bad_nodes.add(run_root, node, f"lost by run {run}: {what}", keep_s=LOST_KEEP_S)
        except VitDistError as error:
            log(f"  supervisor: {error}")


def to_avoid(run_root: Path, before: str, needed: int) -> list[str]:
    """Nodes that the job must not get when it starts again; empty where it could then not start at all.

    Args:
        run_root: where the list of bad nodes is.
        before: nodes excluded by a person or the cluster file, folded.
        needed: how many nodes the job asks for.
    """
    excluded = slurm.hostnames(before)
    try:
        bad = [node for node in bad_nodes.active(run_root) if node not in excluded]
        states = slurm.node_states(patience_s=10)
    except VitDistError as error:
        log(f"  supervisor: no node is excluded: {error}")
        return []
    free = [
        node
        for node, (state, _) in states.items()
        if node not in bad and node not in excluded and not state.lower().startswith(("down", "drain", "fail"))
    ]
    if bad and len(free) < needed:
        log(f"  supervisor: {', '.join(bad)} should be avoided, but {needed} nodes are needed and {len(free)} left")
        return []
    return bad


def port_for(allocation: Allocation, attempt: int, first_node: str) -> int:
    """A port for rank 0, not that of the attempt before; one that is free where rank 0 will be on this very node."""
    # From the job's number, so that jobs which share a node differ; another for each attempt, for ranks of the attempt
    # before may still hold theirs, or a closed connection of it be in TIME_WAIT.
    port = 20000 + (allocation.number * 16 + attempt) % 10000
    if os.environ.get("SLURMD_NODENAME") != first_node:
        return port
    return next((candidate for candidate in range(port, port + 200) if is_free(candidate)), port)
