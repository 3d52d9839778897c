"""How runs stand: what their files say and what Slurm says of their jobs, made into one answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from launcher.slurm import commands as slurm
from launcher.slurm.commands import Job, NoSlurmError, SlurmAwayError
from launcher.status.advice import advise, in_words
from launcher.status.files import RunFiles, read_run
from launcher.status.run_view import RunView
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.run import history, lineage
from vit_dist.core.run.history import JobWord
from vit_dist.core.run.lineage import described, read_lineage
from vit_dist.core.units import Duration

_PATIENCE_S = 4.0


def look(paths: Sequence[Path], *, ask_slurm: bool = True, whole: bool = False) -> tuple[list[RunView], str]:
    """How these runs stand, and why Slurm could not be asked ('' where it could, or need not be).

    Slurm is asked once for all of them, and only about jobs of runs that have not ended. Of each only the last attempts
    are read, unless `whole` asks for all.
    """
    most = None if whole else history.TAIL_BYTES
    # Threads, since a shared file system takes its time for each answer.
    with ThreadPoolExecutor(16) as pool:
        files = list(pool.map(lambda path: read_run(path, most=most), paths))
    wanted = {one.state.job_id for one in files if one.state.job_id and not _done(one)}
    jobs, silence = _ask(wanted) if ask_slurm else ([], "Slurm was not asked")
    by_number = {number: job for job in jobs for number in (job.id, job.label)}
    now = time.time()
    views = []
    for one in files:
        number = one.state.job_id
        job = by_number.get(number) or next((j for j in jobs if number and j.matches(number)), None)
        views.append(view(one, job, silence, now=now))
    return views, silence


def look_at(path: Path, *, ask_slurm: bool = True) -> tuple[RunView, str]:
    """How one run stands: as `look`, with all that Slurm or its accounting says of its job."""
    files = read_run(path)
    state, job, silence = files.state, None, ""
    if state.job_id and ask_slurm:
        try:
            job = slurm.job(state.job_id, patience_s=_PATIENCE_S)
            if job is None:
                records = slurm.accounting(state.job_id)
                # Numbers begin anew on some sites: what ended before the run was submitted is another's job.
                submitted = state.submitted_at or (state.attempts[0].begun if state.attempts else 0.0)
                job = next((j for j in reversed(records or []) if (j.end or submitted) >= submitted - 60), None)
        except (NoSlurmError, SlurmAwayError) as error:
            silence = str(error)
    elif state.job_id:
        silence = "Slurm was not asked"
    shown = view(files, job, silence, now=time.time())
    try:
        return replace(shown, evaluated=history.newest_evaluations(path)), silence
    except RunError as error:
        return replace(shown, problems=(*shown.problems, str(error))), silence


def view(files: RunFiles, job: Job | None, silence: str = "", *, now: float) -> RunView:
    """One answer from the files of a run and its job.

    Args:
        files: of the run.
        job: as Slurm has it; None where it has dropped it, where there is none, or it could not be asked.
        silence: why Slurm could not be asked.
        now: seconds since 1970.
    """
    state, progress = files.state, files.state.progress
    standing, reason = history.stands(state, _word(job, bool(silence)), now)
    trunks = read_lineage(files.run.get(lineage.KEY, []))
    # A branch that has begun no attempt stands where its trunk was left.
    step, examples = progress.step, progress.examples or (trunks[-1].examples if trunks else 0)
    total = progress.total_steps or _planned_steps(files.run)
    rate = progress.examples_per_s or _mean_rate(examples, progress.goodput)
    left = (total - step) * examples / step if step and total > step else 0.0
    last = state.last
    facts = state.submission
    shown = RunView(
        path=files.path,
        state=standing,
        reason=reason,
        step=max(step, files.saved or 0),
        total_steps=total,
        examples=examples,
        rate=rate,
        eta_s=left / rate if left and rate and standing not in {"done", "failed"} else None,
        goodput=progress.goodput,
        saved=files.saved,
        saved_at=files.saved_at,
        seen=state.last_seen,
        job=job,
        job_id=state.job_id,
        cluster=str(facts.get("cluster") or ""),
        devices=last.devices if last else int(facts.get("nodes", 0)) * int(facts.get("devices_per_node", 0)),
        attempts=state.attempts,
        tries=last.attempt if last else 0,
        logged=files.logged,
        metrics=progress.metrics,
        branched_from=described(trunks),
        stall=progress.stall if standing == "running" else "",
        request=state.request,
        problems=files.problems,
    )
    return advise(shown, silence, now)


def _done(files: RunFiles) -> bool:
    status = files.state.status
    return status is not None and status.status == "done"


def _ask(ids: set[str]) -> tuple[list[Job], str]:
    if not ids:
        return [], ""
    try:
        return slurm.jobs(ids, patience_s=_PATIENCE_S), ""
    except VitDistError as error:
        return [], str(error)


def _word(job: Job | None, silent: bool) -> JobWord:
    """What Slurm says of a job, as the history takes it."""
    if job is None:
        return JobWord("unasked" if silent else "gone")
    known: Literal["waiting", "active", "ended"] = "waiting" if job.waiting else "ended" if job.ended else "active"
    reason = in_words(job.reason) if job.waiting else _slurm_words(job) if job.ended else ""
    return JobWord(known, reason, job.start or 0.0, job.restarts, job.state == "CANCELLED", job.state == "COMPLETING")


def _slurm_words(job: Job) -> str:
    words = job.state.lower().replace("_", " ")
    code = f", exit code {job.exit_code}" if job.exit_code else ""
    killed = f", signal {job.exit_signal}" if job.exit_signal else ""
    known = job.reason and job.reason.lower() not in {"none", job.state.lower(), "nonzeroexitcode"}
    return f"Slurm says {words}{code}{killed}{f' ({job.reason})' if known else ''}"


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


def _mean_rate(examples: int, goodput: Mapping[str, float]) -> float:
    spent = goodput.get("train", 0.0) + goodput.get("wait", 0.0)
    return examples / spent if spent > 0 else 0.0


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
