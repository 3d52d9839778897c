"""The ledger of a run's attempts: why each ended, what it gained and lost, what it cost. Lines are only ever appended.

`RUN/ledger.jsonl`, a JSON object a line, written by whoever supervises: `vit-dist supervise` in a job, `vit-dist run`
on one machine. An attempt whose supervisor died with it stays open until the next supervisor closes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import RunError
from vit_dist.core.files import append_json
from vit_dist.core.run import names, records
from vit_dist.core.small_files import DamagedError, read_records

CAUSES = (
    "done",
    "stopped",
    "time_limit",
    "preempted",
    "node_lost",
    "cancelled",
    "crashed",
    "hung",
    "rank_lost",
    "invalid",
    "superseded",
    "start_failed",
)
"""Why an attempt ended."""
ACTIONS = ("none", "requeue", "respawn", "give_up")
"""What the supervisor did then."""


@dataclass(frozen=True)
class LedgerEntry:
    """One attempt.

    Attributes:
        attempt: number of the attempt in the run (1-based).
        begun: when, seconds since 1970.
        launcher: 'slurm' or 'local'.
        job: Slurm's number, '120_3' for an element of an array; '' without Slurm.
        restart: how often Slurm had started that job again.
        nodes: on which it ran.
        devices: its ranks, one a device.
        step: up to which the run was saved when it began.
        ended: when; None while it is open.
        cause: one of CAUSES; '' while it is open.
        detail: more about that, for people.
        code: exit code of its ranks.
        reached: the last step that it is known to have done.
        saved: up to which step the run was saved when it ended.
        gained, lost: steps saved by it, steps done by it and not saved.
        device_hours: what it cost.
        action: one of ACTIONS; '' while it is open.
        excluded: nodes that the next attempt stays away from.
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

    @property
    def open(self) -> bool:
        """True until its end is written."""
        return self.ended is None


def append_begin(
    run_dir: Path,
    *,
    attempt: int,
    launcher: str,
    devices: int,
    step: int,
    job: str = "",
    restart: int = 0,
    nodes: Sequence[str] = (),
    at: float | None = None,
) -> None:
    """Write that an attempt begins.

    Raises:
        RunError: the ledger cannot be written.
    """
    _append(
        run_dir,
        {
            "event": "begin",
            "attempt": attempt,
            "at": time.time() if at is None else at,
            "launcher": launcher,
            "job": job,
            "restart": restart,
            "nodes": list(nodes),
            "devices": devices,
            "step": step,
        },
    )


def append_end(
    run_dir: Path,
    begun: LedgerEntry,
    *,
    cause: str,
    action: str,
    code: int,
    reached: int,
    saved: int,
    detail: str = "",
    excluded: Sequence[str] = (),
    at: float | None = None,
) -> LedgerEntry:
    """Write how an attempt ended. Returns the entry with its end.

    Args:
        run_dir: of the run.
        begun: the attempt, as `read_ledger` gives it while it is open.
        cause, action: one of CAUSES, of ACTIONS.
        code: exit code of the ranks.
        reached: the last step that was done, as far as is known.
        saved: up to which the run is saved now.
        detail: more, for people.
        excluded: nodes that the next attempt stays away from.
        at: when it ended, seconds since 1970 (now).

    Raises:
        RunError: the ledger cannot be written.
    """
    assert cause in CAUSES, cause
    assert action in ACTIONS, action
    ended = time.time() if at is None else at
    line = {
        "event": "end",
        "attempt": begun.attempt,
        "at": ended,
        "cause": cause,
        "detail": " ".join(detail.split())[:2000],
        "code": code,
        "step": max(reached, saved),
        "saved": saved,
        "gained": max(0, saved - begun.step),
        "lost": max(0, reached - saved),
        "device_hours": round(begun.devices * max(0.0, ended - begun.begun) / 3600, 6),
        "action": action,
        "excluded": list(excluded),
    }
    _append(run_dir, line)
    return _joined(begun, line)


def read_ledger(run_dir: Path, findings: list[str] | None = None) -> list[LedgerEntry]:
    """All attempts, oldest first; a line that a crash has cut short, or that is damaged, is left out.

    Args:
        run_dir: of the run.
        findings: gets a text for each damaged line.

    Raises:
        RunError: the ledger is there and cannot be read.
    """
    path = run_dir / names.LEDGER
    try:
        lines = list(read_records(path, records.LEDGER, findings))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunError(f"{path}: the ledger cannot be read: {error.strerror}") from None
    except DamagedError as error:
        raise RunError(f"{path}: the ledger is damaged: {error}") from None
    entries: dict[int, LedgerEntry] = {}
    for line in lines:
        try:
            number = int(line["attempt"])
            if line["event"] == "begin":
                entries[number] = _begun(line)
            # The first end that was written wins: a supervisor on a node that was given up for dead may live on, and
            # append its own after the next supervisor has closed the attempt.
            elif number in entries and entries[number].open:
                entries[number] = _joined(entries[number], line)
        except KeyError:
            continue
    return [entries[number] for number in sorted(entries)]


def _begun(line: Mapping[str, Any]) -> LedgerEntry:
    return LedgerEntry(
        attempt=int(line["attempt"]),
        begun=float(line["at"]),
        launcher=str(line.get("launcher", "local")),
        job=str(line.get("job", "")),
        restart=int(line.get("restart", 0)),
        nodes=tuple(line.get("nodes", ())),
        devices=int(line.get("devices", 1)),
        step=int(line.get("step", 0)),
    )


def _joined(begun: LedgerEntry, line: Mapping[str, Any]) -> LedgerEntry:
    return LedgerEntry(
        **{name: getattr(begun, name) for name in _OF_BEGIN},
        ended=float(line["at"]),
        cause=str(line.get("cause", "")),
        detail=str(line.get("detail", "")),
        code=int(line.get("code", 0)),
        reached=int(line.get("step", 0)),
        saved=int(line.get("saved", 0)),
        gained=int(line.get("gained", 0)),
        lost=int(line.get("lost", 0)),
        device_hours=float(line.get("device_hours", 0.0)),
        action=str(line.get("action", "")),
        excluded=tuple(line.get("excluded", ())),
    )


_OF_BEGIN = ("attempt", "begun", "launcher", "job", "restart", "nodes", "devices", "step")


def _append(run_dir: Path, entry: Mapping[str, Any]) -> None:
    path = run_dir / names.LEDGER
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        append_json(path, entry)
    except OSError as error:
        raise RunError(f"{path}: the ledger cannot be written: {error.strerror}") from None
