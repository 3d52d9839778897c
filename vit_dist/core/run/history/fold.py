"""From the events of a run to its state, by one pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
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
from vit_dist.core.run.history.state import INVALID, Attempt, Progress, State


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
