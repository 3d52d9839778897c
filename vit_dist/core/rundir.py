"""The directory of a run: what lies where, who it belongs to, how it stands. No torch.

run.json          identity of the run; written once
recipe.yaml       the resolved recipe
status.json       how the last attempt stands: running, done, stopped, failed
tb/               event files
checkpoints/      step-0000001000/, each whole once its COMMITTED.json is there
quarantine.jsonl  samples that could not be decoded
lock              held while an attempt runs
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import RunError
from vit_dist.core.files import write_bytes


@dataclass(frozen=True)
class Status:
    """How an attempt stands.

    Attributes:
        status: 'running', 'done', 'stopped' (on request, to be continued) or 'failed'.
        step: optimizer steps completed.
        examples: examples consumed.
        reason: why it stopped or failed.
        host, pid, time: who wrote this, and when (seconds since 1970).
    """

    status: str
    step: int = 0
    examples: int = 0
    reason: str = ""
    host: str = ""
    pid: int = 0
    time: float = 0.0


@dataclass(frozen=True)
class RunDir:
    """Paths of a run, and its small files."""

    path: Path

    @property
    def events(self) -> Path:
        """Event files of all attempts."""
        return self.path / "tb"

    @property
    def checkpoints(self) -> Path:
        """Step directories."""
        return self.path / "checkpoints"

    @property
    def quarantine(self) -> Path:
        """Samples that could not be decoded, a JSON object a line."""
        return self.path / "quarantine.jsonl"

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A small JSON file, or None where there is none.

        Raises:
            RunError: damaged.
        """
        try:
            value = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name}: cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise RunError(f"{self.path / name}: expected a JSON object")
        return value

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON file, whole or not at all."""
        write_bytes(str(self.path / name), (json.dumps(value, indent=1) + "\n").encode())

    def status(self) -> Status | None:
        """How the last attempt stands, or None before the first."""
        raw = self.read_json("status.json")
        if raw is None:
            return None
        return Status(**{k: v for k, v in raw.items() if k in Status.__dataclass_fields__})

    def write_status(self, status: str, step: int, examples: int, reason: str = "") -> None:
        """Say how this attempt stands."""
        host, pid = socket.gethostname(), os.getpid()
        self.write_json("status.json", asdict(Status(status, step, examples, reason, host, pid, time.time())))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one attempt. The lock goes with the process, however it dies.

        Raises:
            RunError: another attempt runs here, or the directory cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"{self.path}: the run directory cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise RunError(f"{self.path}: cannot be locked: {error.strerror}") from None
            raise RunError(
                f"{self.path}: another attempt is running in this directory ({holder or 'unknown process'}); wait "
                f"for it, stop it, or give another --run-dir"
            ) from None
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)
