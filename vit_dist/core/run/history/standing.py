"""How a run stands, in one word: by its history, its job in Slurm, and whether its process or heartbeat lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit_dist.core.run.history.events import (
    AGAIN,
    BEGUN,
    CLOSED,
    ENDED,
    NEW,
    OPENED,
    QUEUED,
    SUBMITTED,
    SUBMITTING,
    TRAINING,
)
from vit_dist.core.run.history.state import Attempt, State
from vit_dist.core.run.names import SILENT_S
from vit_dist.core.units import format_seconds

STANDINGS = {
    "new": "nothing was begun",
    "submitted": "its job was handed to Slurm, which cannot be asked now",
    "waiting": "in the queue; the note says why and when it is expected to start",
    "starting": "the job has nodes, or its supervisor lives; training has not begun",
    "running": "it trains",
    "ending": "the attempt has ended, its job decides what follows",
    "done": "at its last step",
    "stopped": "saved and ended on request; `resume` starts from there",
    "cancelled": "ended on request without a save",
    "failed": "the last attempt failed and nothing follows",
    "given up": "attempts in a row saved nothing new",
    "lost": "it says it runs or waits, but its job or process is gone",
    "silent": "the same, as far as can be known from this machine",
}
"""The words, and what each means."""
ACTIVE = ("running", "starting", "ending", "waiting", "submitted")
"""Of a run that a job or a process works on, or waits to."""


@dataclass(frozen=True)
class JobWord:
    """What Slurm says of a run's job.

    Attributes:
        known: 'unasked' (it could not be), 'gone' (Slurm does not know it), 'waiting', 'active' or 'ended'.
        reason: why it waits; or how it ended, for people.
        start: when it began to run, seconds since 1970; 0 where that is not known.
        restarts: how often it was put back into the queue; None where that is not known.
        cancelled: it ended by scancel.
    """

    known: Literal["unasked", "gone", "waiting", "active", "ended"] = "unasked"
    reason: str = ""
    start: float = 0.0
    restarts: int | None = None
    cancelled: bool = False


def stands(state: State, job: JobWord, now: float) -> tuple[str, str]:
    """How a run stands: one of STANDINGS, and why.

    Args:
        state: by its history.
        job: what Slurm says of the job with the number `state.job_id`.
        now: seconds since 1970.
    """
    word, why = _standing(state, job, now)
    refusal = state.last_refusal
    if refusal is None or word in ACTIVE or word == "done":
        return word, why
    said = (refusal.detail or refusal.reason).strip().partition("\n")[0]
    return word, f"{why}{'; ' if why else ''}attempt {refusal.attempt} was refused{f': {said}' if said else ''}"


def _standing(state: State, job: JobWord, now: float) -> tuple[str, str]:
    # The run's own word goes first where it is `done`; all others are held against the job, since the run may not have
    # lived to write down what Slurm has done to it.
    status = state.status
    if status is not None and status.status == "done":
        return "done", status.reason
    if job.known == "waiting":
        return "waiting", job.reason
    if job.known == "active":
        return _in_active_job(state, job)
    if not state.in_job:
        return _here(state, now)
    if job.known == "unasked" and state.job_id:
        return _unasked(state, now)
    return _job_ended(state, job, now)


def words_of(cause: str, detail: str) -> str:
    """A cause and its detail, for people."""
    plain = cause.replace("_", " ")
    return plain if not detail or detail == plain else detail if cause in detail else f"{plain}: {detail}"


def _in_active_job(state: State, job: JobWord) -> tuple[str, str]:
    last = state.last
    if last is None or state.phase in (SUBMITTED, SUBMITTING) or not _of_this_start(state, last, job):
        return "starting", ""
    if state.phase in (ENDED, AGAIN, QUEUED, CLOSED):
        return "ending", (last.cause or last.told).replace("_", " ")
    return ("running" if state.phase == TRAINING else "starting"), ""


def _of_this_start(state: State, last: Attempt, job: JobWord) -> bool:
    """Whether the last attempt is of the job's current start, and not of one before it was put back into the queue."""
    if job.restarts is not None and last.launcher and last.restart < job.restarts:
        return False
    seen = last.ended or max(last.begun, state.last_seen if state.progress.attempt == last.attempt else 0.0)
    # Clocks of two machines.
    return seen >= job.start - 1.0


def _unasked(state: State, now: float) -> tuple[str, str]:
    """Of a run in a job that Slurm cannot be asked about."""
    last = state.last
    if state.phase in (TRAINING, OPENED, BEGUN) and last is not None:
        seen = max(last.begun, state.last_seen)
        if seen > now - SILENT_S:
            return ("running" if state.phase == TRAINING else "starting"), ""
        return ("cancelled", "on request") if state.cancelled else ("silent", _ago("no heartbeat for", seen, now))
    if state.cancelled and state.phase in (SUBMITTED, SUBMITTING, AGAIN, QUEUED, ENDED):
        return "cancelled", "on request"
    if state.phase == SUBMITTED:
        return "submitted", _ago(f"as job {state.job_id},", state.submitted_at, now) + " ago"
    if state.phase == QUEUED and last is not None:
        return "submitted", f"job {state.job_id} was queued again: {words_of(last.cause, last.detail)}"
    return _by_its_word(state)


def _job_ended(state: State, job: JobWord, now: float) -> tuple[str, str]:
    """Of a run in a job that has ended, or that Slurm does not know."""
    last = state.last
    if state.phase == SUBMITTING:
        if state.submitted_at > now - SILENT_S:
            return "submitted", "it is being handed to Slurm"
        return "lost", "the submission did not come to its end; `squeue --me` shows whether it left a job"
    if state.phase in (AGAIN, CLOSED) or (state.phase == ENDED and last is not None and last.told != "killed"):
        return ("cancelled", "on request") if state.phase == ENDED and state.cancelled else _by_its_word(state)
    if state.cancelled:
        return "cancelled", "on request"
    if job.known == "ended":
        return ("cancelled", "by scancel") if job.cancelled else ("failed", job.reason)
    if state.phase == SUBMITTED:
        return "lost", f"job {state.job_id} ended before it began to train"
    if state.phase == QUEUED and last is not None:
        return "lost", f"job {state.job_id} was queued again ({words_of(last.cause, last.detail)}), and is gone"
    return "lost", f"job {state.job_id} is no longer known to Slurm"


def _by_its_word(state: State) -> tuple[str, str]:
    """Of a run whose last attempt has ended, and nothing follows."""
    last = state.last
    if last is None:
        return "new", "not yet started"
    # Where nobody supervises it, its ranks have said all that there is to say.
    if not last.cause or not last.launcher:
        return ("failed" if last.told in {"killed", ""} else last.told), last.reason
    words = last.detail or last.reason or last.cause.replace("_", " ")
    if last.action == "give_up":
        return "given up", words
    if last.cause in {"done", "stopped", "cancelled"}:
        return last.cause, "" if last.cause == "done" else words
    return "failed", words_of(last.cause, words)


def _here(state: State, now: float) -> tuple[str, str]:
    """Of a run that no job has in hand: on this machine or another."""
    last = state.last
    if last is None or state.phase == NEW:
        return "new", "not yet started"
    if state.phase in (CLOSED, QUEUED) or (state.phase == ENDED and last.told not in {"killed", ""}):
        return _by_its_word(state)
    if state.phase in (ENDED, AGAIN):
        return _by_its_word(state) if last.cause and last.cause != "killed" else ("lost", "it was killed")
    seen = max(last.begun, state.last_seen)
    active = "running" if state.phase == TRAINING else "starting"
    if last.host == socket.gethostname():
        if lives(last.pid):
            return active, ""
        return "lost", f"process {last.pid} is gone, and has left no reason"
    if seen > now - SILENT_S:
        return active, ""
    return "silent", _ago(f"on {last.host or 'another machine'}; no heartbeat for", seen, now)


def lives(pid: int) -> bool:
    """Whether a process of ours on this machine has this number."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number may have gone to another program since.
    try:
        return b"vit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def _ago(words: str, when: float, now: float) -> str:
    return f"{words} {format_seconds(max(0.0, now - when))}" if when else "no heartbeat yet"
