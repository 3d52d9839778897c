"""What can become of a run: the events of its history, and in which phase each may come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_dist.core.run.records import is_job, is_job_number, is_nodes
from vit_dist.core.small_files import (
    Check,
    is_count,
    is_flag,
    is_mapping,
    is_number,
    is_numbers,
    is_objects,
    is_text,
    is_time,
)

NEW, SUBMITTING, SUBMITTED = "new", "submitting", "submitted"
BEGUN, OPENED, TRAINING, ENDED = "begun", "opened", "training", "ended"
AGAIN, QUEUED, CLOSED = "again", "queued", "closed"
PHASES: Mapping[str, str] = {
    NEW: "nothing was begun",
    SUBMITTING: "a job is being handed to Slurm",
    SUBMITTED: "Slurm has a job for it, which has begun no attempt",
    BEGUN: "a supervisor starts the ranks of an attempt",
    OPENED: "its ranks own the directory, and restore",
    TRAINING: "it trains",
    ENDED: "its ranks have said how it ended, or are known to have been killed",
    AGAIN: "its supervisor has closed it, and starts the next one",
    QUEUED: "its supervisor has closed it, and its job is put back into the queue",
    CLOSED: "its supervisor has closed it, and nothing follows",
}

LATER: Mapping[str, str] = {"begun": BEGUN, "opened": OPENED}
"""Events that begin a later attempt, in any phase: the attempt before may have been killed without a word."""
OF_THE_RUN: Mapping[str, str] = {"submitting": SUBMITTING}
"""Events between attempts, in any phase."""
CLOSING: Mapping[str, str] = {"respawn": AGAIN, "requeue": QUEUED, "none": CLOSED, "give_up": CLOSED}
"""Where `closed` leads, by what its supervisor did then."""
TRANSITIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    (SUBMITTING, "submitted"): (SUBMITTED,),
    (BEGUN, "opened"): (OPENED,),
    (OPENED, "training"): (TRAINING,),
    (OPENED, "ended"): (ENDED,),
    (TRAINING, "ended"): (ENDED,),
    # An older attempt, or a supervisor on a node that was given up for dead, may live on and speak late: the first
    # word counts.
    (ENDED, "ended"): (ENDED,),
    **{(phase, "closed"): (AGAIN, QUEUED, CLOSED) for phase in (BEGUN, OPENED, TRAINING, ENDED)},
    **{(phase, "closed"): (phase,) for phase in (AGAIN, QUEUED, CLOSED)},
    **{(phase, "requeue"): (phase,) for phase in PHASES},
}
"""What else may come in which phase, of the attempt in hand, and where that leads. Anything else is a finding."""

STAGES = {
    "begun": 0,
    "opened": 1,
    "training": 2,
    "requeue": 3,
    "ended": 4,
    "closed": 5,
    "submitting": 6,
    "submitted": 6,
}
"""The order of an attempt's events, and of what comes between it and the next: submissions as they were written, since
there may be several, in one file."""

CAUSES = (
    "done",
    "stopped",
    "time_limit",
    "preempted",
    "requeued",
    "node_lost",
    "cancelled",
    "crashed",
    "hung",
    "rank_lost",
    "invalid",
    "superseded",
    "start_failed",
)
"""Why an attempt ended, as its supervisor says."""
ACTIONS = tuple(CLOSING)
"""What the supervisor did then."""


def is_one_of(*words: str) -> Check:
    """One of these texts."""
    return lambda value: isinstance(value, str) and value in words


TOLD: Mapping[str, Check] = {
    "status": is_one_of("done", "stopped", "failed", "killed"),
    "reason": is_text,
    "saved": is_count,
    "refused": is_flag,
}
"""How an attempt ended, as its ranks say; `refused`: what it was asked for cannot be, so that it did not begin."""
PROGRESS: Mapping[str, Check] = {
    "attempt": is_count,
    "time": is_time,
    "step": is_count,
    "examples": is_count,
    "total_steps": is_count,
    "examples_per_s": is_number,
    "goodput": is_numbers,
    "metrics": is_numbers,
    "stall": is_text,
}
"""What alive.json holds."""
OWNER: Mapping[str, Check] = {
    "token": is_text,
    "attempt": is_count,
    "host": is_text,
    "pid": is_count,
    "time": is_time,
}
"""What owner.json holds."""
FIELDS: Mapping[str, Mapping[str, Check]] = {
    "submitting": {
        "after": is_count,
        "cluster": is_text,
        "cluster_file": is_text,
        "script": is_text,
        "recipe": is_text,
        "cwd": is_text,
        "nodes": is_count,
        "devices_per_node": is_count,
        "spares": is_count,
    },
    "submitted": {"after": is_count, "job": is_job_number},
    "requeue": {"attempt": is_count, "job": is_job_number},
    "begun": {
        "attempt": is_count,
        "launcher": is_text,
        "job": is_job,
        "restart": is_count,
        "nodes": is_nodes,
        "devices": is_count,
        "step": is_count,
        "host": is_text,
        "pid": is_count,
    },
    "opened": {
        "attempt": is_count,
        "token": is_text,
        "host": is_text,
        "pid": is_count,
        "ranks": is_count,
        "step": is_count,
    },
    "training": {"attempt": is_count, "step": is_count},
    "ended": {**PROGRESS, **TOLD},
    "closed": {
        "attempt": is_count,
        "cause": is_text,
        "detail": is_text,
        "code": is_number,
        "step": is_count,
        "saved": is_count,
        "gained": is_count,
        "lost": is_count,
        "device_hours": is_number,
        "action": is_one_of(*CLOSING),
        "excluded": is_nodes,
    },
    "evaluated": {"step": is_count, "evaluators": is_objects, "values": is_mapping, "tags": is_mapping},
}
"""Fields of an event, by its kind; each may be missing, and those of later versions may stand beside them."""
NEEDS: Mapping[str, tuple[str, ...]] = {"submitting": ("after",), "submitted": ("after", "job"), "evaluated": ()}
"""Fields that an event cannot do without; where not named here: its attempt."""


@dataclass(frozen=True)
class Event:
    """One line of a history.

    Attributes:
        kind: a key of FIELDS.
        attempt: that it is of, or that came before it.
        at: when it was written, seconds since 1970, by the clock of its writer. Nothing is ordered by it.
        facts: the fields of its kind.
    """

    kind: str
    attempt: int
    at: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> tuple[int, int]:
        """What events are ordered by; of equal ones the earlier line comes first."""
        return self.attempt, STAGES[self.kind]
