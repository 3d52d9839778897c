"""The beginning and the end of an attempt, as its supervisor writes them, here and under Slurm alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.run.history import Attempt, Status
from vit_dist.core.units import counted, format_seconds


def open_entry(
    run_dir: Path, *, launcher: str, devices: int, job: str = "", restart: int = 0, nodes: Sequence[str] = ()
) -> Attempt:
    """Begin the next attempt.

    Raises:
        RunError: the history cannot be read or written.
    """
    step = newest_step(run_dir)
    return history.begin(run_dir, launcher=launcher, devices=devices, step=step, job=job, restart=restart, nodes=nodes)


def began_from(run_dir: Path, entry: Attempt) -> int:
    """The step that an attempt went on from, as its ranks say: that may have come from a store, to an empty directory.

    Raises:
        RunError: the history cannot be read.
    """
    known = history.read(run_dir).attempt(entry.attempt)
    return entry.step if known is None else known.step


def close_entry(
    run_dir: Path,
    entry: Attempt,
    *,
    cause: str,
    action: str,
    code: int,
    status: Status | None,
    detail: str = "",
    excluded: Sequence[str] = (),
    at: float | None = None,
    give_up: Callable[[Attempt], bool] = lambda _: False,
) -> Attempt:
    """Write the end of an attempt, with what it gained and lost.

    `give_up` is asked, with the attempt as it ended, before the run is started or queued again.

    Raises:
        RunError: the history cannot be read or written.
    """
    saved = newest_step(run_dir)
    reached = status.step if status is not None else saved
    # `give_up` looks at the attempt as it will stand in the history, for its action is part of the same line.
    since = began_from(run_dir, entry)
    ended = replace(entry, cause=cause, step=since, saved=saved, gained=max(0, saved - since))
    if action in {"respawn", "requeue"} and give_up(ended):
        action = "give_up"
    return history.close(
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


def describe_end(entry: Attempt, cause: str) -> str:
    """One line for people about an attempt that has ended."""
    spent = format_seconds((entry.ended or entry.begun) - entry.begun)
    return (
        f"attempt {entry.attempt}: {cause}, after {spent}; at step {entry.reached:,}, saved up to {entry.saved:,}: "
        f"gained {counted(entry.gained, 'step')}, lost {entry.lost:,}"
    )


def pause_before(idle: int, pause_s: float) -> float:
    """Seconds to wait before the attempt after `idle` ones without progress."""
    return min(60.0, pause_s * 2 ** (idle - 1)) if idle else 0.0
