"""The end of an attempt whose supervisor could not write it, from what Slurm and the files still say."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.slurm import commands as slurm
from launcher.slurm.allocation import Allocation, lost_nodes
from launcher.supervise.attempts import close_entry, describe_end
from launcher.supervise.causes import QUEUED_AGAIN
from vit_dist.core.errors import VitDistError
from vit_dist.core.log import log
from vit_dist.core.run import history, names
from vit_dist.core.run.history import Attempt


def close_left_open(run_dir: Path, allocation: Allocation) -> Sequence[Attempt]:
    """Close an attempt whose supervisor died with its node or was killed. Returns all attempts."""
    state = history.read(run_dir)
    # One that nobody supervised is its ranks' own to close.
    for entry in [e for e in state.attempts if e.open and e.launcher]:
        cause, detail, action = _post_mortem(entry, allocation, (entry.attempt, entry.job) in state.requeues)
        status = state.status_of(entry.attempt)
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
    return history.read(run_dir).attempts


def _post_mortem(entry: Attempt, allocation: Allocation, on_request: bool) -> tuple[str, str, str]:
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
        return (*QUEUED_AGAIN[on_request], "requeue")
    return "crashed", "its supervisor was killed", "none"


def _state_of(entry: Attempt) -> str:
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


def _written(run_dir: Path, entry: Attempt) -> list[float]:
    """When the logs of an attempt were last written."""
    times = []
    for path in (run_dir / names.LOGS / names.attempt_folder(entry.attempt)).glob("*.log"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return times
