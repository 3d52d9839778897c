"""Attempts of a run on this machine, one after another, until it is done or gets nowhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.log import log
from vit_dist.core.rundir import RunDir, Status
from vit_dist.core.units import format_seconds

_MARKER = "COMMITTED.json"
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
    """How one attempt ended.

    Attributes:
        code: its exit code.
        status: what it said last, if anything.
        gained: steps that are saved now and were not before.
        lost: steps that were done, as far as is known, and are not saved.
        seconds: how long it took.
    """

    code: int
    status: Status | None
    gained: int
    lost: int
    seconds: float

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


def newest_step(run_dir: Path) -> int:
    """The step of the newest committed checkpoint; 0 where there is none."""
    steps = (p.parent.name.removeprefix("step-") for p in (run_dir / "checkpoints").glob(f"step-*/{_MARKER}"))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def supervise(
    recipe: Recipe,
    run_dir: Path,
    attempt: Callable[[Recipe, Path], int],
    *,
    give_up_after: int,
    pause_s: float = 1.0,
) -> int:
    """Start attempts until the run is done, is stopped on request, or does not get on.

    Progress is counted in steps saved, never by exit codes: a run that is killed often but gets on is let be.

    Args:
        recipe: of the run.
        run_dir: of the run.
        attempt: starts one attempt and waits for it; returns its exit code.
        give_up_after: attempts in a row that save nothing new.
        pause_s: before the attempt after one without progress; doubles with each.

    Returns:
        0 where the run is done or was stopped, else the exit code of the last attempt.

    Raises:
        RunError: given up; says why the attempts ended.
    """
    directory, idle, causes = RunDir(run_dir), 0, list[str]()
    while True:
        number, before, began = len(causes) + 1, newest_step(run_dir), time.monotonic()
        code = attempt(recipe, run_dir)
        status, saved = directory.status(), newest_step(run_dir)
        reached = status.step if status is not None else saved
        ended = Ended(code, status, saved - before, max(0, reached - saved), time.monotonic() - began)
        causes.append(ended.cause)
        log(
            f"attempt {number}: {ended.cause}, after {format_seconds(ended.seconds)}; at step {reached:,}, saved up to "
            f"{saved:,}: gained {ended.gained:,} steps, lost {ended.lost:,}"
        )
        if code == 0 or code in _FINAL:
            return code
        idle = 0 if ended.gained > 0 else idle + 1
        if idle >= give_up_after:
            raise RunError(
                f"{run_dir}: given up: {idle} attempts in a row have saved no new step (--give-up-after "
                f"{give_up_after}); they ended thus: {'; '.join(dict.fromkeys(causes[-idle:]))}. What was saved, up to "
                f"step {saved:,}, is whole; mend the cause and start again"
            )
        if idle:
            time.sleep(min(60.0, pause_s * 2 ** (idle - 1)))
