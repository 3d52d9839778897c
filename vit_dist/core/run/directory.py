"""The directory of a run: its small files read and written, who it belongs to, how it stands. No torch.

What lies in it: core/run/names.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vit_dist.core import locks
from vit_dist.core.errors import RunError
from vit_dist.core.files import append_json, write_bytes
from vit_dist.core.log import log
from vit_dist.core.run import names, records
from vit_dist.core.small_files import DamagedError, is_number, is_text, or_none, read_record, read_records, read_small
from vit_dist.core.store_patience import run_has_begun
from vit_dist.core.text import decode_text

DYING_S = 5.0
"""How long the ranks of an attempt that was killed may take to let go of its directory."""


@dataclass(frozen=True)
class Status:
    """How an attempt stands.

    Attributes:
        status: 'running', 'done', 'stopped' (on request, to be continued) or 'failed'.
        step: optimizer steps completed.
        examples: examples consumed.
        reason: why it stopped or failed.
        host, pid, time: who wrote this, and when (seconds since 1970).
        attempt: attempt number (1-based).
        goodput: where the time of all attempts went, in seconds (see train/progress/goodput.py).
        total_steps: length of the run; 0 where that is not known yet.
        examples_per_s: at the last log.
        metrics: what was measured last, by short names.
    """

    status: str
    step: int = 0
    examples: int = 0
    reason: str = ""
    host: str = ""
    pid: int = 0
    time: float = 0.0
    attempt: int = 0
    goodput: dict[str, float] = field(default_factory=dict)
    total_steps: int = 0
    examples_per_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


def wait_for_stores(run_dir: Path) -> None:
    """Where a run has begun in a directory, stores are waited for as while it trains: an outage is not to end it."""
    if (run_dir / names.RUN).exists():
        run_has_begun()


@dataclass(frozen=True)
class RunDir:
    """Paths of a run, and its small files."""

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

    def status(self) -> Status | None:
        """How the last attempt stands, or None before the first.

        Raises:
            RunError: damaged.
        """
        raw = self.read_json(names.STATUS)
        if raw is None:
            return None
        if "status" not in raw:
            raise RunError(f"{self.path / names.STATUS}: damaged: it has no status")
        return Status(**{k: v for k, v in raw.items() if k in Status.__dataclass_fields__})

    def write_status(
        self,
        status: str,
        step: int,
        examples: int,
        reason: str = "",
        *,
        attempt: int = 0,
        goodput: Mapping[str, float] | None = None,
        total_steps: int = 0,
        examples_per_s: float = 0.0,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write how this attempt stands."""
        payload = Status(
            status,
            step,
            examples,
            reason,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=time.time(),
            attempt=attempt,
            goodput=dict(goodput or {}),
            total_steps=total_steps,
            examples_per_s=examples_per_s,
            metrics={name: value for name, value in (metrics or {}).items() if math.isfinite(value)},
        )
        self.write_json(names.STATUS, asdict(payload))

    def take_ownership(self, attempt: int) -> str:
        """Make this attempt the one that may write here; an older one that still runs is superseded by it.

        Returns:
            Its fencing token: what the attempt writes from now on must find this token in owner.json.
        """
        # Beside the lock and not in place of it: locks do not work on every shared file system, and a machine that was
        # cut off keeps one until it wakes up and writes.
        token = secrets.token_hex(16)
        owner = {"token": token, "attempt": attempt, "host": socket.gethostname(), "pid": os.getpid()}
        self.write_json(names.OWNER, {**owner, "time": time.time()})
        return token

    def owner(self) -> dict[str, Any]:
        """The attempt that may write here; empty where none has begun."""
        return self.read_json(names.OWNER) or {}

    def superseded_by(self, token: str) -> str:
        """The later attempt that owns the directory, in words; '' where the attempt with this token still does."""
        owner = self.owner()
        if owner.get("token") == token:
            return ""
        return (
            f"{self.path}: attempt {owner.get('attempt')} on {owner.get('host')} (process {owner.get('pid')}) has "
            f"superseded this attempt, which ends without writing. If both are yours, stop one of them"
        )

    def write_heartbeat(self, attempt: int, goodput: Mapping[str, float]) -> None:
        """Write that an attempt runs, and where its time went.

        Raises:
            RunError: it cannot be written.
        """
        path, temporary = self.path / names.HEARTBEAT, self.path / f".{names.HEARTBEAT}.tmp"
        beat = json.dumps({"attempt": attempt, "time": time.time(), "goodput": dict(goodput)})
        # Renamed, so that no reader sees half of it; not flushed to the disk, since the next one comes in two seconds.
        try:
            temporary.write_text(beat)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise RunError(f"{path}: cannot be written: {error.strerror}") from None

    def with_heartbeat(self, status: Status) -> Status:
        """The status, with the times of alive.json where these reach further: after a crash they do."""
        with contextlib.suppress(RunError, TypeError, ValueError, AttributeError, KeyError):
            heartbeat = self.read_json(names.HEARTBEAT) or {}
            # It ended as it should: the sums it wrote then are exact, those of the heartbeat before are not.
            if status.status in {"done", "stopped"} and int(heartbeat["attempt"]) <= status.attempt:
                return status
            goodput = {str(bucket): float(seconds) for bucket, seconds in heartbeat.get("goodput", {}).items()}
            if sum(goodput.values()) > sum(status.goodput.values()):
                return replace(status, goodput=goodput, time=float(heartbeat["time"]))
        return status

    def attempts(self) -> list[dict[str, Any]]:
        """The complete lines of attempts.jsonl, in the order they were written.

        Raises:
            RunError: it is there and cannot be read.
        """
        path = self.path / names.ATTEMPTS
        try:
            return list(read_records(path, records.ATTEMPT))
        except FileNotFoundError:
            return []
        except (OSError, DamagedError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from None

    def append_attempt(self, entry: Mapping[str, Any]) -> None:
        """Add a line to attempts.jsonl."""
        path = self.path / names.ATTEMPTS
        try:
            append_json(path, {**entry, "time": time.time()})
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from None

    def evaluation(
        self, evaluators: Sequence[Mapping[str, Any]], step: int, val: str | None = None
    ) -> dict[str, float] | None:
        """What these evaluators, as plain data, measured at this step; None where they have not run.

        Args:
            evaluators: those of a recipe.
            step: of the checkpoint.
            val: with this validation set alone, or where an old entry does not say with which; None: with any.

        Raises:
            RunError: the record is damaged.
        """
        for entry, values in self._evaluations(step):
            if entry.get("evaluators") == list(evaluators) and (val is None or entry.get("val", val) == val):
                return values
        return None

    def evaluations(self, step: int) -> dict[str, float]:
        """What evaluations measured at this step, by tag; nothing of those that do not say on which sets they did.

        Raises:
            RunError: the record is damaged.
        """
        found: dict[str, float] = {}
        for entry, values in self._evaluations(step):
            tags = entry.get("tags", {})
            if not isinstance(tags, dict) or not all(map(is_text, tags.values())):
                raise RunError(f"{self.path / names.EVALUATED}: damaged: the tags of step {step:,}")
            found |= {tags[metric]: value for metric, value in values.items() if metric in tags}
        return found

    def _evaluations(self, step: int) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
        for entry in (self.read_json(names.EVALUATED) or {}).get("evaluations", []):
            if entry.get("step") == step:
                values = entry.get("values")
                if not isinstance(values, dict) or not all(map(or_none(is_number), values.values())):
                    raise RunError(f"{self.path / names.EVALUATED}: damaged: the values of step {step:,}")
                yield entry, {name: math.nan if value is None else float(value) for name, value in values.items()}

    def record_evaluation(
        self,
        evaluators: Sequence[Mapping[str, Any]],
        step: int,
        values: Mapping[str, float],
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Add to the record that `evaluation` reads; `more` has further fields: the sets, tags, the validation set."""
        record = self.read_json(names.EVALUATED) or {"evaluations": []}
        # JSON has no NaN.
        shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
        entry = {"step": step, "evaluators": list(evaluators), "values": shown, **(more or {})}
        self.write_json(names.EVALUATED, {"evaluations": [*record.get("evaluations", []), entry]})

    def take_request(self) -> str:
        """What the request file asks for: 'save', 'stop' or ''. The file is removed, so that it is served once.

        A file with anything else in it is set aside as request.unknown.
        """
        path = self.path / names.REQUEST
        try:
            # Whoever writes it by hand may write it with a byte order mark.
            asked = decode_text(read_small(path, 4096)).strip().lower()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):
            asked = "unreadable"
        # An empty file is being written just now: a shell creates it before `echo` fills it.
        if asked == "":
            return ""
        known = asked in names.REQUESTS
        with contextlib.suppress(OSError):
            path.unlink() if known else path.rename(path.with_suffix(".unknown"))
        if not known:
            log(f"  {path}: asks for {asked[:40]!r}; it may say `save` or `stop`. Set aside as request.unknown")
        return asked if known else ""

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
