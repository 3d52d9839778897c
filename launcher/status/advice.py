"""What to do next about a run, by its state: the last part of every answer."""

from __future__ import annotations

import shlex
from dataclasses import replace

from launcher.status.run_view import RunView
from vit_dist.core.units import format_seconds

_QUIET_S = 600.0
_WAITING = {
    "Resources": "it is next; nodes are not free yet",
    "Priority": "other jobs come first",
    "BeginTime": "Slurm lets a requeued job wait about two minutes; `vit-dist requeue {run} --now` does not",
    "Dependency": "it waits for another job to end",
    "DependencyNeverSatisfied": "the job it waits for has failed: `vit-dist cancel {run}`",
    "JobHeldUser": "it is held: `scontrol release {job}`",
    "JobHeldAdmin": "an administrator holds it: ask them",
    "job_requeued_in_held_state": "it is held after a requeue: `scontrol release {job}`",
    "JobArrayTaskLimit": "the array's throttle: `scontrol update JobId={array} ArrayTaskThrottle=N` changes it",
    "ReqNodeNotAvail": "nodes are down, drained or reserved: `sinfo -R` tells which",
    "Reservation": "it waits for its reservation",
    "PartitionNodeLimit": "more nodes than the partition gives a job: resume with fewer (--nodes)",
    "PartitionTimeLimit": "its time limit is above the partition's: cancel, and lower time_limit of the cluster",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionConfig": "the partition cannot give that many nodes: resume with fewer (--nodes)",
    "BadConstraints": "no node fits what is asked for: `vit-dist cancel {run}`, and mend the cluster file",
    "InvalidAccount": "the account is not valid: `vit-dist cancel {run}`, and mend the cluster file",
    "InvalidQOS": "the qos is not valid: `vit-dist cancel {run}`, and mend the cluster file",
    "launch_failed_requeued_held": "its launch failed and it is held: `scontrol release {job}`",
    "Licenses": "it waits for a licence",
    "NodeDown": "a node it needs is down",
    "Nodes_required_for_job_are_DOWN": "fewer nodes are up than it needs: `sinfo -R` tells which are not; on fewer: "
    "`vit-dist cancel {run}`, then `vit-dist resume {run} --nodes N`",
}


def advise(view: RunView, silence: str, now: float) -> RunView:
    """The view with its advice."""
    lines = [*_by_state(view, now)]
    if view.request == "stop" and view.active:
        lines.insert(0, "a stop is requested: it saves and ends after the current step")
    elif view.request == "save" and view.active:
        lines.insert(0, "a checkpoint is requested")
    if silence and view.job_id and view.state not in {"done", "stopped"}:
        lines.append(f"job {view.job_id} could not be asked about, so this is what the files say: {silence}")
    lines += [f"damaged: {problem}" for problem in view.problems]
    return replace(view, advice=tuple(lines))


def in_words(reason: str) -> str:
    """Slurm's reason for letting a job wait as people read it: its words as they are, its sentences without `_`."""
    word = reason.partition(",")[0]
    known = word in _WAITING and not word.startswith("Nodes_")
    return reason if known or word.startswith(("QOS", "Assoc", "Max")) else reason.replace("_", " ")


def explain_waiting(reason: str) -> str:
    """Slurm's reason for letting a job wait, in plain words; '' for one that explains nothing or is not known."""
    word = reason.partition(",")[0]
    if word.startswith(("QOS", "Assoc", "Max")):
        return "a limit of your account or qos: `sacctmgr show assoc user=$USER` and `squeue --me` tell more"
    return _WAITING.get(word, "")


def _by_state(view: RunView, now: float) -> list[str]:
    run = shlex.quote(str(view.path))
    logs = _logs(view, run)
    again = f"`vit-dist resume {run}` resumes from step {view.saved:,}" if view.saved else ""
    again = again or f"`vit-dist resume {run}` starts it again"
    if view.state == "submitted":
        return (
            ["`vit-dist status` on a machine with Slurm's commands tells whether it waits or runs"]
            if view.job_id
            else []
        )
    if view.state == "waiting" and view.job is not None:
        job = view.job
        text = explain_waiting(job.reason).format(run=run, job=job.id, array=job.array_id or job.id)
        return [text] if text else []
    if view.state == "running":
        if view.seen and now - view.seen > _QUIET_S:
            quiet = format_seconds(now - view.seen)
            return [f"no heartbeat for {quiet}: it may hang; see stacks/ and `vit-dist logs {run}`"]
        return [view.stall] if view.stall else []
    if view.state == "ending":
        return ["the attempt has ended; its job decides what follows"]
    if view.state == "failed":
        return [*logs, again]
    if view.state == "given up":
        return [*logs, f"then, with the cause mended, {again}"]
    if view.state in {"stopped", "cancelled"}:
        return [again]
    if view.state in {"lost", "silent"}:
        return [again, *logs] if view.state == "lost" else [f"look at its machine; if it is gone, {again}"]
    return []


def _logs(view: RunView, run: str) -> list[str]:
    """Which log tells what went wrong: none is named that is not there."""
    of_ranks, of_supervisor = view.logged
    if of_ranks:
        return [f"`vit-dist logs {run} --first-error` shows what went wrong first"]
    return [f"`vit-dist logs {run} --batch` shows what its supervisor said"] if of_supervisor else []
