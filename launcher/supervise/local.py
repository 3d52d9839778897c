"""Attempts of a run on this machine, one after another, until it is done or gets nowhere; and their ledger."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.causes import cause_of_code, newest_step
from launcher.ledger import LedgerEntry, append_begin, append_end, read_ledger
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.log import log
from vit_dist.core.rundir import RunDir, Status
from vit_dist.core.units import format_seconds

CAUSES = {
    1: "failed",
    ConfigError.exit_code: "was asked for something impossible",
    70: "lost a rank",
    71: "hung",
    72: "was taken over by another attempt",
    130: "was interrupted",
    143: "was terminated before it could save",
}
"""What an exit code of an attempt means; above 128 it is 128 + the signal that a rank died of."""
_FINAL = frozenset({ConfigError.exit_code, 72, 130, 143})


@dataclass(frozen=True)
class Ended:
    """How one attempt ended: its exit code, and what it said last, if anything."""

    code: int
    status: Status | None

    @property
    def cause(self) -> str:
        """Why it ended, for people."""
        said = self.status is not None and self.status.status in {"failed", "stopped", "done"}
        reason = f": {self.status.reason}" if said and self.status is not None and self.status.reason else ""
        if self.code == 0:
            return f"{self.status.status if self.status else 'ended'}{reason}"
        if self.code > 128 and self.code not in CAUSES:
            return f"killed by signal {self.code - 128}"
        return f"{CAUSES.get(self.code, f'exit code {self.code}')}{reason}"


def open_entry(
    run_dir: Path, *, launcher: str, devices: int, job: str = "", restart: int = 0, nodes: Sequence[str] = ()
) -> LedgerEntry:
    """Begin the next attempt in the ledger.

    Raises:
        RunError: the ledger cannot be written.
    """
    tried = [entry.attempt for entry in read_ledger(run_dir)]
    tried += [int(line.get("attempt", 0)) for line in RunDir(run_dir).attempts()]  # the ranks' own count
    number = 1 + max(tried, default=0)
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


def own_status(run_dir: Path, before: Status | None) -> Status | None:
    """What the attempt that has just ended said last; None where it never came to speak."""
    status = RunDir(run_dir).status()
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


def told(entry: LedgerEntry, words: str) -> str:
    """One line for people about an attempt that has ended."""
    spent = format_seconds((entry.ended or entry.begun) - entry.begun)
    return (
        f"attempt {entry.attempt}: {words}, after {spent}; at step {entry.reached:,}, saved up to {entry.saved:,}: "
        f"gained {entry.gained:,} steps, lost {entry.lost:,}"
    )


def pause_before(idle: int, pause_s: float) -> float:
    """Seconds to wait before the attempt after `idle` ones without progress."""
    return min(60.0, pause_s * 2 ** (idle - 1)) if idle else 0.0


def supervise(
    recipe: Recipe,
    run_dir: Path,
    attempt: Callable[[Recipe, Path], int],
    *,
    give_up_after: int,
    pause_s: float = 1.0,
    devices: int = 1,
) -> int:
    """Start attempts until the run is done, is stopped on request, or does not get on.

    Progress is counted in steps saved, never by exit codes: a run that is killed often but gets on is let be.

    Args:
        recipe: of the run.
        run_dir: of the run.
        attempt: starts one attempt and waits for it; returns its exit code.
        give_up_after: attempts in a row that save nothing new.
        pause_s: before the attempt after one without progress; doubles with each.
        devices: ranks of an attempt, for the ledger.

    Returns:
        0 where the run is done or was stopped, else the exit code of the last attempt.

    Raises:
        RunError: given up (says why the attempts ended), or another attempt runs there.
    """
    directory, idle, causes = RunDir(run_dir), 0, list[str]()
    directory.check_free()  # or the open line of the attempt that runs would be taken for one that died
    _close_left_open(run_dir)
    while True:
        before = directory.status()
        entry = open_entry(run_dir, launcher="local", devices=devices, nodes=[socket.gethostname()])
        code = attempt(recipe, run_dir)
        status = own_status(run_dir, before)
        ended, cause = Ended(code, directory.status()), cause_of_code(code, status)
        gained = newest_step(run_dir) > entry.step
        final = code == 0 or code in _FINAL
        idle = 0 if gained else idle + 1
        action = "none" if final else "give_up" if idle >= give_up_after else "respawn"
        entry = close_entry(
            run_dir, entry, cause=cause, action=action, code=code, status=status, detail=status.reason if status else ""
        )
        causes.append(ended.cause)
        log(told(entry, ended.cause))
        if final:
            return code
        if action == "give_up":
            raise RunError(
                f"{run_dir}: given up: {idle} attempts in a row have saved no new step (--give-up-after "
                f"{give_up_after}); they ended thus: {'; '.join(dict.fromkeys(causes[-idle:]))}. What was saved, up to "
                f"step {entry.saved:,}, is whole; mend the cause and start again"
            )
        time.sleep(pause_before(idle, pause_s))


def _close_left_open(run_dir: Path) -> None:
    """Close what a supervisor that was killed left open; not what may be running in a job."""
    entries = read_ledger(run_dir)
    if not entries or not entries[-1].open or entries[-1].launcher != "local":
        return
    status = RunDir(run_dir).status()
    seen = status.time if status is not None and status.time > entries[-1].begun else entries[-1].begun
    detail = "its supervisor was killed with it, or before it"
    close_entry(run_dir, entries[-1], cause="crashed", action="none", code=1, status=status, detail=detail, at=seen)
