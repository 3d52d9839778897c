"""What a supervisor starts inside a job: the srun of an attempt's ranks, and the guard of its own node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher.allocation import Allocation, address_of, port_for
from launcher.causes import measured_save_s
from launcher.ledger import LedgerEntry
from vit_dist.core.errors import RunError
from vit_dist.core.log import log
from vit_dist.core.rundir import RunDir
from vit_dist.core.units import format_seconds

POLL_S = 0.1
_STRAGGLE_S = 150.0
"""How long srun may take to end after its ranks said that they have: its own --wait is 60 s."""


@dataclass(frozen=True)
class Orders:
    """What the job script tells the supervisor.

    Attributes:
        run_dir: of the run.
        run_root: where the list of bad nodes is.
        cluster_file: of the site; for the test of the nodes.
        nodes, tasks_per_node: of an attempt; what the job has more are spares.
        lead_s: how long before the time limit the run ends, until a save has been measured.
        margin_s: added to a measured save.
        give_up_after: attempts in a row that save nothing new.
        preflight: test the nodes first.
        srun: the command up to the ranks' own.
        rank: the command of a rank.
        pause_s: before the attempt after one without progress; doubles with each.
    """

    run_dir: Path
    run_root: Path
    cluster_file: str
    nodes: int
    tasks_per_node: int
    lead_s: float
    margin_s: float
    give_up_after: int
    preflight: bool
    srun: tuple[str, ...]
    rank: tuple[str, ...]
    pause_s: float = 1.0

    def lead(self) -> float:
        """Seconds before the time limit at which the run saves and ends."""
        measured = measured_save_s(self.run_dir)
        return self.lead_s if measured is None else measured + self.margin_s


@dataclass
class Heard:
    """Signals that Slurm has sent to the batch script."""

    warned: bool = False  # USR2: the time limit is near
    terminated: bool = False  # TERM: the job is being ended

    def on(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal."""
        self.warned = self.warned or number == signal.SIGUSR2
        self.terminated = self.terminated or number == signal.SIGTERM


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Note SIGUSR2 and SIGTERM in place of dying of them."""
    heard = Heard()
    old = {number: signal.signal(number, heard.on) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass
class Guard:
    """The step on another node that notices when this one dies; see launcher/guard.py."""

    node: str
    process: subprocess.Popen[bytes]

    @classmethod
    def post(cls, job: Allocation, node: str, orders: Orders) -> Guard:
        """Start it."""
        log_file = str(orders.run_dir / "logs" / "guard.log").replace("%", "%%")
        options = ["--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", f"--nodelist={node}"]
        command = [sys.executable, "-P", "-m", "launcher.guard", job.job, str(job.restart)]
        devnull = subprocess.DEVNULL
        return cls(
            node,
            subprocess.Popen(
                [orders.srun[0], *options, f"--output={log_file}", *command],
                stdin=devnull,
                stdout=devnull,
                stderr=devnull,
            ),
        )

    def stop(self) -> None:
        """End it."""
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

    orders: Orders
    allocation: Allocation
    nodes: Sequence[str]
    entry: LedgerEntry
    logs: Path
    heard: Heard
    again: bool = False
    """Whether it follows another step in this start of the job."""
    asked: str = ""
    """Why the ranks were told to save and end."""

    def run(self) -> int:
        """Start the ranks and wait for their end. Returns srun's exit code (128 + n where it died of signal n)."""
        with (self.logs / "srun.log").open("ab") as messages:
            process = subprocess.Popen(
                self.command(), env=self.environment(), stdin=subprocess.DEVNULL, stdout=messages, stderr=messages
            )
            try:
                code = self._wait(process)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return 128 - code if code < 0 else code

    def command(self) -> list[str]:
        """srun with this attempt's nodes and log files, then the ranks' own command."""
        first, *options = self.orders.srun
        pattern = str(self.logs).replace("%", "%%") + "/rank-%t.log"
        # A step that ran on a node which died never ends for Slurm, and would keep its CPUs from the next one.
        again = ["--overlap"] if self.again else []
        return [first, f"--nodelist={','.join(self.nodes)}", f"--output={pattern}", *again, *options, *self.orders.rank]

    def environment(self) -> dict[str, str]:
        """What the ranks inherit: where rank 0 is, and a place to agree on who prints a shared error."""
        said = self.logs / ".said"
        said.mkdir(exist_ok=True)
        port = port_for(self.allocation, self.entry.attempt, self.nodes[0])
        place = {"MASTER_ADDR": address_of(self.nodes[0]), "MASTER_PORT": str(port), "VIT_DIST_SCRATCH": str(said)}
        return {**os.environ, **place}

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        leave_at, ask_at, ended_at, minded = self._leave_at(), time.monotonic() + 60, 0.0, self.heard.warned
        while process.poll() is None:
            time.sleep(POLL_S)
            now = time.monotonic()
            if not self.asked and (time.time() >= leave_at or self.heard.warned != minded):
                leave_at, minded = self._leave_at(), self.heard.warned  # a person may have given the job more time
                if time.time() >= leave_at:
                    self.asked = "time_limit"
                    log("  supervisor: Slurm will end the job soon (time limit, or preemption): save and end")
                    process.send_signal(signal.SIGUSR2)  # srun passes it on to every rank
            if now >= ask_at:
                ask_at, leave_at = now + 60, self._leave_at()
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
            return 0.0 if self.heard.warned else float("inf")
        length = job.end - job.start if job.start is not None else float("inf")
        return job.end - min(self.orders.lead(), length / 2)

    def _straggling(self, process: subprocess.Popen[bytes], now: float, ended_at: float) -> float:
        """End an srun that does not notice that its ranks are gone."""
        if int(now / POLL_S) % 20:  # every two seconds
            return ended_at
        status = None
        with contextlib.suppress(RunError):
            status = RunDir(self.orders.run_dir).status()
        over = status is not None and status.time >= self.entry.begun and status.status != "running"
        if not over:
            return 0.0
        if not ended_at:
            return now
        if now - ended_at > _STRAGGLE_S:
            log(f"  supervisor: srun has not ended {format_seconds(now - ended_at)} after its ranks; it is killed")
            process.kill()
        return ended_at
