"""How runs stand: what their files say and what Slurm says of their jobs, made into one answer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launcher.slurm import commands as slurm
from launcher.slurm.commands import Job, NoSlurmError, SlurmAwayError
from launcher.status.advice import advise
from launcher.status.files import RunFiles, number, read_run
from launcher.status.run_view import RunView
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.run.names import SILENT_S
from vit_dist.core.units import Duration, format_seconds

_PATIENCE_S = 4.0


def look(paths: Sequence[Path], *, ask_slurm: bool = True) -> tuple[list[RunView], str]:
    """How these runs stand, and why Slurm could not be asked ('' where it could, or need not be).

    Slurm is asked once for all of them, and only about jobs of runs that have not ended.
    """
    # Threads, since a shared file system takes its time for each answer.
    with ThreadPoolExecutor(16) as pool:
        files = list(pool.map(read_run, paths))
    wanted = {one.job_id for one in files if one.job_id and one.status.get("status") != "done"}
    jobs, silence = _ask(wanted) if ask_slurm else ([], "Slurm was not asked")
    by_number = {number: job for job in jobs for number in (job.id, job.label)}
    now = time.time()
    views = []
    for one in files:
        job = by_number.get(one.job_id) or next((j for j in jobs if one.job_id and j.matches(one.job_id)), None)
        views.append(view(one, job, silence, now=now))
    return views, silence


def look_at(path: Path, *, ask_slurm: bool = True) -> tuple[RunView, str]:
    """How one run stands: as `look`, with all that Slurm or its accounting says of its job."""
    files = read_run(path)
    job, silence = None, ""
    if files.job_id and ask_slurm:
        try:
            job = slurm.job(files.job_id, patience_s=_PATIENCE_S)
            if job is None:
                records = slurm.accounting(files.job_id)
                # Numbers begin anew on some sites: what ended before the run was submitted is another's job.
                submitted = number(files.job, "submitted_at") or (files.attempts[0].begun if files.attempts else 0.0)
                job = next((j for j in reversed(records or []) if (j.end or submitted) >= submitted - 60), None)
        except (NoSlurmError, SlurmAwayError) as error:
            silence = str(error)
    return view(files, job, silence, now=time.time()), silence


def view(files: RunFiles, job: Job | None, silence: str = "", *, now: float) -> RunView:
    """One answer from the files of a run and its job.

    Args:
        files: of the run.
        job: as Slurm has it; None where it has dropped it, where there is none, or it could not be asked.
        silence: why Slurm could not be asked.
        now: seconds since 1970.
    """
    state, reason = _state(files, job, bool(silence), now)
    step, examples = int(number(files.status, "step")), int(number(files.status, "examples"))
    total = int(number(files.status, "total_steps")) or _planned_steps(files.run)
    goodput = _goodput(files)
    rate = number(files.status, "examples_per_s") or _mean_rate(examples, goodput)
    left = (total - step) * examples / step if step and total > step else 0.0
    last = files.attempts[-1] if files.attempts else None
    shown = RunView(
        path=files.path,
        state=state,
        reason=reason,
        step=max(step, files.saved or 0),
        total_steps=total,
        examples=examples,
        rate=rate,
        eta_s=left / rate if left and rate and state not in {"done", "failed"} else None,
        goodput=goodput,
        saved=files.saved,
        saved_at=files.saved_at,
        seen=files.last_heartbeat,
        job=job,
        job_id=files.job_id,
        cluster=str(files.job.get("cluster") or ""),
        devices=last.devices if last else int(number(files.job, "nodes") * number(files.job, "devices_per_node")),
        attempts=files.attempts,
        metrics=_numbers(files.status.get("metrics")),
        request=files.request,
        problems=files.problems,
    )
    return advise(shown, silence, now)


def _ask(ids: set[str]) -> tuple[list[Job], str]:
    if not ids:
        return [], ""
    try:
        return slurm.jobs(ids, patience_s=_PATIENCE_S), ""
    except VitDistError as error:
        return [], str(error)


def _state(files: RunFiles, job: Job | None, silent: bool, now: float) -> tuple[str, str]:
    # The run's own word, and what Slurm has done to its job since, which the run may not have lived to write down: so
    # all but `done` is held against the job first.
    written, reason = str(files.status.get("status", "")), str(files.status.get("reason") or "")
    if written == "done":
        return "done", reason
    if job is not None and job.waiting:
        return "waiting", job.reason
    if job is not None and not job.ended:
        last = files.attempts[-1] if files.attempts else None
        if last is not None and last.ended is not None and written != "running" and last.ended >= (job.start or 0.0):
            return "ending", last.cause.replace("_", " ")
        return ("running", "") if written == "running" and _of_this_attempt(files, job) else ("starting", "")
    if job is None and silent and files.job_id and written in {"", "running"}:
        fresh = files.last_heartbeat > now - SILENT_S
        return ("running", "") if fresh else ("silent", _ago("no heartbeat for", files.last_heartbeat, now))
    if job is None and not files.job_id and written == "running":
        return _local(files, now)
    return _ended(files, job, written, reason)


def _of_this_attempt(files: RunFiles, job: Job) -> bool:
    """Whether status.json was written since the job has its nodes."""
    return files.last_heartbeat >= (job.start or 0.0) - 1.0


def _ended(files: RunFiles, job: Job | None, written: str, reason: str) -> tuple[str, str]:
    last = files.attempts[-1] if files.attempts else None
    # The job has begun no attempt: what the ledger ends with is of a job before.
    if last is not None and number(files.job, "submitted_at") > last.begun:
        if files.cancelled:
            return "cancelled", "on request"
        if job is not None and job.state == "CANCELLED":
            return "cancelled", "by scancel"
    if last is not None and not last.open and last.ended is not None and last.ended >= number(files.status, "time") - 5:
        words = last.detail or reason or last.cause.replace("_", " ")
        if last.action == "give_up":
            return "given up", words
        if last.cause in {"done", "stopped", "cancelled"}:
            return last.cause, "" if last.cause == "done" else words
        if written != "stopped":
            return "failed", words if last.cause in words else f"{last.cause.replace('_', ' ')}: {words}"
    if files.cancelled:
        return "cancelled", "on request"
    if written in {"stopped", "failed"}:
        return written, reason
    if job is not None:
        return ("cancelled", "by scancel") if job.state == "CANCELLED" else ("failed", _slurm_words(job))
    if written == "running":
        return "lost", f"job {files.job_id} is no longer known to Slurm"
    return (
        ("lost", f"job {files.job_id} ended before it began to train") if files.job_id else ("new", "not yet started")
    )


def _slurm_words(job: Job) -> str:
    words = job.state.lower().replace("_", " ")
    code = f", exit code {job.exit_code}" if job.exit_code else ""
    killed = f", signal {job.exit_signal}" if job.exit_signal else ""
    known = job.reason and job.reason.lower() not in {"none", job.state.lower(), "nonzeroexitcode"}
    return f"Slurm says {words}{code}{killed}{f' ({job.reason})' if known else ''}"


def _local(files: RunFiles, now: float) -> tuple[str, str]:
    host, pid = str(files.status.get("host", "")), int(number(files.status, "pid"))
    if host == socket.gethostname():
        if _lives(pid):
            return "running", ""
        return "lost", f"process {pid} is gone, and has left no reason"
    fresh = files.last_heartbeat > now - SILENT_S
    return ("running", "") if fresh else ("silent", _ago(f"on {host}; no heartbeat for", files.last_heartbeat, now))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number may have gone to another program since.
    try:
        return b"vit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def _planned_steps(run: Mapping[str, Any]) -> int:
    """The length of a run from its identity; 0 where that is in epochs and the set's size is not known."""
    identity = run.get("identity")
    if not isinstance(identity, dict):
        return 0
    data = identity.get("data")
    subset = data.get("subset") if isinstance(data, dict) else None
    batch = identity.get("global_batch")
    try:
        horizon = Duration.parse(identity.get("horizon"))
        if not isinstance(batch, int) or (horizon.unit == "epochs" and not isinstance(subset, int)):
            return 0
        return horizon.steps(global_batch=batch, epoch_examples=subset if isinstance(subset, int) else 1)
    except (ValueError, ZeroDivisionError):
        return 0


def _goodput(files: RunFiles) -> Mapping[str, float]:
    """Of status.json, or of the heartbeat where that is newer: it is written between steps too."""
    status, heartbeat = _numbers(files.status.get("goodput")), _numbers(files.heartbeat.get("goodput"))
    return heartbeat if sum(heartbeat.values()) > sum(status.values()) else status


def _mean_rate(examples: int, goodput: Mapping[str, float]) -> float:
    spent = goodput.get("train", 0.0) + goodput.get("wait", 0.0)
    return examples / spent if spent > 0 else 0.0


def _numbers(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    return {str(k): float(v) for k, v in value.items() if isinstance(v, int | float)}


def _ago(words: str, when: float, now: float) -> str:
    return f"{words} {format_seconds(max(0.0, now - when))}" if when else "no heartbeat yet"


def require(path: Path, states: Sequence[str], doing: str) -> RunView:
    """The run, where its state allows what is wanted.

    Raises:
        RunError: it does not; names its state and what can be done.
    """
    shown, _ = look_at(path)
    if shown.state not in states:
        why = f" ({shown.reason})" if shown.reason else ""
        hint = f" {shown.advice[0]}" if shown.advice else ""
        wanted = ", ".join(states)
        raise RunError(f"{path}: {doing} needs a run that is {wanted}; this one is {shown.state}{why}.{hint}")
    return shown
