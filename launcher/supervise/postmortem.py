"""The end of an attempt whose supervisor could not write it, from what Slurm and the files still say."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from launcher.slurm import commands as slurm
from launcher.slurm.allocation import Allocation, lost_nodes
from launcher.supervise.attempts import close_entry, describe_end
from launcher.supervise.ledger import LedgerEntry, read_ledger
from vit_dist.core.errors import VitDistError
from vit_dist.core.log import log
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir


def close_left_open(run_dir: Path, allocation: Allocation) -> list[LedgerEntry]:
    """Close an attempt whose supervisor died with its node or was killed. Returns the ledger."""
    entries = read_ledger(run_dir)
    for entry in [e for e in entries if e.open]:
        cause, detail, action = _post_mortem(entry, allocation)
        status = RunDir(run_dir).status()
        # An older one is of the attempt before.
        status = status if status is not None and status.time >= entry.begun else None
        # It ended at its last trace, not now: the time in the queue since then must not count as device-hours.
        last_trace = max([entry.begun, *([status.time] if status else []), *_written(run_dir, entry)])
        closed = close_entry(
            run_dir,
            entry,
            cause=cause,
            action=action,
            code=1,
            status=status,
            detail=detail,
            at=min(last_trace, time.time()),
        )
        shown = f"{cause.replace('_', ' ')} ({detail})"
        log(f"  {describe_end(closed, shown)}; its own supervisor could not write this")
    return read_ledger(run_dir)


def _post_mortem(entry: LedgerEntry, allocation: Allocation) -> tuple[str, str, str]:
    """Cause, detail and action of an attempt that could not write its end."""
    if entry.launcher != "slurm" or not entry.job:
        return "crashed", "its supervisor was killed", "none"
    same = entry.job == allocation.job
    lost = lost_nodes(entry.nodes, tcp_probe=True)
    if lost:
        nodes = "; ".join(f"{node} {why}" for node, why in lost.items())
        return "node_lost", nodes, "requeue" if same else "none"
    state = _state_of(entry)
    by_state = {
        "NODE_FAIL": ("node_lost", "Slurm says NODE_FAIL"),
        "PREEMPTED": ("preempted", "killed at the end of the grace time"),
        "TIMEOUT": ("time_limit", "killed by Slurm at the time limit"),
        "CANCELLED": ("cancelled", "killed by Slurm"),
        "OUT_OF_MEMORY": ("crashed", "out of memory"),
    }
    cause, detail = by_state.get(state, ("", ""))
    if cause:
        return cause, detail, "requeue" if same else "none"
    if same and allocation.restart > entry.restart:
        return "preempted", "Slurm ended it and queued the job again", "requeue"
    return "crashed", "its supervisor was killed", "none"


def _state_of(entry: LedgerEntry) -> str:
    """How Slurm says the job ended in which an attempt ran; '' where it does not know."""
    with contextlib.suppress(VitDistError):
        starts = slurm.accounting(entry.job, patience_s=5)
        # Accounting has a line for each start of a requeued job: of those before the attempt the last is its own, give
        # or take two seconds between the clocks of controller and node.
        before = [j for j in starts or [] if j.start is not None and j.start <= entry.begun + 2]
        if before:
            return before[-1].state
    with contextlib.suppress(VitDistError):
        job = slurm.job(entry.job, patience_s=5)
        if job is not None and job.ended:
            return job.state
    return ""


def _written(run_dir: Path, entry: LedgerEntry) -> list[float]:
    """When the logs of an attempt were last written."""
    times = []
    for path in (run_dir / names.LOGS / names.attempt_folder(entry.attempt)).glob("*.log"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return times
