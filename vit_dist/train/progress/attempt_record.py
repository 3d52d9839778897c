"""The record of an attempt: status.json, and its two lines in attempts.jsonl. Written by rank 0 only."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from vit_dist.core.errors import VitDistError
from vit_dist.core.log import WARNING, log
from vit_dist.core.run.directory import RunDir, Status
from vit_dist.core.units import format_seconds
from vit_dist.core.world import World
from vit_dist.train.progress.goodput import Goodput
from vit_dist.train.progress.heartbeat import Heartbeat


class AttemptRecord:
    """The record of one attempt.

    Args:
        directory: of the run.
        world: this rank's place; on all but rank 0 nothing is written.

    Attributes:
        attempt: attempt number (1-based); 0 before `begin`, and always on ranks other than 0.
        token: fencing token of the attempt, see RunDir.take_ownership.
        before: status of the attempt before.
    """

    def __init__(self, directory: RunDir, world: World) -> None:
        self._directory, self._world = directory, world
        self.attempt, self.token, self.before, self._ended = 0, "", Status("none"), False
        self._step = self._examples = 0
        self._goodput: Mapping[str, float] = {}
        self.total_steps, self.examples_per_s, self.metrics = 0, 0.0, dict[str, float]()
        self._heartbeat: Heartbeat | None = None
        self._failing = False

    def begin(self) -> None:
        """Supersede the attempt before, and write the first line.

        Raises:
            RunError: the run directory cannot be written.
        """
        if not self._world.is_main:
            return
        lines = self._directory.attempts()
        self.attempt = 1 + max((int(line.get("attempt", 0)) for line in lines), default=0)
        self.before = self._directory.with_heartbeat(self._directory.status() or Status("none"))
        ended = {line.get("attempt") for line in lines if line.get("event") == "end"}
        for number in [n for line in lines if line.get("event") == "start" and (n := line.get("attempt")) not in ended]:
            # It could not write its own end: killed, or its machine is gone.
            end = {"event": "end", "attempt": number, "status": "killed", "step": self.before.step}
            self._directory.append_attempt({**end, "examples": self.before.examples, "last_seen": self.before.time})
        self.token = self._directory.take_ownership(self.attempt)
        place = {"host": socket.gethostname(), "pid": os.getpid(), "ranks": self._world.size}
        self._directory.append_attempt({"event": "start", "attempt": self.attempt, "token": self.token[:8], **place})
        self._step, self._examples = self.before.step, self.before.examples
        # Goodput's `down` is the one span between two machines' clocks; it is cut at 0, and this says why it may be.
        if self.before.time > time.time() + 60:
            ahead = format_seconds(self.before.time - time.time())
            log(f"  the last attempt's clock was {ahead} ahead of this machine's; nothing here depends on it")

    def start_heartbeat(self, goodput: Goodput) -> None:
        """Write these sums every two seconds from a thread, until the end; called again, others from now on."""
        if not self._world.is_main:
            return
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self._directory, self.attempt, self.token, goodput)
        self._heartbeat.goodput = goodput

    @property
    def superseded(self) -> str:
        """The later attempt that owns the directory, in words, as the heartbeat last saw it, or ''. On rank 0 only."""
        return self._heartbeat.superseded if self._heartbeat is not None else ""

    def look_up_owner(self) -> str:
        """As `superseded`, read from the directory now."""
        if not self._world.is_main or not self.token:
            return ""
        with contextlib.suppress(VitDistError):
            return self._directory.superseded_by(self.token)
        return ""

    def running(self, step: int, examples: int, goodput: Mapping[str, float]) -> None:
        """Write that the attempt runs, and where it stands."""
        self._step, self._examples, self._goodput = step, examples, goodput
        # Of a superseded attempt nothing is written: the later one's status stands there.
        if self.look_up_owner():
            return
        try:
            self._write_status("running", "")
        except VitDistError as error:
            # A run that can still save is worth more than its status, which the next save or log writes anew.
            if not self._failing:
                log(f"  {error}. Training goes on, and its status is written once it can be", WARNING)
            self._failing = True
        else:
            self._failing = False

    def end(self, status: str, reason: str = "", *, goodput: Mapping[str, float] | None = None) -> None:
        """Write how the attempt ended; the first write wins. Never raises: the disk may be what has failed."""
        # First write wins: watchdog, monitor and the exception that follows from what they met may all come here, from
        # threads of their own; the first is the nearest to the cause.
        if self._ended or not self._world.is_main or self.attempt == 0:
            return
        self._ended = True
        if self._heartbeat is not None:
            self._heartbeat.close()
        self._goodput = self._goodput if goodput is None else goodput
        with contextlib.suppress(VitDistError):
            if not self.look_up_owner():
                self._write_status(status, reason)
        with contextlib.suppress(VitDistError):
            entry: dict[str, Any] = {"event": "end", "attempt": self.attempt, "status": status, "reason": reason}
            entry |= {"step": self._step, "examples": self._examples, "goodput": dict(self._goodput)}
            self._directory.append_attempt(entry)

    def set_progress(self, step: int, examples: int) -> None:
        """Step and examples to write at the end."""
        self._step, self._examples = step, examples

    def _write_status(self, status: str, reason: str) -> None:
        if self._world.is_main and self.attempt:
            self._directory.write_status(
                status,
                self._step,
                self._examples,
                reason,
                attempt=self.attempt,
                goodput=self._goodput,
                total_steps=self.total_steps,
                examples_per_s=round(self.examples_per_s, 3),
                metrics=self.metrics,
            )
