"""The supervisor of a run inside a Slurm job: starts its ranks with srun, says why they ended, and what follows.

It is the batch script's last process, on the job's first node and outside any container. Only it decides whether the
job is queued again: ranks save, end with 0 and know nothing of Slurm.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.slurm import commands as slurm
from launcher.slurm.allocation import Allocation, choose, lost_nodes, remember_lost, to_avoid
from launcher.supervise.attempts import close_entry, describe_end, open_entry, pause_before
from launcher.supervise.causes import ExitEvidence, classify, first_failure, idle_attempts
from launcher.supervise.postmortem import close_left_open
from launcher.supervise.settings import ReceivedSignals, SupervisorSettings
from launcher.supervise.step import POLL_S, HostGuard, Step
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.exit_codes import WARNED
from vit_dist.core.files import open_output
from vit_dist.core.log import log
from vit_dist.core.process import cli_command, wait_until
from vit_dist.core.run import history, names
from vit_dist.core.run.history import Attempt
from vit_dist.core.units import counted


@dataclass
class JobSupervisor:
    """One start of a job: one attempt after another on its nodes, until something else must happen."""

    settings: SupervisorSettings
    allocation: Allocation
    received: ReceivedSignals
    gone: dict[str, str] = field(default_factory=dict)
    """Lost nodes of the job, each with what is known. Only ever added to: Slurm gives no dead node back to a job."""
    host_guard: HostGuard | None = None
    started: bool = False
    """Whether a step has run in this start of the job."""

    def run(self) -> int:
        """Supervise until the run is done, or its job has to end.

        Returns:
            Exit code of the job: 0 where the run is done, was stopped, or is queued again.
        """
        settings, job = self.settings, self.allocation
        # Before an entry of its own is opened: an attempt left open is that of a supervisor that died.
        entries = close_left_open(settings.run_dir, job)
        log(
            f"  supervisor: job {job.job}, start {job.restart + 1}, on {', '.join(job.nodes)}; "
            f"{settings.nodes} x {counted(settings.tasks_per_node, 'rank')}, the run's attempt {len(entries) + 1}"
        )
        # A `scancel` that meets a requeue is lost, and Slurm starts the job once more: the file `cancel` is not.
        if history.is_cancelled(settings.run_dir, job.numbers):
            log("  supervisor: this run was cancelled; nothing is started")
            return 0
        if settings.preflight:
            self._preflight()
        try:
            return self._attempts()
        finally:
            if self.host_guard is not None:
                self.host_guard.stop()

    def _attempts(self) -> int:
        settings, job = self.settings, self.allocation
        while True:
            # Without a TCP probe: nothing points to a lost node yet, and behind a firewall each would cost seconds.
            self.gone.update(lost_nodes(job.nodes, tcp_probe=False))
            self._start_host_guard()
            nodes = choose(job, settings.nodes, settings.run_root, self.gone)
            entry, evidence = self._attempt(nodes)
            action, code = self._settle(entry, evidence)
            if action == "requeue":
                return self._requeue(done=evidence.requeued)
            if action != "respawn":
                return code

    def _attempt(self, nodes: Sequence[str] | None) -> tuple[Attempt, ExitEvidence]:
        settings, job = self.settings, self.allocation
        devices = settings.nodes * settings.tasks_per_node
        entry = open_entry(
            settings.run_dir,
            launcher="slurm",
            devices=devices,
            job=job.job,
            restart=job.restart,
            nodes=nodes if nodes is not None else job.nodes,
        )
        # Too few nodes are left. That is an attempt too, which never ran: it says why the job is queued again.
        if nodes is None:
            return entry, ExitEvidence(1, lost_nodes=tuple(self.gone.items()))
        logs = settings.run_dir / names.LOGS / names.attempt_folder(entry.attempt)
        logs.mkdir(parents=True, exist_ok=True)
        step = Step(settings, job, nodes, entry, logs, self.received, again=self.started)
        self.started = True
        code = step.run()
        state = history.read(settings.run_dir)
        status = state.status_of(entry.attempt)
        # Slurm need not be asked about a run that is done, nor waited for where it is away.
        now_in_slurm = job.slurm_job() if code or status is None or status.status != "done" else None
        lost: Mapping[str, str] = {}
        requeued = now_in_slurm is not None and (now_in_slurm.restarts or 0) > job.restart
        # Also where the ranks themselves ended well: Slurm ends a whole job for the loss of one node.
        if code or self.received.terminated or requeued:
            lost = lost_nodes(nodes, tcp_probe=True)
        now = time.time()
        return entry, ExitEvidence(
            code=code,
            status=status,
            failure=first_failure(logs / "srun.log"),
            asked=step.asked,
            cancelled=history.is_cancelled(settings.run_dir, job.numbers),
            preempted=now_in_slurm is not None and now_in_slurm.preempted is not None,
            terminated=self.received.terminated,
            requeued=requeued,
            on_request=(entry.attempt, job.job) in state.requeues,
            overdue=now_in_slurm is not None and _overdue(now_in_slurm, now),
            lost_nodes=tuple(lost.items()),
        )

    def _settle(self, entry: Attempt, evidence: ExitEvidence) -> tuple[str, int]:
        """Write how the attempt ended, and say what follows. Returns the action and the job's exit code."""
        settings, job = self.settings, self.allocation
        cause, detail = classify(evidence)
        lost = dict(evidence.lost_nodes)
        if cause == "node_lost":
            self.gone.update(lost)
            remember_lost(settings.run_root, lost, settings.run_dir.name)
        action = self._action(cause, evidence)
        status, excluded = evidence.status, tuple(lost) if cause == "node_lost" else ()
        # srun's own code may be that of a peer which srun ended: the rank's that failed first tells more.
        code = evidence.failure.code if evidence.failure is not None else evidence.code
        closed = close_entry(
            settings.run_dir,
            entry,
            cause=cause,
            action=action,
            code=code,
            status=status,
            detail=detail,
            excluded=excluded,
            give_up=lambda ended: self._gives_up([*history.read(settings.run_dir).attempts[:-1], ended]),
        )
        shown = cause.replace("_", " ") + (f" ({detail})" if detail else "")
        log(f"  {describe_end(closed, shown)}; {_FOLLOWS[closed.action]}")
        idle = idle_attempts(history.read(settings.run_dir).attempts, job.job)
        if closed.action == "give_up":
            log(
                f"  supervisor: given up: {counted(idle, 'attempt')} in a row have saved no new step (give_up_after "
                f"{settings.give_up_after}). The checkpoints are intact, up to step {closed.saved:,}; mend the cause "
                f"(`vit-dist logs {settings.run_dir} --first-error`), then `vit-dist resume {settings.run_dir}`"
            )
        if closed.action == "respawn":
            self._pause(pause_before(idle, settings.pause_s))
        if cause == "invalid":
            return closed.action, ConfigError.exit_code
        return closed.action, 0 if cause in {"done", "stopped", "cancelled"} else evidence.code or 1

    def _action(self, cause: str, evidence: ExitEvidence) -> str:
        if cause in {"done", "cancelled", "invalid", "superseded"}:
            return "none"
        # Stopped by a bare `scancel -s USR2`: a checkpoint was wanted, and not the run's end.
        if cause == "stopped":
            warned = evidence.status.reason == "SIGUSR2" if evidence.status is not None else evidence.code == WARNED
            return "respawn" if warned else "none"
        if cause in {"time_limit", "preempted"} or evidence.requeued:
            return "requeue"
        # Slurm is ending the job, so nothing more can start in it; and it may do so since a person wants that.
        if self.received.terminated:
            return "requeue" if cause == "node_lost" else "none"
        if cause == "node_lost":
            left = choose(self.allocation, self.settings.nodes, self.settings.run_root, self.gone)
            return "requeue" if left is None else "respawn"
        return "respawn"

    def _gives_up(self, entries: Sequence[Attempt]) -> bool:
        return idle_attempts(entries, self.allocation.job) >= self.settings.give_up_after

    def _pause(self, seconds: float) -> None:
        # Cut short by a signal: the job is about to end, and what follows has to be decided before that.
        wait_until(lambda: self.received.terminated or self.received.warned, seconds, POLL_S)

    def _requeue(self, *, done: bool) -> int:
        """Put the job back into the queue, unless that is done, away from bad nodes. Slurm then ends this process."""
        job, settings = self.allocation, self.settings
        before = job.slurm_job()
        needed = len(job.nodes)
        avoid = to_avoid(settings.run_root, before.excluded if before else "", needed)
        problem = "" if done else _queue_again(job)
        if problem:
            log(
                f"  supervisor: the job could not be queued again: {problem}. The checkpoints are intact; `vit-dist "
                f"resume {settings.run_dir}` resumes from the newest"
            )
            return 1
        if avoid:
            # Slurm takes new nodes to exclude of a job that waits, not of one that runs. From now on it counts as
            # waiting, while its processes are being ended; this one has KillWait seconds (30 by default).
            excluded = ",".join([*slurm.hostnames(before.excluded if before else ""), *avoid])
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(VitDistError):
                    slurm.update(job.job, ExcNodeList=excluded)
                    log(f"  supervisor: queued again without {', '.join(avoid)}")
                    break
                time.sleep(0.2)
        return 0

    def _start_host_guard(self) -> None:
        """Where the job has spares, guard its batch host from another node; from yet another if that dies.

        Only a job with spares has --no-kill, and outlives its batch host; the others Slurm itself queues again.
        """
        job = self.allocation
        others = [n for n in job.nodes if n not in self.gone and n != os.environ.get("SLURMD_NODENAME", job.nodes[0])]
        if len(job.nodes) <= self.settings.nodes or not others:
            return
        if self.host_guard is not None:
            if self.host_guard.node in others and self.host_guard.process.poll() is None:
                return
            self.host_guard.stop()
        self.host_guard = HostGuard.start(job, others[-1], self.settings)

    def _preflight(self) -> None:
        """Test the nodes. Slow and sick ones go to the list of bad nodes, which `choose` takes last."""
        command = cli_command("preflight", "--run-root", str(self.settings.run_root), safe_path=True)
        command += ["--cluster", self.settings.cluster_file] if self.settings.cluster_file else []
        path = self.settings.run_dir / names.LOGS / "preflight.log"
        with open_output(path) as out:
            code = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        log(f"  supervisor: preflight {'passed' if code == 0 else f'has findings (exit code {code})'}; see {path}")


def _queue_again(job: Allocation) -> str:
    """Ask Slurm to put the job back into the queue. Returns what is in the way, or ''."""
    problem = ""
    for _ in range(3):
        try:
            slurm.requeue(job.job)
        except VitDistError as error:
            problem = str(error)
            # The answer may be lost where the request was not: a job that counts one restart more is queued again.
            now = job.slurm_job()
            if now is None or (now.restarts or 0) <= job.restart:
                time.sleep(1.0)
                continue
        return ""
    return problem


_FOLLOWS = {
    "none": "this is the end of the job",
    "requeue": "the job is queued again",
    "respawn": "starting again on this job's nodes",
    "give_up": "given up",
}


def _overdue(job: slurm.Job, now: float) -> bool:
    """Whether a job's time limit has passed. Its end would not tell: that of a job that is cancelled is now."""
    return job.start is not None and job.time_limit is not None and now >= job.start + job.time_limit - 1
