"""Attempts of a run on this machine, one after another, until it is done or gets nowhere; and their history."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.supervise.attempts import began_from, close_entry, describe_end, open_entry, pause_before
from launcher.supervise.causes import cause_of_code
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import RunError
from vit_dist.core.exit_codes import (
    ASKED,
    FAILED,
    FINAL,
    HUNG,
    INTERRUPTED,
    INVALID,
    PEER_LOST,
    SUPERSEDED,
    TERMINATED,
    WARNED,
    signal_of,
)
from vit_dist.core.log import log
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.history import Status
from vit_dist.core.units import counted

CODE_MEANINGS = {
    FAILED: "failed",
    INVALID: "was asked for something impossible",
    PEER_LOST: "lost a rank",
    HUNG: "hung",
    SUPERSEDED: "was superseded by a later attempt",
    INTERRUPTED: "was interrupted",
    TERMINATED: "was terminated before it could save",
    WARNED: "was asked to stop before it had begun",
}
"""What an exit code of an attempt means; of a signal it says which."""


@dataclass(frozen=True)
class AttemptEnd:
    """How one attempt ended: its exit code, and the last status it wrote, if any."""

    code: int
    status: Status | None

    @property
    def saved_on_request(self) -> bool:
        """Whether it has obeyed a signal, and saved: its code is that of the signal."""
        return self.code in ASKED and self.status is not None and self.status.status == "stopped"

    @property
    def cause(self) -> str:
        """Why it ended, for people."""
        # One that still says `running` was killed: the reason there, if any, is not that of its end.
        final = self.status is not None and self.status.status in {"failed", "stopped", "done"}
        reason = f": {self.status.reason}" if final and self.status is not None and self.status.reason else ""
        if self.code == 0 or self.saved_on_request:
            return f"{self.status.status if self.status else 'ended'}{reason}"
        if self.code not in CODE_MEANINGS and (number := signal_of(self.code)) is not None:
            return f"killed by signal {number}"
        return f"{CODE_MEANINGS.get(self.code, f'exit code {self.code}')}{reason}"


def supervise_local(
    recipe: Recipe,
    run_dir: Path,
    attempt: Callable[[Recipe, Path], int],
    *,
    give_up_after: int,
    pause_s: float = 1.0,
    devices: int = 1,
) -> int:
    """Start attempts until the run is done, is stopped on request, or does not get on.

    Progress is counted in steps saved, never by exit codes: a run that is killed often but gets on may go on for ever.

    Args:
        recipe: of the run.
        run_dir: of the run.
        attempt: starts one attempt and waits for it; returns its exit code.
        give_up_after: attempts in a row that save nothing new.
        pause_s: before the attempt after one without progress; doubles with each.
        devices: ranks of an attempt, for the history.

    Returns:
        0 where the run is done or was stopped by a request, else the exit code of the last attempt.

    Raises:
        RunError: given up (says why the attempts ended), or another attempt runs there.
    """
    idle, causes = 0, list[str]()
    # Before the history is looked at: the open entry of an attempt that runs would be taken for one that died.
    RunDir(run_dir).check_free()
    _close_left_open(run_dir)
    while True:
        entry = open_entry(run_dir, launcher="local", devices=devices, nodes=[socket.gethostname()])
        code = attempt(recipe, run_dir)
        status = history.read(run_dir).status_of(entry.attempt)
        ended = AttemptEnd(code, status)
        cause = "stopped" if ended.saved_on_request else cause_of_code(code, status)
        gained = newest_step(run_dir) > began_from(run_dir, entry)
        final = code == 0 or code in FINAL
        idle = 0 if gained else idle + 1
        action = "none" if final else "give_up" if idle >= give_up_after else "respawn"
        entry = close_entry(
            run_dir, entry, cause=cause, action=action, code=code, status=status, detail=status.reason if status else ""
        )
        causes.append(ended.cause)
        log(describe_end(entry, ended.cause))
        if final:
            return code
        if action == "give_up":
            raise RunError(
                f"{run_dir}: given up: {counted(idle, 'attempt')} in a row have saved no new step (--give-up-after "
                f"{give_up_after}); they ended thus: {'; '.join(dict.fromkeys(causes[-idle:]))}. The checkpoints "
                f"are intact, up to step {entry.saved:,}; mend the cause and start again"
            )
        time.sleep(pause_before(idle, pause_s))


def _close_left_open(run_dir: Path) -> None:
    """Close what a supervisor that was killed left open; not what may be running in a job."""
    state = history.read(run_dir)
    last = state.last
    if last is None or not last.open or last.launcher != "local":
        return
    status = state.status_of(last.attempt)
    last_trace = status.time if status is not None and status.time > last.begun else last.begun
    detail = "its supervisor was killed with it, or before it"
    close_entry(run_dir, last, cause="crashed", action="none", code=1, status=status, detail=detail, at=last_trace)
