"""The directory of a run: where what lies in it, its identity, and the lock that an attempt holds. No torch.

What lies in it: core/run/names.py. What became of the run and how it stands: core/run/history.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core import locks
from vit_dist.core.errors import RunError
from vit_dist.core.files import write_bytes
from vit_dist.core.run import names, records
from vit_dist.core.small_files import DamagedError, read_record
from vit_dist.core.store_patience import run_has_begun

DYING_S = 5.0
"""How long the ranks of an attempt that was killed may take to let go of its directory."""


def wait_for_stores(run_dir: Path) -> None:
    """Where a run has begun in a directory, stores are waited for as while it trains: an outage is not to end it."""
    if (run_dir / names.RUN).exists():
        run_has_begun()


@dataclass(frozen=True)
class RunDir:
    """Paths of a run, its small files, and its lock."""

    path: Path

    @property
    def events(self) -> Path:
        """Event files of all attempts."""
        return self.path / names.EVENTS

    @property
    def checkpoints(self) -> Path:
        """Step directories."""
        return self.path / names.CHECKPOINTS

    @property
    def profile(self) -> Path:
        """Traces and memory snapshots of steps that were profiled."""
        return self.path / names.PROFILE

    @property
    def quarantine(self) -> Path:
        """Samples that could not be decoded, a JSON object a line."""
        return self.path / names.QUARANTINE

    @property
    def nonfinite(self) -> Path:
        """Steps that were not applied, with the keys of their examples, a JSON object a line."""
        return self.path / names.NONFINITE

    @property
    def stacks(self) -> Path:
        """Where every thread stood when a rank hung, a file a rank."""
        return self.path / names.STACKS

    @property
    def order(self) -> Path:
        """What every step was trained on, a file an attempt and rank; see `log.order`."""
        return self.path / names.ORDER

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A small JSON file, or None where there is none.

        Raises:
            RunError: damaged.
        """
        path = self.path / name
        try:
            return read_record(path, records.FIELDS.get(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from None
        except DamagedError as error:
            raise RunError(f"{path}: damaged: {error}") from None

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON file, whole or not at all."""
        write_bytes(str(self.path / name), (json.dumps(value, indent=1) + "\n").encode())

    def check_free(self, patience_s: float | None = None) -> None:
        """Nothing, unless an attempt runs here; asked before anything is started or written.

        Raises:
            RunError: one still does after `patience_s` (DYING_S), or the directory cannot be used.
        """
        deadline = time.monotonic() + (DYING_S if patience_s is None else patience_s)
        while True:
            try:
                # Looked at, not taken: an attempt that starts at this very moment must not find it held.
                holder = locks.holder_of(self.path / names.LOCK)
            except OSError as error:
                raise self._unusable(error) from None
            if holder is None:
                return
            if time.monotonic() >= deadline:
                raise self._taken(holder)
            time.sleep(0.1)

    def is_free(self) -> bool:
        """Whether no attempt runs here, as far as can be known."""
        try:
            self.check_free(0.0)
        except RunError:
            return False
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one attempt. The lock goes with the process, however it dies.

        Raises:
            RunError: another attempt runs here, or the directory cannot be made.
        """
        holder = f"process {os.getpid()} on {socket.gethostname()}\n"
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.held(self.path / names.LOCK, holder))
            except locks.LockHeldError as error:
                raise self._taken(error.holder) from None
            except OSError as error:
                raise self._unusable(error) from None
            yield

    def _taken(self, holder: str) -> RunError:
        return RunError(
            f"{self.path}: another attempt is running in this directory ({holder or 'unknown process'}); wait "
            f"for it, stop it, or give another --run-dir"
        )

    def _unusable(self, error: OSError) -> RunError:
        return RunError(f"{self.path}: the run directory cannot be used: {error.strerror}")
