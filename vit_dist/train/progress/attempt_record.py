"""What an attempt leaves behind about itself: status.json, and its lines in attempts.jsonl. First rank only."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from vit_dist.core.errors import VitDistError
from vit_dist.core.log import log
from vit_dist.core.run.directory import RunDir, Status
from vit_dist.core.units import format_seconds
from vit_dist.core.world import World
from vit_dist.train.progress.goodput import Goodput
from vit_dist.train.progress.heartbeat import Heartbeat


class AttemptRecord:
    """The record of one attempt.

    Args:
        directory: of the run.
        world: this rank's place; on all but the first rank nothing is written.
    """

    def __init__(self, directory: RunDir, world: World) -> None:
        self._directory, self._world = directory, world
        self.attempt, self.token, self.before, self._ended = 0, "", Status("none"), False
        self._step = self._examples = 0
        self._goodput: Mapping[str, float] = {}
        self.total_steps, self.examples_per_s, self.metrics = 0, 0.0, dict[str, float]()
        self._pulse: Heartbeat | None = None

    def begin(self) -> None:
        """Take the run over from the attempt before, and say so.

        Raises:
            RunError: the run directory cannot be written.
        """
        if not self._world.is_main:
            return
        lines = self._directory.attempts()
        self.attempt = 1 + max((int(line.get("attempt", 0)) for line in lines), default=0)
        self.before = self._directory.last_life(self._directory.status() or Status("none"))
        ended = {line.get("attempt") for line in lines if line.get("event") == "end"}
        for number in [n for line in lines if line.get("event") == "start" and (n := line.get("attempt")) not in ended]:
            # It could not say how it ended: killed, or its machine is gone.
            lost = {"event": "end", "attempt": number, "status": "killed", "step": self.before.step}
            self._directory.append_attempt({**lost, "examples": self.before.examples, "last_seen": self.before.time})
        self.token = self._directory.take_over(self.attempt)
        place = {"host": socket.gethostname(), "pid": os.getpid(), "ranks": self._world.size}
        self._directory.append_attempt({"event": "start", "attempt": self.attempt, "token": self.token[:8], **place})
        self._step, self._examples = self.before.step, self.before.examples
        if self.before.time > time.time() + 60:
            ahead = format_seconds(self.before.time - time.time())
            log(f"  the last attempt's clock was {ahead} ahead of this machine's; nothing here depends on it")

    def beat(self, goodput: Goodput) -> None:
        """From now on tell this every two seconds, from a thread, until the end."""
        if not self._world.is_main:
            return
        if self._pulse is None:
            self._pulse = Heartbeat(self._directory, self.attempt, self.token, goodput)
        self._pulse.goodput = goodput

    @property
    def fenced(self) -> str:
        """Who has taken the run over, as far as the pulse knows; else ''. On the first rank only."""
        return self._pulse.taken_over if self._pulse is not None else ""

    def superseded_by(self) -> str:
        """Who has taken the run over, looked up now; else ''. On the first rank only."""
        if not self._world.is_main or not self.token:
            return ""
        with contextlib.suppress(VitDistError):
            return self._directory.superseded_by(self.token)
        return ""

    def running(self, step: int, examples: int, goodput: Mapping[str, float]) -> None:
        """A sign of life."""
        self._step, self._examples, self._goodput = step, examples, goodput
        if not self.superseded_by():  # a later attempt's status stands there
            self._write("running", "")

    def end(self, status: str, reason: str = "", *, goodput: Mapping[str, float] | None = None) -> None:
        """How the attempt ended; the first word holds. Never raises: the disk may be what has failed."""
        if self._ended or not self._world.is_main or self.attempt == 0:
            return
        self._ended = True
        if self._pulse is not None:
            self._pulse.close()
        self._goodput = self._goodput if goodput is None else goodput
        with contextlib.suppress(VitDistError):
            if not self.superseded_by():
                self._write(status, reason)
        with contextlib.suppress(VitDistError):
            told: dict[str, Any] = {"event": "end", "attempt": self.attempt, "status": status, "reason": reason}
            told |= {"step": self._step, "examples": self._examples, "goodput": dict(self._goodput)}
            self._directory.append_attempt(told)

    def at(self, step: int, examples: int) -> None:
        """Where the attempt stands, for its end."""
        self._step, self._examples = step, examples

    def _write(self, status: str, reason: str) -> None:
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
