"""The directory of a run: where what lies in it, its identity, and the lock that an attempt holds. No torch.

What lies in it: core/run/names.py. What became of the run and how it stands: core/run/history.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core import locks, process
from vit_dist.core.errors import RunError
from vit_dist.core.files import write_bytes
from vit_dist.core.folders import refuse_others, visible
from vit_dist.core.run import names, records
from vit_dist.core.run.checkpoints import step_of
from vit_dist.core.small_files import DamagedError, read_record
from vit_dist.core.store_patience import run_has_begun

DYING_S = 5.0
"""How long the ranks of an attempt that was killed may take to let go of its directory."""
_ENDING_S = 0.5
"""The same of one whose holder is seen to live: it may be about to end by itself."""

_BEFORE_A_RUN = frozenset(
    {
        names.RECIPE,
        names.OWNER,
        names.HEARTBEAT,
        names.CANCEL,
        names.REQUEST,
        names.QUARANTINE,
        names.NONFINITE,
        names.LOCK,
        names.BY_EVALUATORS,
        names.FORMER_EVALUATED,
    }
)
_PRINTED = re.compile(r".+\.(?:log|out|err)")
"""What a shell, a job script or `tee` has opened for the words of a run before the run began."""
_IN_FOLDERS = {
    names.LOGS: re.compile(r"attempt-[0-9]+|evaluate-.*|.+\.(?:log|out|err)"),
    names.JOB_FOLDER: re.compile(rf"{re.escape(names.RECIPE)}|{re.escape(names.CLUSTER)}|code|.+\.sbatch"),
    names.PLUGINS: re.compile(r".+\.py"),
    names.STACKS: re.compile(r"rank-.*|nccl_trace_.*|attempt-.*"),
}
"""Folders in which an attempt leaves something before it says that a run has begun, and what."""


def wait_for_stores(run_dir: Path) -> None:
    """Where a run has begun in a directory, stores are waited for as while it trains: an outage is not to end it."""
    if (run_dir / names.RUN).exists():
        run_has_begun()


_HOLDER = "process {pid} on {host}\n"


def _lives(holder: str) -> bool:
    """Whether the holder of a lock is a process of this machine that nothing is about to end."""
    words = re.fullmatch(r"process ([0-9]{1,9}) on (\S+)", holder)
    return words is not None and words[2] == socket.gethostname() and process.lives(int(words[1]))


def _is_of_a_run(path: Path) -> bool:
    """Whether something may have been left by an attempt that ended before its run had begun, or is a run's copy."""
    if path.name == names.CHECKPOINTS:
        return path.is_dir() and all(step_of(inner.name) is not None for inner in visible(path))
    if path.name in _IN_FOLDERS:
        return path.is_dir() and all(_IN_FOLDERS[path.name].fullmatch(inner.name) for inner in visible(path))
    return path.is_file() and (path.name in _BEFORE_A_RUN or _PRINTED.fullmatch(path.name) is not None)


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

    def check_ours(self) -> None:
        """Nothing, where the directory is a run's, new or empty; asked before anything is written into it.

        Raises:
            ConfigError: what lies in it is somebody else's.
        """
        if any(os.path.lexists(self.path / mark) for mark in names.MARKS_OF_A_RUN):
            return
        refuse_others(self.path, _is_of_a_run, what="a run", do="give another --run-dir")

    def check_free(self, patience_s: float | None = None) -> None:
        """Nothing, unless an attempt runs here; asked before anything is started or written.

        Raises:
            RunError: one still does after `patience_s` (DYING_S; less where its holder is seen to live), or the
                directory cannot be used.
        """
        began = time.monotonic()
        while True:
            try:
                # Looked at, not taken: an attempt that starts at this very moment must not find it held.
                holder = locks.holder_of(self.path / names.LOCK)
            except OSError as error:
                raise self._unusable(error) from None
            if holder is None:
                return
            patient_s = (_ENDING_S if _lives(holder) else DYING_S) if patience_s is None else patience_s
            if time.monotonic() - began >= patient_s:
                raise self._taken(holder)
            time.sleep(0.05)

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
        holder = _HOLDER.format(pid=os.getpid(), host=socket.gethostname())
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
