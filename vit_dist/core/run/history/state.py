"""The state of a run, as its events lead to it (fold.py): how far it is, and its attempts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_dist.core.run.history.events import NEW, SUBMITTED, SUBMITTING

INVALID = "invalid"
"""The cause of an attempt that was asked for what cannot be."""


@dataclass(frozen=True)
class Progress:
    """How far an attempt is.

    Attributes:
        attempt: its number.
        time: when this was so, seconds since 1970.
        step: optimizer steps completed.
        examples: examples consumed.
        total_steps: length of the run; 0 where that is not known yet.
        examples_per_s: at the last log.
        goodput: where the time of all attempts went, in seconds (see train/progress/goodput.py).
        metrics: what was measured last, by the tags of the event files.
        stall: what training waits for, for people; '' where it hardly waits.
    """

    attempt: int = 0
    time: float = 0.0
    step: int = 0
    examples: int = 0
    total_steps: int = 0
    examples_per_s: float = 0.0
    goodput: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    stall: str = ""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Progress:
        """Out of the fields of alive.json or of an event `ended`."""
        return cls(**{name: facts[name] for name in cls.__dataclass_fields__ if name in facts})


@dataclass(frozen=True)
class Status(Progress):
    """An attempt's own word on how it stands.

    Attributes:
        status: 'starting', 'running', 'done', 'stopped' (on request, to be continued), 'failed', or 'killed' (a later
            attempt has found it gone, without a word).
        reason: why it stopped or failed.
        host, pid: of its rank 0.
    """

    status: str = ""
    reason: str = ""
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    Attributes:
        attempt: number of the attempt in the run (1-based).
        begun: when, seconds since 1970.
        launcher: 'slurm' or 'local', which tells its supervisor; '' where nobody supervises it.
        job: Slurm's number, '120_3' for an element of an array; '' without Slurm.
        restart: how often Slurm had started that job again.
        nodes: on which it ran.
        devices: its ranks, one a device.
        step: up to which the run was saved when it began.
        ended: when; None while it is open.
        cause: one of CAUSES, or 'killed' of one that nobody supervised; '' while it is open.
        detail: more about that, for people.
        code: exit code of its ranks.
        reached: the last step that it is known to have done.
        saved: up to which step the run was saved when it ended.
        gained, lost: steps saved by it, steps done by it and not saved.
        device_hours: what it cost.
        action: one of ACTIONS; '' while it is open.
        excluded: nodes that the next attempt stays away from.
        host, pid: of its rank 0 once its ranks have opened the directory, before that of its supervisor.
        opened, trained: whether its ranks have got so far.
        told: how it ended, as its ranks say (see Status); '' before that.
        reason: more about that.
        refused: whether they say that it was asked for what cannot be.
    """

    attempt: int
    begun: float
    launcher: str = "local"
    job: str = ""
    restart: int = 0
    nodes: tuple[str, ...] = ()
    devices: int = 1
    step: int = 0
    ended: float | None = None
    cause: str = ""
    detail: str = ""
    code: int = 0
    reached: int = 0
    saved: int = 0
    gained: int = 0
    lost: int = 0
    device_hours: float = 0.0
    action: str = ""
    excluded: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    opened: bool = False
    trained: bool = False
    told: str = ""
    reason: str = ""
    refused: bool = False

    @property
    def did_not_begin(self) -> bool:
        """Whether it was asked for what cannot be, before it trained, and everybody who speaks of it has said so."""
        return not self.trained and (self.cause == INVALID if self.launcher else self.refused)

    @property
    def open(self) -> bool:
        """True until its end is written, by its supervisor where it has one."""
        return self.ended is None


@dataclass(frozen=True)
class State:
    """How the history of a run says that it stands.

    Attributes:
        phase: see PHASES.
        attempts: oldest first; the last ones alone where only the ends of the files were read. Without those that were
            refused: a run stands as it stood before them, unless it was nothing before.
        refused: attempts that were, oldest first.
        submission: facts of the last submission; empty for a run that was never submitted.
        submitted_at: when that was, seconds since 1970.
        submitted_job: its number; '' where it has none yet.
        progress: of the last attempt whose ranks have opened the directory, or that has left some trace.
        requeues: (attempt, job) of each time a person put a job back into the queue.
        findings: what is damaged, and what cannot have been.
        cancel: what the file `cancel` says: a job's number, '*' for whatever job there is, '' for none.
        request: what a person has asked for and nobody has served yet: 'save', 'stop' or ''.
    """

    phase: str = NEW
    attempts: tuple[Attempt, ...] = ()
    refused: tuple[Attempt, ...] = ()
    submission: Mapping[str, Any] = field(default_factory=dict)
    submitted_at: float = 0.0
    submitted_job: str = ""
    progress: Progress = Progress()
    requeues: tuple[tuple[int, str], ...] = ()
    findings: tuple[str, ...] = ()
    cancel: str = ""
    request: str = ""

    @property
    def last(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def newest(self) -> int:
        """The highest number that an attempt has had, one that was refused too; 0 before the first."""
        return max((one.attempt for one in (*self.attempts[-1:], *self.refused[-1:])), default=0)

    @property
    def next_attempt(self) -> int:
        """Number of the attempt that a supervisor begins next."""
        return self.newest + 1

    @property
    def last_refusal(self) -> Attempt | None:
        """The newest attempt where it was refused, so that the run stands as before it; None where it was not."""
        return self.refused[-1] if self.refused and self.refused[-1].attempt == self.newest else None

    @property
    def next_opened(self) -> int:
        """Number of the attempt whose ranks come next: the one that a supervisor has begun for them, if any."""
        last = self.last
        return last.attempt if last is not None and last.open and not last.opened else self.next_attempt

    @property
    def job_id(self) -> str:
        """Number of the last job; '' for a run that never had one."""
        return self.submitted_job or (self.attempts[-1].job if self.attempts else "")

    @property
    def in_job(self) -> bool:
        """Whether a job has the run in hand, as far as the history goes, and nobody on a machine of their own."""
        last = self.last
        return self.phase in (SUBMITTING, SUBMITTED) or (last is not None and bool(last.job))

    @property
    def cancelled(self) -> bool:
        """Whether a person has cancelled the last job."""
        return is_asked_for(self.cancel, {self.job_id}) if self.job_id else False

    @property
    def last_seen(self) -> float:
        """The last heartbeat of any attempt, seconds since 1970; 0 before the first."""
        return self.progress.time

    @property
    def status(self) -> Status | None:
        """The word of the last attempt whose ranks have spoken; None before the first."""
        last = next((one for one in reversed(self.attempts) if one.opened), None)
        return None if last is None else self._status(last, self.progress)

    def attempt(self, number: int) -> Attempt | None:
        """The attempt with a number, also one that was refused."""
        return next((one for one in (*reversed(self.attempts), *self.refused) if one.attempt == number), None)

    def status_of(self, number: int) -> Status | None:
        """An attempt's own word; None where it never trained, and did not say why."""
        one = self.attempt(number)
        if one is None or not (one.trained or one.told):
            return None
        own = self.progress.attempt == number
        return self._status(one, self.progress if own else Progress(step=max(one.reached, one.step)))

    @staticmethod
    def _status(one: Attempt, known: Progress) -> Status:
        word = one.told or ("running" if one.trained else "starting")
        fields = {name: getattr(known, name) for name in Progress.__dataclass_fields__}
        fields |= {"attempt": one.attempt, "time": fields["time"] or one.begun}
        return Status(**fields, status=word, reason=one.reason, host=one.host, pid=one.pid)


def is_asked_for(cancel: str, jobs: Iterable[str]) -> bool:
    """Whether a request to cancel means a job that has these numbers."""
    return cancel == "*" or (bool(cancel) and cancel in jobs)
