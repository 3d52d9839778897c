"""The end of an attempt whose supervisor could not write it: what the next one finds out."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from launcher.slurm import commands as slurm
from launcher.slurm.allocation import Allocation, lost_nodes
from launcher.supervise.attempts import close_entry, told
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
        status = status if status is not None and status.time >= entry.begun else None
        seen = max([entry.begun, *([status.time] if status else []), *_written(run_dir, entry)])
        closed = close_entry(
            run_dir, entry, cause=cause, action=action, code=1, status=status, detail=detail, at=min(seen, time.time())
        )
        words = f"{cause.replace('_', ' ')} ({detail})"
        log(f"  {told(closed, words)}; it could not say so itself")
    return read_ledger(run_dir)


def _post_mortem(entry: LedgerEntry, allocation: Allocation) -> tuple[str, str, str]:
    """Cause, detail and action of an attempt that could not write its end."""
    if entry.launcher != "slurm" or not entry.job:
        return "crashed", "its supervisor was killed", "none"
    same = entry.job == allocation.job
    lost = lost_nodes(entry.nodes, tcp_probe=True)
    if lost:
        what = "; ".join(f"{node} {why}" for node, why in lost.items())
        return "node_lost", what, "requeue" if same else "none"
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
        runs = slurm.accounting(entry.job, patience_s=5)
        fitting = [j for j in runs or [] if j.start is not None and j.start <= entry.begun + 2]
        if fitting:
            return fitting[-1].state
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
