"""The files of a run's history: read into one state, and written by ranks, supervisors and people."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_dist.core.errors import RunError
from vit_dist.core.files import append_json, write_bytes
from vit_dist.core.run import names
from vit_dist.core.run.history import former
from vit_dist.core.run.history.events import ACTIONS, CAUSES, FIELDS, NEEDS, OWNER, PROGRESS, Event
from vit_dist.core.run.history.fold import fold
from vit_dist.core.run.history.requests import pending_request, read_cancel
from vit_dist.core.run.history.state import Attempt, Progress, State
from vit_dist.core.small_files import (
    DamagedError,
    checked,
    is_time,
    noted_record,
    parse_records,
    read_end,
    read_record,
)

TAIL_BYTES = 4 << 10
"""Of each file, where only the last attempts are asked for: some ten of them."""
_BEGINNINGS = {names.BY_RANKS: "opened", names.BY_SUPERVISOR: "begun", names.BY_PEOPLE: "submitting"}
"""The files that make up the state, and the event that the end of one must reach back to."""


def read(path: Path, *, most: int | None = None, forgiving: bool = False) -> State:
    """How a run stands, as its history says; what is damaged is left out and found.

    Args:
        path: of the run.
        most: bytes from the end of each file that are enough, see TAIL_BYTES; None: all.
        forgiving: a file that cannot be read at all is a finding, too.

    Raises:
        RunError: a file cannot be read, and `forgiving` does not hold.
    """
    present, findings = _present(path, forgiving), list[str]()
    try:
        events = _events(path, present, most, findings)
        before = former.read(path, present, findings)
        beat = _heartbeat(path, present, findings)
    except OSError as error:
        raise RunError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    if before.events and (beat is None or not beat[1]):
        progress = before.heartbeat(beat[0] if beat else None)
    else:
        progress = beat[0] if beat else None
    state = fold([*before.events, *events], progress)
    if findings and not forgiving:
        unreadable = next((text for text in findings if "cannot be read" in text), None)
        if unreadable is not None:
            raise RunError(f"{path}: {unreadable}")
    if most is not None and state.last is not None and state.last.did_not_begin:
        # What the run was before may lie in what was left out.
        return read(path, forgiving=forgiving)
    from_people = {"cancel": read_cancel(path) if names.CANCEL in present else ""}
    from_people["request"] = pending_request(path) if names.REQUEST in present else ""
    return State(**{**_shallow(state), **from_people, "findings": (*findings, *state.findings)})


def _shallow(state: State) -> dict[str, Any]:
    return {name: getattr(state, name) for name in State.__dataclass_fields__}


def _present(path: Path, forgiving: bool) -> frozenset[str]:
    """Names in the run's directory: one look in place of one for each file that may be there."""
    try:
        with os.scandir(path) as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        if forgiving:
            return frozenset()
        raise RunError(f"{path}: the run directory cannot be read: {error.strerror}") from None


def _events(path: Path, present: frozenset[str], most: int | None, findings: list[str]) -> list[Event]:
    """Events of the files; those of attempts whose beginning is left out in one file are left out of all."""
    events, since = list[Event](), 0
    for name in _BEGINNINGS:
        if name not in present:
            continue
        found, first = _read_file(path / name, most, findings)
        events += found
        since = max(since, first)
    return [e for e in events if e.attempt >= since or e.kind in {"submitting", "submitted"}]


def _read_file(file: Path, most: int | None, findings: list[str]) -> tuple[list[Event], int]:
    """Events of a file, and the attempt that they begin with where some were left out, else 0."""
    content, cut = content_of(file, most, findings)
    damaged: list[str] = []
    found = [event for line in parse_records(content, None, damaged) if (event := _event(line, damaged))]
    first = next((event.attempt for event in found if event.kind == _BEGINNINGS[file.name]), None)
    if cut and first is None:
        # A line is longer than all that was read.
        return _read_file(file, None, findings)
    findings += [f"{file.name}: {finding}" for finding in damaged]
    return found, first or 0 if cut and file.name != names.BY_PEOPLE else 0


def content_of(path: Path, most: int | None, findings: list[str]) -> tuple[bytes, bool]:
    """As `read_end`; what cannot be read is a finding."""
    try:
        return read_end(path, most)
    except FileNotFoundError:
        return b"", False
    except OSError as error:
        findings.append(f"{path.name} cannot be read: {error.strerror}")
    except DamagedError as error:
        findings.append(f"{path.name} cannot be read: {error}")
    return b"", False


def _event(line: Mapping[str, Any], damaged: list[str]) -> Event | None:
    """The event of a line; None for one that is damaged, or of a kind that a later version knows."""
    kind = line.get("event")
    if not isinstance(kind, str) or kind not in FIELDS:
        if not isinstance(kind, str):
            damaged.append("a line without an event")
        return None
    needs = NEEDS.get(kind, ("attempt",))
    try:
        missing = next((name for name in (*needs, "at") if name not in line), None)
        if missing is not None:
            raise DamagedError(f"it has no {missing}")
        facts = checked(line, {**FIELDS[kind], "at": is_time})
    except DamagedError as error:
        damaged.append(f"event {kind!r}: {error}")
        return None
    return Event(kind, int(facts.get("attempt", facts.get("after", 0))), float(facts["at"]), facts)


def _heartbeat(path: Path, present: frozenset[str], findings: list[str]) -> tuple[Progress, bool] | None:
    """The last heartbeat, and whether it tells more than times."""
    if names.HEARTBEAT not in present:
        return None
    record = noted_record(path / names.HEARTBEAT, PROGRESS, findings)
    return None if record is None else (Progress.of(record), "step" in record)


def append(path: Path, name: str, event: str, /, **facts: Any) -> None:
    """Add an event to a file of a history. Raises RunError where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        append_json(path / name, {"event": event, "at": time.time(), **facts})
    except OSError as error:
        raise RunError(f"{path / name}: cannot be written: {error.strerror}") from None


# Ranks


def take(path: Path, *, ranks: int, saved: int) -> tuple[int, str, State]:
    """Make the next attempt of the ranks the one that may write here; an older one that still runs is superseded by it.

    Args:
        path: of the run.
        ranks: how many they are.
        saved: up to which step the run is saved.

    Returns:
        Its number; its fencing token, which whatever it writes from now on must find in owner.json; and the state
        before.

    Raises:
        RunError: the run directory cannot be read or written.
    """
    before = read(path)
    number, me = before.next_opened, {"host": socket.gethostname(), "pid": os.getpid()}
    for one in before.attempts:
        if one.opened and not one.told:
            # It could not write its own end: killed, or its machine is gone.
            known = _plain(before.progress) if before.progress.attempt == one.attempt else {}
            known |= {"attempt": one.attempt, "status": "killed", "saved": saved}
            append(path, names.BY_RANKS, "ended", **known)
    # Beside the lock and not in place of it: locks do not work on every shared file system, and a machine that was
    # cut off keeps one until it wakes up and writes.
    token = secrets.token_hex(16)
    owner = {"token": token, "attempt": number, **me, "time": time.time()}
    write_bytes(str(path / names.OWNER), (json.dumps(owner, indent=1) + "\n").encode())
    append(path, names.BY_RANKS, "opened", attempt=number, token=token[:8], **me, ranks=ranks, step=saved)
    return number, token, before


def failed_to_begin(path: Path, *, ranks: int, saved: int, reason: str, refused: bool = False) -> None:
    """Write an attempt that failed before its ranks could own the directory: whoever started them does it for them.

    Nothing is superseded by it: it has no token.

    Args:
        path: of the run.
        ranks: how many they were.
        saved: up to which step the run is saved.
        reason: why, for people.
        refused: whether it was asked for what cannot be.

    Raises:
        RunError: the history cannot be read or written.
    """
    number = read(path).next_opened
    me = {"host": socket.gethostname(), "pid": os.getpid()}
    append(path, names.BY_RANKS, "opened", attempt=number, **me, ranks=ranks, step=saved)
    progress = Progress(attempt=number, time=time.time(), step=saved)
    end(path, "failed", progress, reason=reason, saved=saved, refused=refused)


def superseded_by(path: Path, token: str) -> str:
    """The later attempt that owns the directory, in words; '' where the attempt with this token still does.

    Raises:
        RunError: owner.json cannot be read.
    """
    file = path / names.OWNER
    try:
        owner = read_record(file, OWNER)
    except FileNotFoundError:
        owner = {}
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from None
    except DamagedError as error:
        raise RunError(f"{file}: damaged: {error}") from None
    if owner.get("token") == token:
        return ""
    return (
        f"{path}: attempt {owner.get('attempt')} on {owner.get('host')} (process {owner.get('pid')}) has "
        f"superseded this attempt, which ends without writing. If both are yours, stop one of them"
    )


def training(path: Path, attempt: int, step: int) -> None:
    """Write that an attempt trains from now on, and from which step: that may have come from a store.

    Raises:
        RunError: it cannot be written.
    """
    append(path, names.BY_RANKS, "training", attempt=attempt, step=step)


def beat(path: Path, progress: Progress) -> None:
    """Write the heartbeat: that an attempt runs, how far it is, and where its time went.

    Raises:
        DataError: it cannot be written.
    """
    # Not flushed to the disk, since the next one comes in two seconds.
    write_bytes(str(path / names.HEARTBEAT), json.dumps(_plain(progress)).encode(), sync=False)


def end(
    path: Path, status: str, progress: Progress, *, reason: str = "", saved: int = 0, refused: bool = False
) -> None:
    """Write how an attempt ended, as its ranks saw it.

    Args:
        path: of the run.
        status: 'done', 'stopped' or 'failed'.
        progress: how far it came.
        reason: more, for people.
        saved: up to which step the run is saved.
        refused: whether it failed since it was asked for what cannot be; where it had not trained yet, it did not
            begin then, and the run stands as before.

    Raises:
        RunError: it cannot be written.
    """
    assert status in {"done", "stopped", "failed"}, status
    told = {"status": status, "reason": reason[:4000], "saved": saved, **({"refused": True} if refused else {})}
    append(path, names.BY_RANKS, "ended", **_plain(progress), **told)


def _plain(progress: Progress) -> dict[str, Any]:
    # JSON has no NaN.
    metrics = {name: value for name, value in progress.metrics.items() if math.isfinite(value)}
    return {**{name: getattr(progress, name) for name in Progress.__dataclass_fields__}, "metrics": metrics}


# Supervisors


def begin(
    path: Path,
    *,
    launcher: str,
    devices: int,
    step: int,
    job: str = "",
    restart: int = 0,
    nodes: Sequence[str] = (),
) -> Attempt:
    """Begin the next attempt, whose ranks are started now.

    Raises:
        RunError: the history cannot be read or written.
    """
    number = read(path).next_attempt
    place = {"nodes": list(nodes), "devices": devices, "step": step, "host": socket.gethostname(), "pid": os.getpid()}
    append(path, names.BY_SUPERVISOR, "begun", attempt=number, launcher=launcher, job=job, restart=restart, **place)
    begun = read(path).attempt(number)
    assert begun is not None, "it was written just now"
    return begun


def close(
    path: Path,
    begun: Attempt,
    *,
    cause: str,
    action: str,
    code: int,
    reached: int,
    saved: int,
    detail: str = "",
    excluded: Sequence[str] = (),
    at: float | None = None,
) -> Attempt:
    """Write how an attempt ended, as its supervisor saw it. Returns it with its end.

    Args:
        path: of the run.
        begun: the attempt.
        cause, action: one of CAUSES, of ACTIONS.
        code: exit code of the ranks.
        reached: the last step that was done, as far as is known.
        saved: up to which the run is saved now.
        detail: more, for people.
        excluded: nodes that the next attempt stays away from.
        at: when it ended, seconds since 1970 (now).

    Raises:
        RunError: the history cannot be read or written.
    """
    assert cause in CAUSES, cause
    assert action in ACTIONS, action
    ended = time.time() if at is None else at
    cost = round(begun.devices * max(0.0, ended - begun.begun) / 3600, 6)
    known = read(path).attempt(begun.attempt)
    since = begun.step if known is None else known.step
    append(
        path,
        names.BY_SUPERVISOR,
        "closed",
        attempt=begun.attempt,
        at=ended,
        cause=cause,
        detail=" ".join(detail.split())[:2000],
        code=code,
        step=max(reached, saved),
        saved=saved,
        gained=max(0, saved - since),
        lost=max(0, reached - saved),
        device_hours=cost,
        action=action,
        excluded=list(excluded),
    )
    closed = read(path).attempt(begun.attempt)
    assert closed is not None, "it was begun"
    return closed


# People


def submitting(path: Path, facts: Mapping[str, Any]) -> int:
    """Write that a job with these facts is handed to Slurm now. Returns what `submitted` is told then.

    Raises:
        RunError: the history cannot be read or written.
    """
    after = read(path).newest
    append(path, names.BY_PEOPLE, "submitting", **facts, after=after)
    return after


def submitted(path: Path, job: str, after: int) -> None:
    """Write the number that Slurm gave the job. The job may have begun an attempt meanwhile.

    Raises:
        RunError: the history cannot be written.
    """
    append(path, names.BY_PEOPLE, "submitted", job=job, after=after)


def requeue(path: Path, job: str) -> None:
    """Write that a person puts a run's job back into the queue: it is neither preempted nor failed.

    Raises:
        RunError: the history cannot be read or written.
    """
    append(path, names.BY_PEOPLE, "requeue", attempt=read(path).newest, job=job)
