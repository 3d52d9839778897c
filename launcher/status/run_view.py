"""How one run stands, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.slurm.commands import Job
from vit_dist.core.run.history import ACTIVE, Attempt


@dataclass(frozen=True)
class RunView:
    """How one run stands.

    Attributes:
        state: one of STANDINGS, see core/run/history.
        reason: why, for people; may be empty.
        advice: what to do next, a sentence or command each.
        step, total_steps, examples: where it stands; total_steps 0 where that is not known.
        rate: examples a second; 0 where not known.
        eta_s: seconds of training that are left; None where not known or nothing is left.
        goodput: seconds of all attempts by what they went into.
        saved, saved_at: newest checkpoint and when it was committed.
        seen: last heartbeat, seconds since 1970; 0 before the first.
        job: what Slurm says, where it knows the job.
        job_id: its number, also where Slurm has dropped it or is not here.
        attempts: oldest first; of a table of many runs the last ones alone.
        tries: how many attempts there were.
        logged: whether an attempt has left logs, and whether its supervisor has.
        metrics: what was measured last.
        evaluated: what `vit-dist evaluate` measured last, by tag: step and value; of one run alone, not in a table.
        branched_from: of a branch, the runs it has grown from, in words; '' of any other.
        stall: what training waits for, of a run that trains; '' where it hardly waits.
        request: asked for by a person, not served yet.
        problems: what is damaged.
    """

    path: Path
    state: str
    reason: str = ""
    advice: tuple[str, ...] = ()
    step: int = 0
    total_steps: int = 0
    examples: int = 0
    rate: float = 0.0
    eta_s: float | None = None
    goodput: Mapping[str, float] = field(default_factory=dict)
    saved: int | None = None
    saved_at: float = 0.0
    seen: float = 0.0
    job: Job | None = None
    job_id: str = ""
    cluster: str = ""
    devices: int = 0
    attempts: tuple[Attempt, ...] = ()
    tries: int = 0
    logged: tuple[bool, bool] = (False, False)
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluated: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    branched_from: str = ""
    stall: str = ""
    request: str = ""
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name

    @property
    def fraction_done(self) -> float | None:
        """From 0 to 1; None where the length is not known."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else None

    @property
    def useful(self) -> float | None:
        """Fraction of all time that went into steps the run still has."""
        total = sum(self.goodput.values())
        return self.goodput.get("train", 0.0) / total if total > 0 else None

    @property
    def active(self) -> bool:
        """A job or a process works on it, or waits to."""
        return self.state in ACTIVE
