"""Why an attempt ended and what follows from it: pure decisions, shared by `vit-dist run` and `vit-dist supervise`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_dist.core.exit_codes import (
    BY_PERSON,
    HUNG,
    INVALID,
    NOT_THE_CAUSE,
    PEER_LOST,
    SUPERSEDED,
    WARNED,
    of_signal,
    signal_of,
)
from vit_dist.core.run.history import Attempt, Status

FUTILE = frozenset({"time_limit", "crashed", "hung", "rank_lost", "start_failed"})
"""Causes that count against a run when nothing new was saved. Losing a node or being preempted is not its fault."""
_ENDED_TASK = re.compile(
    r"^srun: error: (?P<node>[^:\s]+): tasks? (?P<tasks>[\d,\-\[\] ]+): "
    r"(?:Exited with exit code (?P<code>[0-9]{1,9})|(?P<signal>[A-Z][\w ]*?)(?: \(core dumped\))?)$",
    re.MULTILINE,
)
_SIGNALS = {"Killed": 9, "Terminated": 15, "Aborted": 6, "Segmentation fault": 11, "Bus error": 7, "Out Of Memory": 9}


QUEUED_AGAIN = {True: ("requeued", "on request"), False: ("preempted", "Slurm has queued the job again")}
"""Cause and detail where Slurm has put the job back into the queue, by whether a person wanted that."""


@dataclass(frozen=True)
class Failure:
    """The first rank that srun saw fail: where, which, and its exit code (128 + n where it died of signal n)."""

    node: str
    task: str
    code: int
    text: str


@dataclass(frozen=True)
class ExitEvidence:
    """What is known when an attempt under Slurm has ended.

    Attributes:
        code: exit code of srun.
        status: the last status that the attempt wrote; None where it wrote none.
        failure: the first rank that failed.
        asked: why the supervisor asked the ranks to save and end: 'time_limit' or ''.
        cancelled: `vit-dist cancel` was used.
        preempted: Slurm says that the job is being preempted.
        terminated: Slurm has sent SIGTERM to the batch script.
        requeued: Slurm has put the job back into the queue.
        on_request: because a person wanted that (`vit-dist requeue`).
        overdue: the job's time limit has passed.
        lost_nodes: nodes of the attempt that are gone, each with what is known.
    """

    code: int
    status: Status | None = None
    failure: Failure | None = None
    asked: str = ""
    cancelled: bool = False
    preempted: bool = False
    terminated: bool = False
    requeued: bool = False
    on_request: bool = False
    overdue: bool = False
    lost_nodes: tuple[tuple[str, str], ...] = ()


def classify(evidence: ExitEvidence) -> tuple[str, str]:
    """Cause and detail of an attempt's end under Slurm.

    The order of the questions is the point: what Slurm or a person did goes before what that made the ranks do, since a
    preempted job, one at its time limit and one that lost a node all leave the same exit codes.
    """
    status = evidence.status
    ended_as = status.status if status is not None else ""
    reason = status.reason if status is not None else ""
    # First of all: a run that has reached its horizon is done, whatever was also on its way to it.
    if evidence.code == 0 and ended_as == "done":
        return "done", ""
    if evidence.cancelled:
        return "cancelled", "on request"
    # srun ends the peers of the rank that failed first, and then returns the highest code of all.
    first = evidence.failure.code if evidence.failure is not None else evidence.code
    if first in (INVALID, SUPERSEDED):
        return ("invalid" if first == INVALID else "superseded"), reason
    # Before the time limit: to preempt a job Slurm brings its end near, so it looks like one at its limit.
    if evidence.preempted:
        return "preempted", "saved within the grace time" if ended_as == "stopped" else reason
    if evidence.asked == "time_limit":
        return "time_limit", "saved before the time limit" if ended_as == "stopped" else "the ranks did not end in time"
    if evidence.lost_nodes:
        return "node_lost", "; ".join(f"{node} {what}".strip() for node, what in evidence.lost_nodes)
    # Before SIGTERM is asked about: on a node that Slurm has given up for dead, no signal of its reaches this process.
    if evidence.requeued:
        return QUEUED_AGAIN[evidence.on_request]
    if evidence.terminated:
        return ("time_limit", "ended by Slurm") if evidence.overdue else ("cancelled", "Slurm ended the job")
    if evidence.code == 0 and ended_as == "stopped":
        return "stopped", reason
    return _failed(evidence.code, status, evidence.failure)


def _failed(code: int, status: Status | None, failure: Failure | None) -> tuple[str, str]:
    first = failure.code if failure is not None else code
    if first == WARNED:
        return "stopped", "before it had begun"
    detail = "" if failure is None else f"rank {failure.task} on {failure.node}: {failure.text}"
    if status is None:
        return "start_failed", detail or f"exit code {code} before training began"
    reason = status.reason if status.status == "failed" else ""
    detail = f"{reason} ({detail})" if reason and detail else reason or detail
    return cause_of_code(first, status), detail or f"exit code {code}"


def cause_of_code(code: int, status: Status | None) -> str:
    """The cause that an exit code of the ranks stands for, where nothing else explains it."""
    if code == 0:
        return "done" if status is not None and status.status == "done" else "stopped"
    if code == INVALID:
        return "invalid"
    if code in BY_PERSON:
        return "cancelled"
    if code == WARNED:
        return "stopped"
    known = {PEER_LOST: "rank_lost", HUNG: "hung", SUPERSEDED: "superseded"}
    if code in known:
        return known[code]
    if signal_of(code) is not None:
        return "rank_lost"
    return "crashed" if status is not None else "start_failed"


def first_failure(srun_log: Path) -> Failure | None:
    """The first rank that srun reported as failed; not one that ended only because another had."""
    try:
        text = srun_log.read_text(errors="replace")
    except OSError:
        return None
    failures: list[Failure] = []
    for match in _ENDED_TASK.finditer(text):
        if match["code"] is not None:
            code, how = int(match["code"]), f"exit code {match['code']}"
        else:
            code, how = of_signal(_SIGNALS.get(match["signal"], 0)), match["signal"].lower()
        failures.append(Failure(match["node"], match["tasks"].strip(), code, how))
    # srun itself ends the others with SIGTERM, and ranks that have lost a peer leave with a code of their own.
    causes = [f for f in failures if f.code not in NOT_THE_CAUSE]
    return next(iter(causes or failures), None)


def idle_attempts(entries: Sequence[Attempt], job: str) -> int:
    """Attempts of a job, counted back from the last, that saved nothing new and have only the run to blame."""
    idle = 0
    # One job alone: whoever submits a run anew has looked at it, and begins the count anew.
    for entry in reversed(entries):
        if entry.job != job or entry.gained > 0:
            break
        idle += entry.cause in FUTILE
    return idle
