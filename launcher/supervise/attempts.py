"""The beginning and the end of an attempt in the ledger, here and under Slurm alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.supervise.ledger import LedgerEntry, append_begin, append_end, read_ledger
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.run.directory import RunDir, Status
from vit_dist.core.units import format_seconds


def open_entry(
    run_dir: Path, *, launcher: str, devices: int, job: str = "", restart: int = 0, nodes: Sequence[str] = ()
) -> LedgerEntry:
    """Begin the next attempt in the ledger.

    Raises:
        RunError: the ledger cannot be written.
    """
    number = _next_number(run_dir)
    append_begin(
        run_dir,
        attempt=number,
        launcher=launcher,
        devices=devices,
        step=newest_step(run_dir),
        job=job,
        restart=restart,
        nodes=nodes,
    )
    return next(entry for entry in reversed(read_ledger(run_dir)) if entry.attempt == number)


def number_in_hand(run_dir: Path) -> int:
    """Number of the attempt that a supervisor of this machine has begun in the ledger, or else of the next one."""
    entries = read_ledger(run_dir)
    if entries and entries[-1].open and entries[-1].launcher == "local":
        return entries[-1].attempt
    return _next_number(run_dir)


def _next_number(run_dir: Path) -> int:
    tried = [entry.attempt for entry in read_ledger(run_dir)]
    # The ranks count for themselves (attempts.jsonl), also where nobody supervises them: a number must not come twice.
    tried += [int(line.get("attempt", 0)) for line in RunDir(run_dir).attempts()]
    return 1 + max(tried, default=0)


def own_status(run_dir: Path, before: Status | None) -> Status | None:
    """The last status of the attempt that has just ended; None where it wrote none.

    Args:
        run_dir: of the run.
        before: status.json as it stood before the attempt began.
    """
    status = RunDir(run_dir).status()
    # Unchanged: what stands there is the word of an earlier attempt, and says nothing of this one.
    if status is None or (before is not None and (status.attempt, status.time) == (before.attempt, before.time)):
        return None
    return status


def close_entry(
    run_dir: Path,
    entry: LedgerEntry,
    *,
    cause: str,
    action: str,
    code: int,
    status: Status | None,
    detail: str = "",
    excluded: Sequence[str] = (),
    at: float | None = None,
    give_up: Callable[[LedgerEntry], bool] = lambda _: False,
) -> LedgerEntry:
    """Write the end of an attempt into the ledger, with what it gained and lost.

    `give_up` is asked, with the attempt as it ended, before the run is started or queued again.

    Raises:
        RunError: the ledger cannot be written.
    """
    saved = newest_step(run_dir)
    reached = status.step if status is not None else saved
    # `give_up` looks at the attempt as it will stand in the ledger, for its action is part of the same line.
    ended = replace(entry, cause=cause, saved=saved, gained=max(0, saved - entry.step))
    if action in {"respawn", "requeue"} and give_up(ended):
        action = "give_up"
    return append_end(
        run_dir,
        entry,
        cause=cause,
        action=action,
        code=code,
        reached=reached,
        saved=saved,
        detail=detail,
        excluded=excluded,
        at=at,
    )


def describe_end(entry: LedgerEntry, cause: str) -> str:
    """One line for people about an attempt that has ended."""
    spent = format_seconds((entry.ended or entry.begun) - entry.begun)
    return (
        f"attempt {entry.attempt}: {cause}, after {spent}; at step {entry.reached:,}, saved up to {entry.saved:,}: "
        f"gained {entry.gained:,} steps, lost {entry.lost:,}"
    )


def pause_before(idle: int, pause_s: float) -> float:
    """Seconds to wait before the attempt after `idle` ones without progress."""
    return min(60.0, pause_s * 2 ** (idle - 1)) if idle else 0.0
