"""What the files of a run say about it, read in one go and forgivingly: a damaged one is a finding, not an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.supervise.ledger import LedgerEntry, read_ledger
from vit_dist.core.errors import RunError
from vit_dist.core.run import names, records
from vit_dist.core.run.checkpoints import newest_checkpoint
from vit_dist.core.small_files import DamagedError, read_record, read_small
from vit_dist.core.text import decode_text

_JSON = {
    "status": names.STATUS,
    "heartbeat": names.HEARTBEAT,
    "job": names.JOB,
    "run": names.RUN,
    "cancel": names.CANCEL,
}


@dataclass(frozen=True)
class RunFiles:
    """Small files of a run directory.

    Attributes:
        status, heartbeat, job, run, cancel: contents of the JSON files; empty where there is none.
        attempts: the ledger.
        saved: step of the newest committed checkpoint; None before the first.
        saved_at: when it was committed, seconds since 1970.
        request: what a person has asked for and nobody has served yet: 'save', 'stop' or ''.
        problems: files that cannot be read, each with why.
    """

    path: Path
    status: Mapping[str, Any] = field(default_factory=dict)
    heartbeat: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    cancel: Mapping[str, Any] = field(default_factory=dict)
    attempts: tuple[LedgerEntry, ...] = ()
    saved: int | None = None
    saved_at: float = 0.0
    request: str = ""
    problems: tuple[str, ...] = ()

    @property
    def job_id(self) -> str:
        """Number of the last job; '' for a run that was never submitted."""
        return str(self.job.get("job") or (self.attempts[-1].job if self.attempts else ""))

    @property
    def cancelled(self) -> bool:
        """Whether a person has cancelled the last job."""
        return bool(self.job_id) and str(self.cancel.get("job")) == self.job_id

    @property
    def last_heartbeat(self) -> float:
        """The last heartbeat of any attempt, seconds since 1970; 0 before the first."""
        return max(number(self.status, "time"), number(self.heartbeat, "time"))


def read_run(path: Path) -> RunFiles:
    """Read the small files of a run directory. Never raises for what is missing or damaged."""
    problems: list[str] = []
    contents = {field: _json(path / name, problems) for field, name in _JSON.items()}
    attempts, findings = list[LedgerEntry](), list[str]()
    try:
        attempts = read_ledger(path, findings)
    except RunError as error:
        problems.append(str(error))
    problems += [f"{names.LEDGER}: {finding}" for finding in findings]
    saved, saved_at = newest_checkpoint(path)
    return RunFiles(
        path,
        **contents,
        attempts=tuple(attempts),
        saved=saved,
        saved_at=saved_at,
        request=pending_request(path),
        problems=tuple(problems),
    )


def pending_request(path: Path) -> str:
    """'save' or 'stop' where that is asked for and not yet served; else ''."""
    try:
        request = decode_text(read_small(path / names.REQUEST, 4096)).strip().lower()
    except (OSError, ValueError):
        return ""
    return request if request in names.REQUESTS else ""


def number(mapping: Mapping[str, Any], key: str) -> float:
    """A number of a JSON object; 0 where it is missing or something else."""
    value = mapping.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        return read_record(path, records.FIELDS.get(path.name))
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    except DamagedError as error:
        problems.append(f"{path.name}: {error}")
    return {}
