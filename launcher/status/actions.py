"""What a person does to a run from outside: ask for a checkpoint, stop it, cancel its job, queue it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from launcher.slurm import commands as slurm
from launcher.slurm.commands import Job
from launcher.status.run_view import RunView
from launcher.status.view import look_at, require
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.log import log
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import newest_checkpoint, steps_in_hand
from vit_dist.core.units import format_seconds

T = TypeVar("T")

_POLL_S = 0.25
_AGAIN_S = 3.0
_CANCEL_S = 180.0


def ask(path: Path, what: str) -> None:
    """Write the request `save` or `stop`. A stop that is pending is not turned into a save.

    Raises:
        RunError: a stop is requested already.
        DataError: the file cannot be written.
    """
    if what == "save" and history.pending_request(path) == "stop":
        raise RunError(f"{path}: a stop is requested already; it saves, too")
    history.ask(path, what)


def checkpoint(path: Path, *, timeout_s: float) -> int:
    """Ask a run for a checkpoint and wait until one is committed. Returns its step.

    Raises:
        RunError: the run does not train, ended before it had saved, or took too long.
    """
    require(path, ("running",), "a checkpoint")
    # Before the request: a save that is being written when that is read holds state from before it.
    in_hand, asked_at = steps_in_hand(path), time.time()
    ask(path, "save")
    served_at = 0.0

    def saved() -> int | None:
        nonlocal served_at
        if history.pending_request(path):
            return None
        served_at = served_at or time.monotonic()
        step, at = newest_checkpoint(path)
        if step is not None and step not in in_hand:
            return step
        # The run does not save a step twice: where that of the current step was being written already, it is the one.
        idle = not steps_in_hand(path) - {step} if step is not None else False
        if step is not None and at >= asked_at - 1 and idle and time.monotonic() - served_at > 5:
            return step
        return None

    return _until(path, saved, timeout_s, "a checkpoint")


def stop(path: Path, *, timeout_s: float, wait: bool = True) -> RunView:
    """Let a run save and end, and not be queued again. One that still waits in the queue is taken out of it.

    Raises:
        RunError: there is nothing to stop, or it took too long.
    """
    view = require(path, ("running", "starting", "waiting"), "a stop")
    if view.state == "waiting":
        return cancel(path)
    ask(path, "stop")
    if not wait:
        return view

    def ended() -> RunView | None:
        now, _ = look_at(path)
        # It was requeued for another reason before it had read the request: nobody reads that in the queue.
        if now.state == "waiting":
            cancel(path)
            now, _ = look_at(path)
        return now if not now.active and now.state != "silent" else None

    after = _until(path, ended, timeout_s, "the stop", may_end=True)
    history.withdraw(path, "stop")
    return after


def cancel(path: Path, *, timeout_s: float = _CANCEL_S) -> RunView:
    """End a run's job for good, without a save of its own; repeated until Slurm says that it has ended.

    The request is written down first: an scancel that meets a requeue is lost, and a supervisor that still lives must
    not queue the job again.

    Raises:
        RunError: it has no job, or the job does not end.
    """
    view, silence = look_at(path)
    if not view.job_id:
        raise RunError(
            f"{path}: has no Slurm job; a run on this machine is ended with `vit-dist stop`, or Ctrl-C in its terminal"
        )
    if silence:
        raise RunError(f"{path}: job {view.job_id} cannot be cancelled from here: {silence}")
    if view.job is None or view.job.ended:
        raise RunError(f"{path}: its job {view.job_id} has ended already; the run is {view.state}")
    history.ask_cancel(path, view.job_id)
    deadline, again_at, quiet = time.monotonic() + timeout_s, 0.0, 0
    # Ended three looks in a row: between its end and a requeue that was under way a job shows as ended for a moment.
    while quiet < 3:
        if time.monotonic() > deadline:
            raise RunError(
                f"{path}: job {view.job_id} has not ended after {format_seconds(timeout_s)} of scancel; see `scontrol "
                f"show job {view.job_id}`"
            )
        job = slurm.job(view.job_id)
        if job is None or job.ended:
            quiet += 1
        else:
            quiet = 0
            if time.monotonic() >= again_at:
                slurm.scancel(view.job_id)
                again_at = time.monotonic() + _AGAIN_S
        time.sleep(_POLL_S)
    history.withdraw(path, "stop", "save")
    return look_at(path)[0]


def requeue(path: Path, *, exclude: Sequence[str] = (), now: bool = False, save_s: float | None = 600.0) -> Job:
    """Put a run's job back into the queue, where it resumes from its newest checkpoint.

    Args:
        path: of the run.
        exclude: nodes that it must not get again, besides those it had to avoid before.
        now: do not wait the two minutes that Slurm lets a requeued job wait.
        save_s: how long to wait for a checkpoint first; None for none.

    Raises:
        ConfigError: a node that is not one.
        RunError: it has no job that could be queued again.
    """
    nodes = [node for one in exclude for node in check_nodes(one)]
    view, silence = look_at(path)
    if silence or view.job is None or view.job.ended:
        why = silence or (f"its job {view.job_id} has ended" if view.job_id else "it has no Slurm job")
        raise RunError(f"{path}: cannot be queued again: {why}; `vit-dist resume` makes a new job for it")
    job = view.job
    if not job.waiting:
        if view.state == "running" and save_s is not None:
            asked = checkpoint(path, timeout_s=save_s)
            log(f"  {view.name}: saved up to step {asked:,}; its job goes back into the queue now")
        # First: the supervisor, whom Slurm ends then, says by this why its attempt has ended.
        history.requeue(path, view.job_id)
        slurm.requeue(view.job_id)
        job = _queued(view.job_id, job.restarts or 0)
        # The end of its attempt saves once more: later than the checkpoint that was asked for.
        newest, _ = newest_checkpoint(path)
        if newest is not None:
            log(f"  {view.name}: goes on from step {newest:,}, its newest checkpoint")
    changes: dict[str, str] = {}
    if nodes:
        before = slurm.hostnames(job.excluded)
        changes["ExcNodeList"] = ",".join(dict.fromkeys([*before, *nodes]))
    if now:
        changes["StartTime"] = "now"
    if changes:
        slurm.update(view.job_id, **changes)
    if "held" in job.reason.lower() and now:
        slurm.release(view.job_id)
    return slurm.job(view.job_id) or job


def check_nodes(text: str) -> list[str]:
    """The nodes of `n1,n2` or `n[1-3]`, known to Slurm.

    Raises:
        ConfigError: not the names of nodes.
    """
    if not text or not all(c.isalnum() or c in "-_.,[]" for c in text):
        raise ConfigError(f"--exclude {text!r}: not a node, nor a list such as n1,n2 or n[1-3]")
    names = slurm.hostnames(text)
    known = slurm.node_states()
    strange = [name for name in names if name not in known]
    if strange:
        raise ConfigError(f"--exclude {text}: Slurm has no node {', '.join(strange)}; it has {_some(sorted(known))}")
    return names


def _queued(job_id: str, restarts: int) -> Job:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = slurm.job(job_id)
        if job is None:
            break
        if job.waiting or (job.restarts or 0) > restarts:
            return job
        time.sleep(_POLL_S)
    raise RunError(f"job {job_id} was asked to go back into the queue and has not; see `scontrol show job {job_id}`")


def _until(path: Path, ready: Callable[[], T | None], timeout_s: float, what: str, *, may_end: bool = False) -> T:
    """Poll until there is an answer; every two seconds make sure that the run has not ended instead."""
    began, next_look = time.monotonic(), time.monotonic() + 2.0
    while True:
        answer = ready()
        if answer is not None:
            return answer
        if time.monotonic() - began > timeout_s:
            raise RunError(
                f"{path}: {what} has not come within {format_seconds(timeout_s)}; the request stands. `vit-dist "
                f"status {path}` shows how the run is, --timeout waits longer"
            )
        if not may_end and time.monotonic() >= next_look:
            next_look = time.monotonic() + 2.0
            # The history first: Slurm is asked only where the run no longer says that it runs.
            status = history.read(path, most=history.TAIL_BYTES, forgiving=True).status
            if status is not None and status.status not in {"starting", "running"} and ready() is None:
                view, _ = look_at(path)
                if view.state in {"done", "stopped"} and view.saved is not None:
                    raise RunError(f"{path}: the run is {view.state}, and saved up to step {view.saved:,} by that")
                if not view.active:
                    history.withdraw(path, "save")
                    raise RunError(f"{path}: the run ended before it had saved: {view.state}, {view.reason}")
        time.sleep(_POLL_S)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def device_count(path: Path) -> int:
    """Ranks of the run's last attempt; 1 where that is not known."""
    last = history.read(path, forgiving=True).last
    return last.devices if last is not None else 1
