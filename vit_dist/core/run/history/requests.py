"""What people ask of a run: the files `cancel` and `request`, which anybody may write with a shell."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection
from pathlib import Path

from vit_dist.core.files import explained, write_bytes
from vit_dist.core.log import log
from vit_dist.core.run import names
from vit_dist.core.run.history.state import is_asked_for
from vit_dist.core.small_files import DamagedError, parse_json, read_small
from vit_dist.core.text import decode_text


def ask(path: Path, what: str) -> None:
    """Write the request `save` or `stop`.

    Raises:
        DataError: it cannot be written.
    """
    assert what in names.REQUESTS, what
    write_bytes(str(path / names.REQUEST), f"{what}\n".encode())


def pending_request(path: Path) -> str:
    """'save' or 'stop' where that is asked for and not yet served; else ''."""
    try:
        request = decode_text(read_small(path / names.REQUEST, 4096)).strip().lower()
    except (OSError, ValueError):
        return ""
    return request if request in names.REQUESTS else ""


def take_request(path: Path) -> str:
    """What the request file asks for: 'save', 'stop' or ''. The file is removed, so that it is served once.

    A file with anything else in it is set aside as request.unknown.
    """
    file = path / names.REQUEST
    try:
        # Whoever writes it by hand may write it with a byte order mark.
        asked = decode_text(read_small(file, 4096)).strip().lower()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        asked = "unreadable"
    # An empty file is being written just now: a shell creates it before `echo` fills it.
    if asked == "":
        return ""
    known = asked in names.REQUESTS
    with contextlib.suppress(OSError):
        file.unlink() if known else file.rename(file.with_suffix(".unknown"))
    if not known:
        log(f"  {file}: asks for {asked[:40]!r}; it may say `save` or `stop`. Set aside as request.unknown")
    return asked if known else ""


def withdraw(path: Path, *requests: str) -> None:
    """Take back requests that nobody has served: they must not meet the next attempt."""
    if pending_request(path) in requests:
        with contextlib.suppress(OSError):
            (path / names.REQUEST).unlink()


def forget(path: Path) -> None:
    """Remove what a person asked of the job before: it is not meant for the next one.

    Raises:
        DataError: it cannot be removed.
    """
    for leftover in (names.CANCEL, names.REQUEST):
        with explained(str(path / leftover), "removed"):
            (path / leftover).unlink(missing_ok=True)


def ask_cancel(path: Path, job: str) -> None:
    """Write that a job is to end and not to come back.

    Raises:
        DataError: it cannot be written.
    """
    write_bytes(str(path / names.CANCEL), (json.dumps({"job": job, "at": time.time()}) + "\n").encode())


def read_cancel(path: Path) -> str:
    """The number of the job that was cancelled; '*', whatever job there is, where the file does not say one."""
    try:
        record = parse_json(read_small(path / names.CANCEL, 4096))
    except FileNotFoundError:
        return ""
    except (OSError, DamagedError):
        # A person has written something there, if not well: to end a run too early is mended by `vit-dist resume`.
        return "*"
    # A job's number, not a mere mark: a cancel of before must not stop the job that resumes the run.
    job = record.get("job") if isinstance(record, dict) else None
    return str(job) if isinstance(job, str | int) and str(job) else "*"


def is_cancelled(path: Path, jobs: Collection[str]) -> bool:
    """Whether a person has cancelled the job that has these numbers, however often Slurm starts it again."""
    return is_asked_for(read_cancel(path), jobs)
