"""What an attempt writes into the history of its run, and its heartbeat. Written by rank 0 only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from vit_dist.core.errors import VitDistError
from vit_dist.core.log import WARNING, log
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.history import Progress, Status
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
        token: fencing token of the attempt, see core/run/history.
        before: word of the attempt before.
        pass_on: on other ranks, what this one waits for: tells rank 0.
    """

    def __init__(self, directory: RunDir, world: World) -> None:
        self._path, self._world = directory.path, world
        self.attempt, self.token, self.before = 0, "", Status(status="none")
        self._trains = self._ended = False
        self._step = self._examples = 0
        self._goodput: Mapping[str, float] = {}
        self._timeline: Goodput | None = None
        self.total_steps, self.examples_per_s, self.metrics, self.stall = 0, 0.0, dict[str, float](), ""
        self._waits: dict[int, str] = {}
        self.pass_on: Callable[[str], None] = lambda _: None
        self._heartbeat: Heartbeat | None = None
        # Loop and heartbeat write one file: of two at once the older would win as often as not.
        self._writing = threading.Lock()
        self._failing = False

    def begin(self) -> None:
        """Supersede the attempt before, and write that this one has begun.

        Raises:
            RunError: the run directory cannot be read or written.
        """
        if not self._world.is_main:
            return
        saved = newest_step(self._path)
        self.attempt, self.token, state = history.take(self._path, ranks=self._world.size, saved=saved)
        self.before = state.status or self.before
        self._step, self._examples, self._goodput = self.before.step, self.before.examples, self.before.goodput
        # What was measured last stays that until something is measured, also where nothing is left to be done.
        # A former version called train/loss and val/loss by one name; here every tag has its folder.
        self.total_steps = self.before.total_steps
        self.metrics = {tag: value for tag, value in self.before.metrics.items() if "/" in tag}
        # Goodput's `down` is the one span between two machines' clocks; it is cut at 0, and this says why it may be.
        if self.before.time > time.time() + 60:
            ahead = format_seconds(self.before.time - time.time())
            log(f"  the last attempt's clock was {ahead} ahead of this machine's; nothing here depends on it")

    def start_heartbeat(self, goodput: Goodput) -> None:
        """Write these sums every two seconds from a thread, until the end; called again, others from now on."""
        if not self._world.is_main:
            return
        self._timeline = goodput
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(lambda: history.superseded_by(self._path, self.token), self._beat)

    @property
    def superseded(self) -> str:
        """The later attempt that owns the directory, in words, as the heartbeat last saw it, or ''. On rank 0 only."""
        return self._heartbeat.superseded if self._heartbeat is not None else ""

    def look_up_owner(self) -> str:
        """As `superseded`, read from the directory now."""
        if not self._world.is_main or not self.token:
            return ""
        with contextlib.suppress(VitDistError):
            return history.superseded_by(self._path, self.token)
        return ""

    def running(self, step: int, examples: int, goodput: Mapping[str, float]) -> None:
        """Write that the attempt trains, and how far it is.

        Not a word is worth the run: one that cannot be written is logged, and written anew at the next log or save.
        """
        self._step, self._examples, self._goodput = step, examples, goodput
        # Of a superseded attempt nothing is written: the later one's word stands there.
        if not self._world.is_main or not self.attempt or self.look_up_owner():
            return
        try:
            # First: who reads that it trains must not find the heartbeat of the attempt before beside that.
            self._beat()
            if not self._trains:
                history.training(self._path, self.attempt, step)
                self._trains = True
        except VitDistError as error:
            # A run that can still save is worth more than its word, which the next save or log writes anew.
            if not self._failing:
                log(f"  {error}. Training goes on, and how it stands is written once it can be", WARNING)
            self._failing = True
        else:
            self._failing = False

    def waits(self, text: str) -> None:
        """What this rank waits for, in words: told by `status`, and behind the reason of a failure. '': no longer."""
        if self._world.is_main:
            self.rank_waits(0, text)
        else:
            self.pass_on(text)

    def rank_waits(self, rank: int, text: str) -> None:
        """The same of any rank; on rank 0."""
        who = f" on rank {rank}" if self._world.size > 1 else ""
        self._waits[rank] = f"training waits for data{who}: {text}" if text else ""
        self.stall = self._all_waits()

    def _all_waits(self) -> str:
        return "; ".join(filter(None, self._waits.values()))

    def end(
        self,
        status: Literal["done", "stopped", "failed"],
        reason: str = "",
        *,
        goodput: Mapping[str, float] | None = None,
        refused: bool = False,
    ) -> None:
        """Write how the attempt ended; the first write wins. Never raises: the disk may be what has failed.

        Args:
            status: how.
            reason: more, for people.
            goodput: where the time went.
            refused: whether it was asked for what cannot be, see `history.end`.
        """
        # First write wins: watchdog, monitor and the exception that follows from what they met may all come here, from
        # threads of their own; the first is the nearest to the cause.
        if self._ended or not self._world.is_main or self.attempt == 0:
            return
        self._ended = True
        if self._heartbeat is not None:
            self._heartbeat.close()
        if goodput is None and self._timeline is not None:
            goodput = self._timeline.sums()
        self._goodput, self._timeline = self._goodput if goodput is None else goodput, None
        with contextlib.suppress(VitDistError):
            if not self.look_up_owner():
                saved, waits = newest_step(self._path), self._all_waits()
                reason = f"{reason}. {waits[0].upper()}{waits[1:]}" if status == "failed" and waits else reason
                history.end(self._path, status, self._progress(), reason=reason, saved=saved, refused=refused)

    def set_progress(self, step: int, examples: int) -> None:
        """Step and examples to write at the end."""
        self._step, self._examples = step, examples

    def _beat(self) -> None:
        with self._writing:
            history.beat(self._path, self._progress())

    def _progress(self) -> Progress:
        timeline = self._timeline
        return Progress(
            attempt=self.attempt,
            time=time.time(),
            step=self._step,
            examples=self._examples,
            total_steps=self.total_steps,
            examples_per_s=round(self.examples_per_s, 3),
            goodput=dict(self._goodput if timeline is None else timeline.sums()),
            metrics=dict(self.metrics),
            stall=self.stall,
        )
