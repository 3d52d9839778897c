"""Runs of a former version: their five files, read as the events that came before a history.

They are read anew each time and never converted: what is not written cannot be half written, and a job that still runs
that version's code may go on to write them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vit_dist.core.run import names
from vit_dist.core.run.history.events import FIELDS, OWNER, PROGRESS, TOLD, Event, is_one_of
from vit_dist.core.run.history.state import Progress
from vit_dist.core.run.records import is_job
from vit_dist.core.small_files import (
    Check,
    DamagedError,
    is_objects,
    is_text,
    is_time,
    noted_record,
    read_record,
    read_records,
)

_STATUS: Mapping[str, Check] = {
    **PROGRESS,
    "status": is_one_of("running", "done", "stopped", "failed"),
    "reason": is_text,
    "host": is_text,
    "pid": OWNER["pid"],
}
_JOB: Mapping[str, Check] = {**FIELDS["submitting"], "job": is_job, "submitted_at": is_time}
_ATTEMPT: Mapping[str, Check] = {**FIELDS["opened"], **PROGRESS, **TOLD, "event": is_text, "last_seen": is_time}
_LEDGER: Mapping[str, Check] = {**FIELDS["begun"], **FIELDS["closed"], "event": is_text, "at": is_time}
_CLOCKS_S = 5.0
"""How far the clocks of two machines may be apart: that version told by them which attempt of its ranks' count was
which of its supervisor's."""


@dataclass(frozen=True)
class Former:
    """What a former version left.

    Attributes:
        events: in the form of a history.
        numbers: the number that each attempt of the ranks' own count has in them.
        progress: by status.json; None where there is none.
    """

    events: tuple[Event, ...] = ()
    numbers: Mapping[int, int] = field(default_factory=dict)
    progress: Progress | None = None

    def heartbeat(self, beat: Progress | None) -> Progress | None:
        """The last heartbeat in that version's form, which tells times alone, joined with what status.json says."""
        if beat is None or self.progress is None:
            return self.progress
        number = self.numbers.get(beat.attempt, beat.attempt)
        if number < self.progress.attempt or sum(beat.goodput.values()) < sum(self.progress.goodput.values()):
            return self.progress
        return replace(self.progress, attempt=number, time=beat.time, goodput=beat.goodput)


def read(path: Path, present: Collection[str], findings: list[str]) -> Former:
    """What the files of a former version say.

    Args:
        path: of the run.
        present: names of the files that are there.
        findings: gets a text for each that cannot be read.
    """
    if not any(name in present for name in names.FORMER):
        return Former()
    found = _supervised(_lines(path, names.FORMER_LEDGER, _LEDGER, present, findings))
    begun, ended = ({e.attempt: e.at for e in found if e.kind == kind} for kind in ("begun", "closed"))
    status = _object(path, names.FORMER_STATUS, _STATUS, present, findings)
    lines = _lines(path, names.FORMER_ATTEMPTS, _ATTEMPT, present, findings)
    lines = [line for line in lines if "attempt" in line and "time" in line]
    starts = [line for line in lines if line.get("event") == "start"]
    if status and not any(line["attempt"] == status.get("attempt", 0) for line in starts):
        starts.append({"attempt": status.get("attempt", 0), "time": status.get("time", 0.0)})
    numbers = _numbered(starts, begun, ended)
    for line in starts:
        number = numbers.get(int(line["attempt"]))
        if number is not None:
            place: dict[str, Any] = {key: line[key] for key in ("host", "pid", "ranks", "token") if key in line}
            if status and numbers.get(status.get("attempt", 0)) == number:
                place |= {key: status[key] for key in ("host", "pid") if key in status}
            found.append(Event("opened", number, float(line["time"]), place))
    # First: of two words on one end it says more, and the first counts.
    found += _last_word(status, numbers) if status else []
    for line in lines:
        if line.get("event") == "end" and int(line["attempt"]) in numbers:
            seen = {"time": line.get("last_seen", line["time"])}
            found.append(Event("ended", numbers[int(line["attempt"])], float(line["time"]), {**line, **seen}))
    job = _object(path, names.FORMER_JOB, _JOB, present, findings)
    if job:
        at = float(job.get("submitted_at", 0.0))
        after = max((number for number, when in begun.items() if when < at), default=0)
        # What its ranks began later than the ledger's last has been before this job, or after it.
        after = max([after, *(n for n in numbers.values() if n not in begun and _began(starts, numbers, n) < at)])
        found.append(Event("submitting", after, at, job))
        if job.get("job"):
            found.append(Event("submitted", after, at, {"job": job["job"]}))
    number = numbers.get(status.get("attempt", 0))
    progress = None if number is None or not status else replace(Progress.of(status), attempt=number)
    return Former(tuple(found), numbers, progress)


def evaluations(path: Path) -> list[dict[str, Any]]:
    """Entries of evaluated.json.

    Raises:
        OSError, DamagedError: it is there, and cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        return list(read_record(path / names.FORMER_EVALUATED, {"evaluations": is_objects}).get("evaluations", []))
    return []


def _supervised(lines: Sequence[Mapping[str, Any]]) -> list[Event]:
    kinds = {"begin": "begun", "end": "closed"}
    return [
        Event(kinds[line["event"]], int(line["attempt"]), float(line["at"]), line)
        for line in lines
        if line.get("event") in kinds and "attempt" in line and "at" in line
    ]


def _numbered(
    starts: Sequence[Mapping[str, Any]], begun: Mapping[int, float], ended: Mapping[int, float]
) -> dict[int, int]:
    """The number among all attempts, by that of the ranks' own count.

    Supervisor and ranks counted for themselves, and an attempt whose ranks never began is in one count alone.
    """
    numbers = dict[int, int]()
    for line in starts:
        own, at = int(line["attempt"]), float(line["time"])
        inside = [
            number
            for number, since in begun.items()
            if since - _CLOCKS_S <= at <= ended.get(number, float("inf")) + _CLOCKS_S
        ]
        if inside:
            numbers[own] = max(inside)
        elif not begun:
            numbers[own] = max(1, own)
        elif at > max(begun.values()):
            # After all that were supervised; those between them left a supervisor's word on what the run had saved.
            numbers[own] = max(max(begun), *numbers.values(), 0) + 1
    return numbers


def _began(starts: Sequence[Mapping[str, Any]], numbers: Mapping[int, int], number: int) -> float:
    return next(float(line["time"]) for line in starts if numbers.get(int(line["attempt"])) == number)


def _last_word(status: Mapping[str, Any], numbers: Mapping[int, int]) -> list[Event]:
    number, at = numbers.get(status.get("attempt", 0)), float(status.get("time", 0.0))
    if number is None:
        return []
    found = [Event("training", number, at)]
    if status.get("status", "running") != "running":
        found.append(Event("ended", number, at, status))
    return found


def _object(
    path: Path, name: str, fields: Mapping[str, Check], present: Collection[str], findings: list[str]
) -> dict[str, Any]:
    return noted_record(path / name, fields, findings) or {} if name in present else {}


def _lines(
    path: Path, name: str, fields: Mapping[str, Check], present: Collection[str], findings: list[str]
) -> list[dict[str, Any]]:
    if name not in present:
        return []
    damaged: list[str] = []
    try:
        return list(read_records(path / name, fields, damaged))
    except FileNotFoundError:
        return []
    except OSError as error:
        damaged.append(f"cannot be read: {error.strerror}")
        return []
    except DamagedError as error:
        damaged.append(str(error))
        return []
    finally:
        findings += [f"{name}: {finding}" for finding in damaged]
