"""Saving while training continues: a copy to host memory blocks, the disk and object storage do not.

Every rank writes its part in a thread of its own, and a small `.done.json` beside it when it is on the disk. A thread
of the first rank waits for all of them, writes the marker, makes sure that the run is still this attempt's, and
renames the directory: that is the commit, and it needs no collective, which a background thread could not call beside
the training loop's own. The outcome of a save is agreed on when the next one begins, or at the end. Where a host has no
headroom for the copies, all ranks write before they continue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist import __version__
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.exit_codes import SUPERSEDED
from vit_dist.core.files import disk_problem, explained, remove_tree, sync_path, write_bytes
from vit_dist.core.log import WARNING, log
from vit_dist.core.memory import available_memory
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import FORMAT, MARKER, partial_name, rank_file, seal_marker, step_name
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.engines._collectives import all_gather_object, barrier, broadcast_object
from vit_dist.engines._protocol import Engine
from vit_dist.engines._slices import EngineState
from vit_dist.train.checkpoint.format import Snapshot
from vit_dist.train.checkpoint.host_memory import HostMemory, expected_bytes, pins, taken_bytes
from vit_dist.train.checkpoint.parts import finish_part, forget_parts, wait_for_parts
from vit_dist.train.checkpoint.remote import Uploader
from vit_dist.train.checkpoint.store import Retention, drop_after, no_disk_headroom, prune, remove
from vit_dist.train.health.patience import DEFAULT

# Fraction of a copy's size that is left to whatever else wants memory meanwhile.
_HEADROOM = 0.1


class SupersededError(RunError):
    """A later attempt owns the run directory: this one must not write to it."""

    exit_code = SUPERSEDED


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside weights and moments; all plain data.

    Attributes:
        state: the train state; `step` names the directory.
        recipe: the identity of the recipe.
        layout: what wrote it.
        extras: further entries of the marker: probe, metrics, goodput.
    """

    state: dict[str, Any]
    recipe: dict[str, Any]
    layout: dict[str, Any]
    extras: dict[str, Any]


class Saver:
    """Writes the checkpoints of one attempt, on one rank. To make one is a collective.

    Args:
        directory: of the run, shared by all ranks.
        world: this rank's place.
        token: fencing token of the attempt; see core/run/history.
        retention: which checkpoints stay.
        max_failures: so many failed saves in a row end the run.
        remote: URL under which checkpoints are copied, or ''.
        background: False writes before `save` returns, for measurements.
        peers_s: how long the commit waits for the parts of the other ranks.
    """

    def __init__(
        self,
        directory: RunDir,
        world: World,
        token: str,
        retention: Retention,
        *,
        max_failures: int = 3,
        remote: str = "",
        background: bool = True,
        peers_s: float = DEFAULT.other_work_s,
    ) -> None:
        self._directory, self._world, self._token, self._retention = directory, world, token, retention
        self._root = directory.checkpoints
        self._max_failures, self._failures, self._background = max_failures, 0, background
        self._peers_s = peers_s
        self._memory = HostMemory()
        self._copies = True
        self._ranks_here = all_gather_object(world.node, world).count(world.node)
        self._threads: list[threading.Thread] = []
        # Why this rank's writing failed, and on rank 0 why the commit did; set by threads, read once they are joined.
        self._write_error = ""
        self._commit_error = ""
        self._superseded = False
        self._abort = threading.Event()
        self._pending: int | None = None
        self._damaged: set[int] = set()
        self.last_step: int | None = None
        self.blocked_s = self.wrote_s = 0.0
        self.uploader = Uploader(self._root, remote, retention) if remote and world.is_main else None

    def distrust(self, steps: Collection[int], copies: Collection[int]) -> None:
        """Let no checkpoint that was found damaged, nor a copy that was, take the place of one that is whole.

        Args:
            steps: of checkpoints here.
            copies: steps of copies.
        """
        self._damaged = set(steps)
        if self.uploader is not None:
            self.uploader.damaged = set(copies)

    def prepare(self, engine: Engine, moments: float) -> None:
        """Begin to take the memory of the first copy, in a thread, where that takes seconds. A collective.

        Args:
            engine: restored or fresh.
            moments: numbers that its optimizer is going to keep for each weight; 0 where it was restored with them.
        """
        # Memory that is not pinned costs nothing before it is written to.
        if not pins():
            return
        need = expected_bytes(engine.state(), moments)
        self._copies = self._all_have_headroom(need)
        if self._copies:
            self._memory.prepare(need)

    def save(self, engine: Engine, contents: Contents) -> None:
        """Begin to write a checkpoint; returns when the state may change. A collective.

        A save that cannot begin, or that failed since the last call, is logged and counted.

        Raises:
            RunError: `max_failures` saves in a row have failed.
            SupersededError: a later attempt owns the run directory.
        """
        began = time.monotonic()
        self.settle()
        step = int(contents.state["step"])
        snapshot = self._snapshot(engine.state())
        # Ranks hold parts of about the same size, on one file system: rank 0's answer stands for all.
        needed = int(1.05 * snapshot.num_bytes * self._world.size)
        no_space = no_disk_headroom(self._root, needed) if self._world.is_main else ""
        if self._failed_on_main(no_space, step):
            return
        partial = self._root / partial_name(step, self._token)
        self._pending, self._write_error, self._commit_error = step, "", ""
        self._abort.clear()
        self._start(lambda: self._write(snapshot, partial))
        if self._world.is_main:
            self._start(lambda: self._commit(partial, contents, time.monotonic()))
        if not self._background:
            self.settle()
        # The thread writes from where the state lies: it must not change before.
        elif not self._copies:
            self._threads[0].join()
        self.blocked_s = time.monotonic() - began

    def _snapshot(self, state: EngineState) -> Snapshot:
        """A copy of the state, or where any rank's host has no headroom for one the state itself. A collective."""
        # Asked until there is memory for a copy, which is then used again.
        if not self._memory.is_taken:
            need = sum(piece.data.numel() * piece.data.element_size() for piece in state.slices)
            self._copies = self._all_have_headroom(need)
        return Snapshot(state, self._memory if self._copies else None)

    def _all_have_headroom(self, need: int) -> bool:
        """Whether every rank's host has memory for a copy of so many bytes; logged once where not. A collective."""
        # True on all ranks or on none, since they decide together: a rank that waited for its disk alone would keep the
        # others waiting in the next step.
        problems = all_gather_object(_no_memory_headroom(need, self._ranks_here), self._world)
        first = next(((rank, problem) for rank, problem in enumerate(problems) if problem), None)
        if first is not None and self._copies and self._world.is_main:
            log(f"  rank {first[0]}: {first[1]}: training waits while it is written", WARNING)
        return first is None

    def settle(self) -> None:
        """Wait for the save under way, and agree on its outcome. A collective where there is one.

        Raises:
            RunError, SupersededError: see `save`.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        self._threads[0].join()
        # All ranks have a save under way, or none: `save` begins one on every rank. Their errors are gathered before
        # the commit thread is joined, which would otherwise wait for a part that never comes.
        error = next((e for e in all_gather_object(self._write_error, self._world) if e), "")
        if self._world.is_main:
            if error:
                self._abort.set()
            self._threads[1].join()
        self._threads.clear()
        if not self._failed_on_main(error or self._commit_error, step):
            self._failures, self.last_step = 0, step

    def finish(self) -> None:
        """Wait for everything under way, uploads included, at the end of an attempt. A collective.

        Raises:
            RunError: the last checkpoint could not be written.
            SupersededError: see `save`.
        """
        self.settle()
        if self.uploader is not None:
            self.uploader.finish()
        if self._failures:
            raise RunError(
                f"{self._root}: the last checkpoint could not be written, see above; the ones before it are complete. "
                f"Free space or repair the storage and start the run again"
            )

    def send_logs(self) -> None:
        """Copy what logs and records say since the last checkpoint to where copies are kept; on rank 0."""
        if self.uploader is not None:
            self.uploader.send_logs()

    def covers(self, step: int) -> bool:
        """Whether the state after this step is saved, or on its way."""
        return step in (self._pending, self.last_step)

    def rewind_to(self, step: int) -> None:
        """Forget the checkpoints beyond `step`. A collective."""
        if self._world.is_main:
            # A run that resumed from what cannot be removed would go on along the trajectory that is given up.
            with explained(str(self._root), "cleared of the checkpoints after the rewind"):
                drop_after(self._root, step)
        self.last_step = step
        # No rank writes a checkpoint of the new trajectory while rank 0 still removes those of the old one.
        barrier(self._world)

    def _failed_on_main(self, problem: str, step: int) -> bool:
        """Whether rank 0 knows of a problem, the same on every rank; logs and counts it. A collective."""
        problem, superseded = broadcast_object((problem, self._superseded), self._world)
        if superseded:
            raise SupersededError(problem)
        if not problem:
            return False
        self._failures += 1
        if self._world.is_main:
            log(
                f"  CHECKPOINT FAILED at step {step:,}: {problem}. Training continues; the checkpoints before are "
                f"complete. Failure {self._failures} of {self._max_failures} in a row",
                WARNING,
            )
        if self._failures >= self._max_failures:
            raise RunError(
                f"{self._root}: {self._failures} checkpoints in a row could not be written, the last since {problem}; "
                f"continuing would lose more than it gains (checkpoint.max_failures). Free space or repair the storage "
                f"and start the run again"
            )
        return True

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _write(self, snapshot: Snapshot, partial: Path) -> None:
        """This rank's part, then its `.done.json`."""
        name = rank_file(self._world.rank)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            digest = snapshot.write(partial / name)
            finish_part(partial, self._world.rank, snapshot.num_bytes, digest)
        # Whatever it was: in a thread it would be lost, and the other ranks would wait for this part.
        except Exception as error:
            self._write_error = f"rank {self._world.rank}: {self._told(error)}"

    def _commit(self, partial: Path, contents: Contents, began: float) -> None:
        try:
            files = wait_for_parts(
                partial, self._world.size, self._abort, lambda: self._write_error, self._peers_s, began
            )
            marker = {
                "format": FORMAT,
                "vit_dist": __version__,
                "layout": contents.layout,
                "recipe": contents.recipe,
                "state": contents.state,
                "files": files,
                "wrote_s": round(time.monotonic() - began, 3),
                **contents.extras,
            }
            write_bytes(str(partial / MARKER), seal_marker(marker))
            forget_parts(partial, self._world.size)
            final = self._root / step_name(int(contents.state["step"]))
            # As late as can be: between this look and the rename an attempt that was suspended here could still commit
            # over a newer one's, which is a moment in place of the minutes that writing takes.
            self._check_owner()
            # An attempt before this one got as far, and its checkpoint was skipped as damaged.
            remove(final)
            # The commit. Then the directory's entry: without it the rename may be lost with the machine's power though
            # the files are on the disk.
            partial.rename(final)
            sync_path(self._root)
            self.wrote_s = time.monotonic() - began
        except SupersededError as error:
            self._superseded, self._commit_error = True, str(error)
            remove_tree(partial)
            return
        except Exception as error:
            self._commit_error = self._told(error)
            remove_tree(partial)
            return
        try:
            # Written anew a step is whole, whatever lay there.
            self._damaged.discard(int(contents.state["step"]))
            prune(self._root, self._retention, self._damaged)
        # The checkpoint is there: an old one too many is no failure of it.
        except OSError as error:
            log(f"  {self._root}: an old checkpoint could not be removed: {error}", WARNING)
        if self.uploader is not None:
            self.uploader.submit(final)

    def _told(self, error: Exception) -> str:
        if isinstance(error, VitDistError):
            return str(error)
        problem = isinstance(error, OSError) and disk_problem(error)
        return f"{self._root}: {problem}" if problem else f"{type(error).__name__}: {error}"

    def _check_owner(self) -> None:
        superseded = history.superseded_by(self._directory.path, self._token)
        if superseded:
            raise SupersededError(superseded)


def _no_memory_headroom(need: int, ranks: int) -> str:
    """Why each of the ranks of this host cannot take so many bytes more; '' where it can."""
    available, taken = available_memory(), taken_bytes(need)
    if available is None or available // ranks > taken * (1 + _HEADROOM):
        return ""
    rounded = f" ({format_bytes(taken)} of pinned memory)" if taken > need else ""
    left = format_bytes(available // ranks)
    return (
        f"{format_bytes(need)} of a checkpoint{rounded} do not fit a second time into the {left} of memory that are "
        f"left to it"
    )
