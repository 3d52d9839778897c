"""What a supervisor starts inside a job: the srun of an attempt's ranks, and the guard of its own node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.slurm.addresses import node_address
from launcher.slurm.allocation import Allocation, port_for
from launcher.supervise.settings import ReceivedSignals, SupervisorSettings
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.exit_codes import of_return_code
from vit_dist.core.files import open_output
from vit_dist.core.log import log
from vit_dist.core.process import HOST_GUARD_MODULE
from vit_dist.core.run import history, names
from vit_dist.core.run.history import Attempt
from vit_dist.core.units import format_seconds

POLL_S = 0.1
_STRAGGLE_S = 150.0
"""How long srun may take to end after its ranks said that they have: its own --wait is 60 s."""


@dataclass
class HostGuard:
    """The step on another node that queues the job again when this node dies; see launcher/supervise/host_guard.py."""

    node: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, job: Allocation, node: str, settings: SupervisorSettings) -> HostGuard:
        """Start it on a node."""
        # In Slurm's file names % begins a pattern.
        log_file = str(settings.run_dir / names.LOGS / "guard.log").replace("%", "%%")
        options = ["--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", f"--nodelist={node}"]
        command = [sys.executable, "-P", "-m", HOST_GUARD_MODULE, job.job, str(job.restart)]
        devnull = subprocess.DEVNULL
        return cls(
            node,
            subprocess.Popen(
                [settings.srun[0], *options, f"--output={log_file}", *command],
                stdin=devnull,
                stdout=devnull,
                stderr=devnull,
            ),
        )

    def stop(self) -> None:
        """End it: srun passes SIGTERM on, and the guard ends its own process of the other session."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass
class Step:
    """One srun: the ranks of one attempt."""

    settings: SupervisorSettings
    allocation: Allocation
    nodes: Sequence[str]
    entry: Attempt
    logs: Path
    received: ReceivedSignals
    again: bool = False
    """Whether it follows another step in this start of the job."""
    asked: str = ""
    """Why the ranks were asked to save and end."""

    def run(self) -> int:
        """Start the ranks and wait for their end. Returns srun's exit code (128 + n where it died of signal n)."""
        with open_output(self.logs / "srun.log") as messages:
            process = subprocess.Popen(
                self.command(), env=self.environment(), stdin=subprocess.DEVNULL, stdout=messages, stderr=messages
            )
            try:
                code = self._wait(process)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return of_return_code(code)

    def command(self) -> list[str]:
        """srun with this attempt's nodes and log files, then the ranks' own command."""
        first, *options = self.settings.srun
        pattern = str(self.logs).replace("%", "%%") + f"/{names.rank_log('%t')}"
        # A step that ran on a node which died never ends for Slurm, and would keep its CPUs from the next one.
        again = ["--overlap"] if self.again else []
        return [
            first,
            f"--nodelist={','.join(self.nodes)}",
            f"--output={pattern}",
            *again,
            *options,
            *self.settings.rank,
        ]

    def environment(self) -> dict[str, str]:
        """What the ranks inherit: where rank 0 is, and a place to agree on who prints a shared error."""
        scratch = self.logs / ".said"
        scratch.mkdir(exist_ok=True)
        port, address = port_for(self.allocation, self.entry.attempt, self.nodes[0]), self.nodes[0]
        # Where it is not known, the ranks say so themselves, in the log where people look for it.
        with contextlib.suppress(VitDistError):
            address = node_address(address)
        place = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "VIT_DIST_SCRATCH": str(scratch)}
        return {**os.environ, **place}

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        # A warning of before was for the attempt before: only one that is new asks this attempt to leave.
        leave_at, refresh_at, ended_at, warned = self._leave_at(), time.monotonic() + 60, 0.0, self.received.warned
        while process.poll() is None:
            time.sleep(POLL_S)
            now = time.monotonic()
            if not self.asked and (time.time() >= leave_at or self.received.warned != warned):
                # Ask Slurm again before ranks are stopped: a person may have given the job more time.
                leave_at, warned = self._leave_at(), self.received.warned
                if time.time() >= leave_at:
                    self.asked = "time_limit"
                    log("  supervisor: Slurm will end the job soon (time limit, or preemption): save and end")
                    # srun passes it on to every rank.
                    process.send_signal(signal.SIGUSR2)
            # Once a minute: the time limit may be changed, and a save measured, without any signal.
            if now >= refresh_at:
                refresh_at, leave_at = now + 60, self._leave_at()
            ended_at = self._straggling(process, now, ended_at)
        return process.returncode

    def _leave_at(self) -> float:
        """When the ranks are to save and end, seconds since 1970.

        Slurm's own signal comes up to a minute early, and then too late. It counts where Slurm does not tell the end,
        and where it says that the job is preempted: some sites send it then, others end the steps with SIGTERM.
        """
        job = self.allocation.slurm_job()
        if job is not None and job.preempted is not None:
            return 0.0
        if job is None or job.end is None:
            return 0.0 if self.received.warned else float("inf")
        # Never more than half of a short job, or it would leave as soon as it starts, for ever.
        length = job.end - job.start if job.start is not None else float("inf")
        return job.end - min(self.settings.lead(), length / 2)

    def _straggling(self, process: subprocess.Popen[bytes], now: float, ended_at: float) -> float:
        """End an srun that does not notice that its ranks are gone. Returns since when they are, or 0.0."""
        # Every two seconds: the history lies on a shared file system.
        if int(now / POLL_S) % 20:
            return ended_at
        status = None
        with contextlib.suppress(RunError):
            status = history.read(self.settings.run_dir, most=history.TAIL_BYTES).status_of(self.entry.attempt)
        over = status is not None and status.status != "running"
        if not over:
            return 0.0
        if not ended_at:
            return now
        if now - ended_at > _STRAGGLE_S:
            log(f"  supervisor: srun has not ended {format_seconds(now - ended_at)} after its ranks; it is killed")
            process.kill()
        return ended_at
