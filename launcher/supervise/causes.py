"""Why an attempt ended and what follows from it: pure decisions, shared by `vit-dist run` and `vit-dist supervise`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.supervise.ledger import LedgerEntry
from vit_dist.core.exit_codes import (
    BY_PERSON,
    HUNG,
    INVALID,
    NOT_THE_CAUSE,
    PEER_LOST,
    SUPERSEDED,
    of_signal,
    signal_of,
)
from vit_dist.core.run.directory import Status

FUTILE = frozenset({"time_limit", "crashed", "hung", "rank_lost", "start_failed"})
"""Causes that count against a run when nothing new was saved. Losing a node or being preempted is not its fault."""
_ENDED_TASK = re.compile(
    r"^srun: error: (?P<node>[^:\s]+): tasks? (?P<tasks>[\d,\-\[\] ]+): "
    r"(?:Exited with exit code (?P<code>\d+)|(?P<signal>[A-Z][\w ]*?)(?: \(core dumped\))?)$",
    re.MULTILINE,
)
_SIGNALS = {"Killed": 9, "Terminated": 15, "Aborted": 6, "Segmentation fault": 11, "Bus error": 7, "Out Of Memory": 9}


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
        status: what the attempt said last; None where it said nothing.
        failure: the first rank that failed.
        asked: why the supervisor told the ranks to save and end: 'time_limit' or ''.
        cancelled: `vit-dist cancel` was used.
        preempted: Slurm says that the job is being preempted.
        terminated: Slurm told the batch script to end.
        requeued: Slurm has put the job back into the queue.
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
    overdue: bool = False
    lost_nodes: tuple[tuple[str, str], ...] = ()


def classify(evidence: ExitEvidence) -> tuple[str, str]:
    """Cause and detail of an attempt's end under Slurm. What Slurm did goes before what it made the ranks do."""
    status = evidence.status
    said = status.status if status is not None else ""
    reason = status.reason if status is not None else ""
    if evidence.code == 0 and said == "done":
        return "done", ""
    if evidence.cancelled:
        return "cancelled", "on request"
    # srun ends the peers of the rank that failed first, and then gives the highest code of all
    first = evidence.failure.code if evidence.failure is not None else evidence.code
    if first in (INVALID, SUPERSEDED):
        return ("invalid" if first == INVALID else "superseded"), reason
    if evidence.preempted:  # first: Slurm then also brings the job's end near, as a time limit would
        return "preempted", "saved within the grace time" if said == "stopped" else reason
    if evidence.asked == "time_limit":
        return "time_limit", "saved before the time limit" if said == "stopped" else "the ranks did not end in time"
    if evidence.lost_nodes:
        return "node_lost", "; ".join(f"{node} {what}".strip() for node, what in evidence.lost_nodes)
    if evidence.requeued:  # also where this process was told nothing, on a node that Slurm has given up
        return "preempted", "Slurm has queued the job again"
    if evidence.terminated:
        return ("time_limit", "ended by Slurm") if evidence.overdue else ("cancelled", "Slurm ended the job")
    if evidence.code == 0 and said == "stopped":
        return "stopped", reason
    return _failed(evidence.code, status, evidence.failure)


def _failed(code: int, status: Status | None, failure: Failure | None) -> tuple[str, str]:
    first = failure.code if failure is not None else code
    detail = "" if failure is None else f"rank {failure.task} on {failure.node}: {failure.text}"
    if status is None:
        return "start_failed", detail or f"exit code {code} before training began"
    told = status.reason if status.status == "failed" else ""
    detail = f"{told} ({detail})" if told and detail else told or detail
    return cause_of_code(first, status), detail or f"exit code {code}"


def cause_of_code(code: int, status: Status | None) -> str:
    """The cause that an exit code of the ranks stands for, where nothing else explains it."""
    if code == 0:
        return "done" if status is not None and status.status == "done" else "stopped"
    if code == INVALID:
        return "invalid"
    if code in BY_PERSON:
        return "cancelled"
    known = {PEER_LOST: "rank_lost", HUNG: "hung", SUPERSEDED: "superseded"}
    if code in known:
        return known[code]
    if signal_of(code) is not None:
        return "rank_lost"
    return "crashed" if status is not None else "start_failed"


def first_failure(srun_log: Path) -> Failure | None:
    """The first rank that srun reported as failed; of those that ended since another had gone, none."""
    try:
        text = srun_log.read_text(errors="replace")
    except OSError:
        return None
    found: list[Failure] = []
    for match in _ENDED_TASK.finditer(text):
        if match["code"] is not None:
            code, told = int(match["code"]), f"exit code {match['code']}"
        else:
            code, told = of_signal(_SIGNALS.get(match["signal"], 0)), match["signal"].lower()
        found.append(Failure(match["node"], match["tasks"].strip(), code, told))
    # srun itself ends the others with SIGTERM, and ranks that miss another one leave with a code of their own.
    causes = [f for f in found if f.code not in NOT_THE_CAUSE]
    return next(iter(causes or found), None)


def idle_attempts(entries: Sequence[LedgerEntry], job: str) -> int:
    """Attempts of a job, counted back from the last, that saved nothing new and have only the run to blame."""
    idle = 0
    for entry in reversed(entries):
        if entry.job != job or entry.gained > 0:
            break
        idle += entry.cause in FUTILE
    return idle
