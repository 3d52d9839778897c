"""What the files of a run say about it, read in one go and forgivingly: a damaged one is a finding, not an error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.ledger import LedgerEntry, read_ledger
from vit_dist.core.errors import RunError

_MARKER = "COMMITTED.json"


@dataclass(frozen=True)
class RunFiles:
    """Small files of a run directory.

    Attributes:
        status, alive, job, run, cancel: contents of the JSON files of these names; empty where there is none.
        attempts: the ledger.
        saved: step of the newest committed checkpoint; None before the first.
        saved_at: when it was committed, seconds since 1970.
        request: what a person has asked for and nobody has served yet: 'save', 'stop' or ''.
        problems: files that cannot be read, each with why.
    """

    path: Path
    status: Mapping[str, Any] = field(default_factory=dict)
    alive: Mapping[str, Any] = field(default_factory=dict)
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
    def seen(self) -> float:
        """The last sign of life of any attempt, seconds since 1970; 0 before the first."""
        return max(number(self.status, "time"), number(self.alive, "time"))


def read_run(path: Path) -> RunFiles:
    """Read the small files of a run directory. Never raises for what is missing or damaged."""
    problems: list[str] = []
    found = {name: _json(path / f"{name}.json", problems) for name in ("status", "alive", "job", "run")}
    found["cancel"] = _json(path / "cancel", problems)
    attempts: list[LedgerEntry] = []
    try:
        attempts = read_ledger(path)
    except RunError as error:
        problems.append(str(error))
    saved, saved_at = newest_checkpoint(path)
    return RunFiles(
        path,
        **found,
        attempts=tuple(attempts),
        saved=saved,
        saved_at=saved_at,
        request=pending_request(path),
        problems=tuple(problems),
    )


def newest_checkpoint(path: Path) -> tuple[int | None, float]:
    """Step of the newest committed checkpoint and when it was committed; (None, 0) before the first."""
    steps = sorted(committed_steps(path), reverse=True)
    for step in steps:
        with contextlib.suppress(OSError):  # it may be removed at this moment: the next newest then
            return step, (path / "checkpoints" / f"step-{step:010d}" / _MARKER).stat().st_mtime
    return None, 0.0


def committed_steps(path: Path) -> set[int]:
    """Steps whose checkpoint is whole."""
    # A checkpoint gets its name when it is committed, so the names are enough: one listing, whatever the number.
    return {step for name in _names(path / "checkpoints") if (step := _step(name)) is not None}


def steps_in_hand(path: Path) -> set[int]:
    """Steps whose checkpoint is whole, or is being written."""
    names = _names(path / "checkpoints")
    return committed_steps(path) | {
        step for name in names if name.endswith(".partial") and (step := _step(name[1:].partition(".")[0])) is not None
    }


def pending_request(path: Path) -> str:
    """'save' or 'stop' where that is asked for and not yet served; else ''."""
    try:
        asked = (path / "request").read_text(errors="replace").strip().lower()
    except OSError:
        return ""
    return asked if asked in {"save", "stop"} else ""


def number(mapping: Mapping[str, Any], key: str) -> float:
    """A number of a JSON object; 0 where it is missing or something else."""
    value = mapping.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _names(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.iterdir()]
    except OSError:
        return []


def _step(name: str) -> int | None:
    digits = name.removeprefix("step-")
    return int(digits) if name.startswith("step-") and digits.isdigit() else None


def _json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name}: expected a JSON object")
        return {}
    return value
