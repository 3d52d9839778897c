"""The state of a run, folded out of its events by one pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vit_dist.core.run.history.events import (
    AGAIN,
    CLOSING,
    ENDED,
    LATER,
    NEW,
    OF_THE_RUN,
    QUEUED,
    SUBMITTED,
    SUBMITTING,
    TRANSITIONS,
    Event,
)


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


def fold(events: Iterable[Event], heartbeat: Progress | None = None) -> State:
    """The state that events lead to.

    Args:
        events: in any order; of equal place (see Event) in that of their lines.
        heartbeat: the last one.
    """
    phase, known, findings = NEW, dict[str, Any](), list[str]()
    attempts, refused = dict[int, Attempt](), dict[int, Attempt]()
    # In which a run stood before the attempt in hand, and before the submission that led to it.
    before = NEW
    for event in sorted(events, key=lambda event: event.place):
        if event.attempt in refused and event.kind not in (*OF_THE_RUN, "submitted"):
            # The first word on its end counts.
            continue
        after = _phase_after(phase, attempts, event)
        if after is None:
            findings.append(f"{event.kind!r} of attempt {event.attempt} cannot have been: the run was {phase!r}")
            continue
        if _begins(event, attempts) and phase not in _HANDED_OVER:
            before = phase
        _learn(known, attempts, phase, event)
        phase = after
        if _stands_as_before(attempts, before):
            number, one = attempts.popitem()
            refused[number], phase = one, before
    known["progress"] = _furthest(known.get("progress", Progress()), heartbeat, attempts)
    known |= {"findings": tuple(findings), "refused": tuple(refused.values())}
    return State(phase=phase, attempts=tuple(attempts.values()), **known)


_HANDED_OVER = (SUBMITTING, SUBMITTED)
"""Phases between what a run was and the attempt that a job begins for it."""


def _begins(event: Event, attempts: Mapping[int, Attempt]) -> bool:
    """Whether an event begins something new: an attempt, or the handing over of a job for one."""
    return event.kind in OF_THE_RUN or (event.kind in LATER and event.attempt not in attempts)


def _stands_as_before(attempts: dict[int, Attempt], before: str) -> bool:
    """Whether the newest attempt did not begin, so that the run is what it was.

    A first one is all that there is to tell of its run. One of a sequence is the end of that: what its supervisor meant
    to follow does not.
    """
    newest = next(reversed(attempts.values()), None)
    return newest is not None and newest.did_not_begin and len(attempts) > 1 and before not in (AGAIN, QUEUED)


def _phase_after(phase: str, attempts: dict[int, Attempt], event: Event) -> str | None:
    """The phase that an event leads to; None where it cannot come now."""
    last = next(reversed(attempts), 0)
    if event.kind in OF_THE_RUN:
        return OF_THE_RUN[event.kind]
    if event.attempt > last and event.kind in LATER:
        return LATER[event.kind]
    # Of an attempt without a beginning.
    if event.attempt != last and event.kind != "submitted":
        return None
    leads_to = TRANSITIONS.get((phase, event.kind))
    if leads_to is not None and event.kind == "closed" and len(leads_to) > 1:
        return CLOSING[str(event.facts.get("action", "none"))]
    return leads_to[0] if leads_to is not None else None


def _learn(known: dict[str, Any], attempts: dict[int, Attempt], phase: str, event: Event) -> None:
    """Take in what an event says, into fields of the state and into its attempt."""
    facts, number = event.facts, event.attempt
    if event.kind == "submitting":
        known |= {"submission": facts, "submitted_at": event.at, "submitted_job": ""}
    elif event.kind == "submitted":
        known["submitted_job"] = str(facts["job"])
    elif event.kind == "requeue":
        known["requeues"] = (*known.get("requeues", ()), (number, str(facts.get("job", ""))))
    elif event.kind == "begun":
        attempts[number] = _begun(event)
    elif event.kind == "opened":
        attempts[number] = _opened(attempts.get(number), event)
    elif event.kind == "training":
        # What it was opened with may be of no use, and what it was restored from may have come from a store.
        since = int(facts.get("step", attempts[number].step))
        attempts[number] = replace(attempts[number], trained=True, step=since)
    elif event.kind == "ended" and phase != ENDED:
        attempts[number] = _ended(attempts[number], event)
        if not attempts[number].refused or len(attempts) == 1:
            known["progress"] = Progress.of({**facts, "attempt": number})
    elif event.kind == "closed" and phase not in CLOSING.values():
        attempts[number] = _closed(attempts[number], event)


def _begun(event: Event) -> Attempt:
    facts = event.facts
    return Attempt(
        attempt=event.attempt,
        begun=event.at,
        launcher=str(facts.get("launcher", "local")),
        job=str(facts.get("job", "")),
        restart=int(facts.get("restart", 0)),
        nodes=tuple(facts.get("nodes", ())),
        devices=int(facts.get("devices", 1)),
        step=int(facts.get("step", 0)),
        host=str(facts.get("host", "")),
        pid=int(facts.get("pid", 0)),
    )


def _opened(begun: Attempt | None, event: Event) -> Attempt:
    facts = event.facts
    host, pid = str(facts.get("host", "")), int(facts.get("pid", 0))
    if begun is not None:
        return replace(begun, host=host, pid=pid, opened=True)
    return Attempt(
        event.attempt,
        event.at,
        launcher="",
        nodes=(host,) if host else (),
        devices=int(facts.get("ranks", 1)),
        step=int(facts.get("step", 0)),
        host=host,
        pid=pid,
        opened=True,
    )


INVALID = "invalid"
"""The cause of an attempt that was asked for what cannot be."""
_CAUSE_OF = {"done": "done", "stopped": "stopped", "failed": "crashed", "killed": "killed"}


def _ended(one: Attempt, event: Event) -> Attempt:
    facts = event.facts
    told, reason, reached = str(facts.get("status", "killed")), str(facts.get("reason", "")), int(facts.get("step", 0))
    saved = int(facts.get("saved", 0))
    refused = facts.get("refused") is True and not one.trained
    one = replace(one, told=told, reason=reason, reached=reached, refused=refused)
    if one.launcher:
        return one
    # Nobody supervises it: the word of its ranks is all there is.
    at = float(facts.get("time", event.at)) if told == "killed" else event.at
    return replace(
        one,
        ended=at,
        cause=INVALID if refused else _CAUSE_OF[told],
        detail=reason,
        code=int(told in {"failed", "killed"}),
        saved=saved,
        gained=max(0, saved - one.step),
        lost=max(0, reached - saved),
        device_hours=round(one.devices * max(0.0, at - one.begun) / 3600, 6),
        action="none",
    )


def _closed(one: Attempt, event: Event) -> Attempt:
    facts = event.facts
    return replace(
        one,
        ended=event.at,
        cause=str(facts.get("cause", "")),
        detail=str(facts.get("detail", "")),
        code=int(facts.get("code", 0)),
        reached=int(facts.get("step", 0)),
        saved=int(facts.get("saved", 0)),
        gained=int(facts.get("gained", 0)),
        lost=int(facts.get("lost", 0)),
        device_hours=float(facts.get("device_hours", 0.0)),
        action=str(facts.get("action", "none")),
        excluded=tuple(facts.get("excluded", ())),
    )


def _furthest(known: Progress, heartbeat: Progress | None, attempts: Mapping[int, Attempt]) -> Progress:
    """What is known last: the heartbeat of an attempt that has not ended by its own word, else what that word says."""
    if heartbeat is None:
        return known
    told = attempts[known.attempt].told if known.attempt in attempts else ""
    # It ended as it should: the sums it wrote then are exact, those of the heartbeat before are not.
    if heartbeat.attempt < known.attempt or (heartbeat.attempt == known.attempt and told not in {"", "killed"}):
        return known
    return heartbeat
