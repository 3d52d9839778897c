"""The supervisor of a run inside a Slurm job: starts its ranks with srun, says why they ended, and what follows.

It is the batch script's last process, on the job's first node and outside any container. Only it decides whether the
job is queued again: ranks save, end with 0 and know nothing of Slurm.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from launcher import slurm
from launcher.allocation import Allocation, address_of, choose, lost_nodes, port_for, remember_lost, to_avoid
from launcher.causes import Signs, first_failure, idle_attempts, judge, measured_save_s
from launcher.ledger import LedgerEntry, read_ledger
from launcher.supervisor import close_entry, open_entry, own_status, pause_before, told
from vit_dist.core.errors import ConfigError, RunError, VitDistError
from vit_dist.core.log import log
from vit_dist.core.rundir import RunDir
from vit_dist.core.units import format_seconds

_POLL_S = 0.1
_ASK_AGAIN_S = 10.0
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
class Supervisor:
    """One start of a job: one attempt after another on its nodes, until something else must happen."""

    orders: Orders
    allocation: Allocation
    heard: Heard
    gone: dict[str, str] = field(default_factory=dict)
    guard: Guard | None = None
    started: bool = False
    """Whether a step has run in this start of the job."""

    def run(self) -> int:
        """Supervise until the run is done, or its job has to end.

        Returns:
            Exit code of the job: 0 where the run is done, was stopped, or goes on in the queue.
        """
        orders, job = self.orders, self.allocation
        entries = close_left_open(orders.run_dir, job)
        log(
            f"  supervisor: job {job.job}, start {job.restart + 1}, on {', '.join(job.nodes)}; "
            f"{orders.nodes} x {orders.tasks_per_node} ranks, the run's attempt {len(entries) + 1}"
        )
        if is_cancelled(orders.run_dir, job):
            log("  supervisor: this run was cancelled; nothing is started")
            return 0
        if orders.preflight:
            self._preflight()
        try:
            return self._attempts()
        finally:
            if self.guard is not None:
                self.guard.stop()

    def _attempts(self) -> int:
        orders, job = self.orders, self.allocation
        while True:
            self.gone.update(lost_nodes(job.nodes, knock=False))
            self._post_guard()
            nodes = choose(job, orders.nodes, orders.run_root, self.gone)
            entry, signs = self._attempt(nodes)
            action, code = self._settle(entry, signs)
            if action == "requeue":
                return self._requeue(done=signs.requeued)
            if action != "respawn":
                return code

    def _attempt(self, nodes: Sequence[str] | None) -> tuple[LedgerEntry, Signs]:
        orders, job = self.orders, self.allocation
        before = RunDir(orders.run_dir).status()
        devices = orders.nodes * orders.tasks_per_node
        entry = open_entry(
            orders.run_dir,
            launcher="slurm",
            devices=devices,
            job=job.job,
            restart=job.restart,
            nodes=nodes if nodes is not None else job.nodes,
        )
        if nodes is None:
            return entry, Signs(1, lost_nodes=tuple(self.gone.items()))
        logs = orders.run_dir / "logs" / f"attempt-{entry.attempt:04d}"
        logs.mkdir(parents=True, exist_ok=True)
        step = Step(orders, job, nodes, entry, logs, self.heard, again=self.started)
        self.started = True
        code = step.run()
        status = own_status(orders.run_dir, before)
        told_job = job.slurm_job() if code or status is None or status.status != "done" else None
        lost: Mapping[str, str] = {}
        if code:
            lost = lost_nodes(nodes, knock=True)
        now = time.time()
        return entry, Signs(
            code=code,
            status=status,
            failure=first_failure(logs / "srun.log"),
            asked=step.asked,
            cancelled=is_cancelled(orders.run_dir, job),
            preempted=told_job is not None and told_job.preempted is not None,
            terminated=self.heard.terminated,
            requeued=told_job is not None and (told_job.restarts or 0) > job.restart,
            overdue=told_job is not None and _overdue(told_job, now),
            lost_nodes=tuple(lost.items()),
        )

    def _settle(self, entry: LedgerEntry, signs: Signs) -> tuple[str, int]:
        """Write how the attempt ended, and say what follows. Returns the action and the job's exit code."""
        orders, job = self.orders, self.allocation
        cause, detail = judge(signs)
        lost = dict(signs.lost_nodes)
        if cause == "node_lost":
            self.gone.update(lost)
            remember_lost(orders.run_root, lost, orders.run_dir.name)
        action = self._action(cause, signs)
        status, excluded = signs.status, tuple(lost) if cause == "node_lost" else ()
        trial = close_entry(
            orders.run_dir,
            entry,
            cause=cause,
            action=action,
            code=signs.code,
            status=status,
            detail=detail,
            excluded=excluded,
            give_up=lambda ended: self._gives_up([*read_ledger(orders.run_dir)[:-1], ended]),
        )
        log(f"  {told(trial, cause.replace('_', ' ') + (f' ({detail})' if detail else ''))}; {_FOLLOWS[trial.action]}")
        idle = idle_attempts(read_ledger(orders.run_dir), job.job)
        if trial.action == "give_up":
            log(
                f"  supervisor: given up: {idle} attempts in a row have saved no new step (give_up_after "
                f"{orders.give_up_after}). What was saved, up to step {trial.saved:,}, is whole; mend the cause "
                f"(`vit-dist logs {orders.run_dir} --first-error`), then `vit-dist resume {orders.run_dir}`"
            )
        if trial.action == "respawn":
            self._rest(pause_before(idle, orders.pause_s))
        if cause == "invalid":
            return trial.action, ConfigError.exit_code
        return trial.action, 0 if cause in {"done", "stopped", "cancelled"} else signs.code or 1

    def _action(self, cause: str, signs: Signs) -> str:
        if cause in {"done", "cancelled", "invalid", "superseded"}:
            return "none"
        if (
            cause == "stopped"
        ):  # a bare `scancel -s USR2`: a checkpoint was wanted, and the run has not been told to end
            return "respawn" if signs.status is not None and signs.status.reason == "SIGUSR2" else "none"
        if cause in {"time_limit", "preempted"}:
            return "requeue"
        if self.heard.terminated:
            return "none"
        if cause == "node_lost":
            left = choose(self.allocation, self.orders.nodes, self.orders.run_root, self.gone)
            return "requeue" if left is None else "respawn"
        return "respawn"

    def _gives_up(self, entries: Sequence[LedgerEntry]) -> bool:
        return idle_attempts(entries, self.allocation.job) >= self.orders.give_up_after

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.heard.terminated and not self.heard.warned:
            time.sleep(_POLL_S)

    def _requeue(self, *, done: bool) -> int:
        """Put the job back into the queue, unless that is done, away from bad nodes. Slurm then ends this process."""
        job, orders = self.allocation, self.orders
        before = job.slurm_job()
        needed = len(job.nodes)
        avoid = to_avoid(orders.run_root, before.excluded if before else "", needed)
        problem = "" if done else _queue_again(job)
        if problem:
            log(
                f"  supervisor: the job could not be queued again: {problem}. What was saved is whole; `vit-dist "
                f"resume {orders.run_dir}` goes on"
            )
            return 1
        if avoid:
            # It counts as waiting from now on, while its processes are being ended; this one has KillWait seconds.
            excluded = ",".join([*slurm.hostnames(before.excluded if before else ""), *avoid])
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(VitDistError):
                    slurm.update(job.job, ExcNodeList=excluded)
                    log(f"  supervisor: queued again without {', '.join(avoid)}")
                    break
                time.sleep(0.2)
        return 0

    def _post_guard(self) -> None:
        """Where the job has spares, have its batch host watched from another node; from yet another if that dies."""
        job = self.allocation
        others = [n for n in job.nodes if n not in self.gone and n != os.environ.get("SLURMD_NODENAME", job.nodes[0])]
        if len(job.nodes) <= self.orders.nodes or not others:
            return
        if self.guard is not None and self.guard.node in others and self.guard.process.poll() is None:
            return
        if self.guard is not None:
            self.guard.stop()
        self.guard = Guard.post(job, others[-1], self.orders)

    def _preflight(self) -> None:
        """Test the nodes; what is found goes to the list of bad nodes, and `choose` passes those over."""
        command = [
            sys.executable,
            "-P",
            "-m",
            "vit_dist.cli.main",
            "preflight",
            "--run-root",
            str(self.orders.run_root),
        ]
        command += ["--cluster", self.orders.cluster_file] if self.orders.cluster_file else []
        path = self.orders.run_dir / "logs" / "preflight.log"
        with path.open("a") as out:
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
            time.sleep(_POLL_S)
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
        if int(now / _POLL_S) % 20:  # every two seconds
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


def _overdue(job: slurm.Job, now: float) -> bool:
    """Whether a job's time limit has passed. Its end would not tell: that of a job that is cancelled is now."""
    return job.start is not None and job.time_limit is not None and now >= job.start + job.time_limit - 1


def is_cancelled(run_dir: Path, allocation: Allocation) -> bool:
    """Whether a person has cancelled this job (`vit-dist cancel`), however often Slurm starts it again."""
    try:
        told_job = (RunDir(run_dir).read_json("cancel") or {}).get("job")
    except RunError:
        return True
    return told_job is not None and str(told_job) in {allocation.job, str(allocation.number)}


def close_left_open(run_dir: Path, allocation: Allocation) -> list[LedgerEntry]:
    """Close an attempt whose supervisor died with its node or was killed. Returns the ledger."""
    entries = read_ledger(run_dir)
    for entry in [e for e in entries if e.open]:
        cause, detail, action = _post_mortem(entry, allocation)
        status = RunDir(run_dir).status()
        status = status if status is not None and status.time >= entry.begun else None
        seen = max([entry.begun, *([status.time] if status else []), *_written(run_dir, entry)])
        closed = close_entry(
            run_dir, entry, cause=cause, action=action, code=1, status=status, detail=detail, at=min(seen, time.time())
        )
        words = f"{cause.replace('_', ' ')} ({detail})"
        log(f"  {told(closed, words)}; it could not say so itself")
    return read_ledger(run_dir)


def _post_mortem(entry: LedgerEntry, allocation: Allocation) -> tuple[str, str, str]:
    """Cause, detail and action of an attempt that could not write its end."""
    if entry.launcher != "slurm" or not entry.job:
        return "crashed", "its supervisor was killed", "none"
    same = entry.job == allocation.job
    lost = lost_nodes(entry.nodes, knock=True)
    if lost:
        what = "; ".join(f"{node} {why}" for node, why in lost.items())
        return "node_lost", what, "requeue" if same else "none"
    state = _state_of(entry)
    by_state = {
        "NODE_FAIL": ("node_lost", "Slurm says NODE_FAIL"),
        "PREEMPTED": ("preempted", "killed at the end of the grace time"),
        "TIMEOUT": ("time_limit", "killed by Slurm at the time limit"),
        "CANCELLED": ("cancelled", "killed by Slurm"),
        "OUT_OF_MEMORY": ("crashed", "out of memory"),
    }
    cause, detail = by_state.get(state, ("", ""))
    if cause:
        return cause, detail, "requeue" if same else "none"
    if same and allocation.restart > entry.restart:
        return "preempted", "Slurm ended it and queued the job again", "requeue"
    return "crashed", "its supervisor was killed", "none"


def _state_of(entry: LedgerEntry) -> str:
    """How Slurm says the job ended in which an attempt ran; '' where it does not know."""
    with contextlib.suppress(VitDistError):
        runs = slurm.accounting(entry.job, patience_s=5)
        fitting = [j for j in runs or [] if j.start is not None and j.start <= entry.begun + 2]
        if fitting:
            return fitting[-1].state
    with contextlib.suppress(VitDistError):
        job = slurm.job(entry.job, patience_s=5)
        if job is not None and job.ended:
            return job.state
    return ""


def _written(run_dir: Path, entry: LedgerEntry) -> list[float]:
    """When the logs of an attempt were last written."""
    times = []
    for path in (run_dir / "logs" / f"attempt-{entry.attempt:04d}").glob("*.log"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return times
