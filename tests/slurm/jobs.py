"""Runs as Slurm jobs: submits real training, disturbs it, holds its end to that of a run that nobody disturbed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.processes.kill_test import trained_order
from tests import forks
from tests.conftest import command
from tests.laws.test_resume import assert_same_bits, tensors
from tests.slurm.cluster import job_processes, wait_for
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import newest_step

STEPS, BATCH, SAVE_EVERY = 60, 24, 10
PACE = Path(__file__).parent / "pace"
SLOW_S = 0.15
"""A step takes at least so long until a test lets the run go."""
_START_S = 240.0


def recipe_file(folder: Path, train: str, *lines: str, name: str = "drill") -> Path:
    """A tiny ViT through DeepSpeed ZeRO-1 in bf16: 60 steps of 24 examples, saved every 10 steps."""
    path = folder / "recipe.yaml"
    head = f"""
name: {name}
global_batch: {BATCH}
horizon: {STEPS} steps
model: {{name: vit-test}}
data: {{num_classes: 4, train: "{train}", image_size: 28, augment: inception}}
optim: {{name: adamw, lr: 3e-3}}
schedule: {{name: cosine, warmup: 2 steps}}
engine: {{name: deepspeed, zero_stage: 1, reduce_bucket: 1000000, allgather_bucket: 1000000}}
checkpoint: {{every: {SAVE_EVERY} steps, keep: 3}}
log: {{every: 5 steps, order: true}}
"""
    path.write_text("\n".join([head.strip(), *lines, ""]))
    return path


def undisturbed(folder: Path, train: str, nproc: int = 2) -> Path:
    """The run directory of the same recipe, trained in one go on this machine without Slurm."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / f"undisturbed-{nproc}"
    if newest_step(run) < STEPS:
        words = command("train", str(recipe_file(folder, train)), "--run-dir", str(run), "--nproc", str(nproc))
        forks.run(words, timeout=_START_S, check=True)
    return run


@dataclass(frozen=True)
class Rank:
    """A training process of a job."""

    pid: int
    rank: int
    node: str
    job: str


@dataclass
class SlurmRun:
    """A submitted run.

    Attributes:
        cluster: the DevCluster it runs on.
        dir: its run directory.
        pace: the file that slows its steps down.
    """

    cluster: Any
    dir: Path
    pace: Path
    marks: dict[str, float] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """Its job's number, of the last submission."""
        return history.read(self.dir).job_id

    @property
    def ledger(self) -> tuple[history.Attempt, ...]:
        return history.read(self.dir).attempts

    @property
    def causes(self) -> list[str]:
        return [entry.cause for entry in self.ledger]

    @property
    def status(self) -> history.Status | None:
        return history.read(self.dir).status

    @property
    def state(self) -> str:
        """Of the job, as Slurm tells it."""
        shown = self.cluster.run("scontrol", "-o", "show", "job", self.job, check=False).stdout
        return next((w.removeprefix("JobState=") for w in shown.split() if w.startswith("JobState=")), "")

    @property
    def nodes(self) -> list[str]:
        """On which the job runs now."""
        shown = self.cluster.run("squeue", "-h", "-j", self.job, "-t", "R", "-o", "%N", check=False).stdout.strip()
        if not shown:
            return []
        return list(self.cluster.run("scontrol", "show", "hostnames", shown).stdout.split())

    def ranks(self) -> list[Rank]:
        """Its training processes that live, in the order of ranks."""
        return ranks_of(self.cluster, self.job)

    def rank(self, number: int, timeout: float = _START_S) -> Rank:
        """The process of a rank, once it is there."""
        self._wait(f"rank {number} lives", lambda: number in [r.rank for r in self.ranks()], timeout)
        return next(r for r in self.ranks() if r.rank == number)

    def saved(self, step: int, timeout: float = _START_S) -> None:
        """Wait for a checkpoint of that step or of a later one."""
        self._wait(f"step {step} is saved", lambda: newest_step(self.dir) >= step, timeout)

    def trained(self, step: int, attempt: int = 1, timeout: float = _START_S) -> None:
        """Wait until a how-manieth attempt has done that step."""
        self._wait(
            f"attempt {attempt} has done step {step}",
            lambda: last_step(self.dir, attempt) >= step,
            timeout,
            ended=False,
        )

    def let_go(self) -> None:
        """From now on its steps are as fast as they can be."""
        self.pace.unlink(missing_ok=True)

    def end(self, timeout: float = 300) -> str:
        """Wait until the job is over for good. Returns its state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE")
        wait_for("the job has ended", lambda: self.state in over, timeout, self.text)
        return self.state

    def text(self) -> str:
        """Everything that helps to see what went wrong."""
        shown = self.cluster.run("scontrol", "-o", "show", "job", self.job, check=False).stdout
        parts = [f"{shown}\nledger: {self.causes}\nstatus: {self.status}\nnodes: {self.cluster.node_states()}"]
        for path in sorted((self.dir / "logs").rglob("*.log")):
            parts.append(f"== {path.relative_to(self.dir)}\n{path.read_text(errors='replace')[-1500:]}")
        return "\n".join(parts)

    def _wait(self, what: str, ready: Any, timeout: float, *, ended: bool = True) -> None:
        def look() -> bool:
            if ready():
                return True
            assert not ended or self.state not in ("FAILED", "CANCELLED", "TIMEOUT"), f"{what}?\n{self.text()}"
            return False

        wait_for(what, look, timeout, self.text)


def ranks_of(cluster: Any, job: str) -> list[Rank]:
    """The training processes of a job, wherever they run."""
    return [rank for rank in all_ranks(cluster) if rank.job == job]


def all_ranks(cluster: Any) -> list[Rank]:
    """The training processes of all jobs, in the order of ranks."""
    found = []
    for pid, line in cluster.processes().items():
        program, *rest = line.split()
        if "python" not in Path(program).name or "train" not in rest:
            continue
        with contextlib.suppress(OSError, ValueError):
            pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if "SLURM_STEP_ID" in env:
                found.append(Rank(pid, int(env["SLURM_PROCID"]), env["SLURMD_NODENAME"], env["SLURM_JOB_ID"]))
    return sorted(found, key=lambda r: r.rank)


def last_step(run_dir: Path, attempt: int) -> int:
    """The last step that an attempt's first rank has written down; 0 where there is none."""
    path = run_dir / "order" / f"attempt-{attempt:05d}-rank-00000.jsonl"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = []
    for line in lines:
        with contextlib.suppress(ValueError):
            steps.append(int(json.loads(line)["step"]))
    return max(steps, default=0)


@dataclass(frozen=True)
class Site:
    """Where a test submits: the cluster, a scratch directory of the test, a training set, the run to compare with."""

    cluster: Any
    folder: Path
    train: str
    reference: Path

    def cluster_file(self, **fields: Any) -> Path:
        """A cluster file like `dev`, with a run root of its own."""
        import yaml

        setup = [f'export PYTHONPATH="{PACE}${{PYTHONPATH:+:$PYTHONPATH}}" VIT_DIST_TEST_PACE="{self.folder}/pace"']
        content = {"base": "dev", "run_root": str(self.folder / "runs"), "setup": setup, **fields}
        path = self.folder / "test-site.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def submit(self, *arguments: str, nodes: int = 2, pace: float = SLOW_S, recipe: Path | None = None, **fields: Any):
        """Submit the recipe; its steps are slow until `let_go`. `fields` are of the cluster file."""
        (self.folder / "pace").write_text(str(pace))
        file = recipe or recipe_file(self.folder, self.train)
        done = vit_dist(
            "submit", str(file), "--cluster", str(self.cluster_file(**fields)), "--nodes", str(nodes), *arguments
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (facts,) = (self.folder / "runs").glob("*/job")
        return SlurmRun(self.cluster, facts.parent, self.folder / "pace")


def vit_dist(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)


def check(run: SlurmRun, reference: Path, causes: Sequence[str], *, bits: bool = True) -> None:
    """What must hold at the end of every scenario.

    The job is over and nothing of it lives; every step was trained on the examples of the undisturbed run; weights and
    moments are the same, bit for bit; the ledger tells what happened and its figures add up.
    """
    assert run.status is not None, run.text()
    assert (run.status.status, run.status.step) == ("done", STEPS), run.text()
    wait_for(
        "nothing of the job lives", lambda: not job_processes(run.cluster), 30, lambda: str(job_processes(run.cluster))
    )
    check_files(run.dir, reference, bits=bits)
    check_ledger(run, causes)


def check_files(run_dir: Path, reference: Path, *, bits: bool = True) -> None:
    """Every step was trained on the same examples as in the undisturbed run, and the weights and moments are its."""
    trained, expected = trained_order(run_dir), trained_order(reference)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert trained == expected
    last = f"checkpoints/step-{STEPS:010d}"
    (assert_same_bits if bits else assert_close)(reference / last, run_dir / last)


def assert_close(a: Path, b: Path, relative: float = 1e-2) -> None:
    """Weights of two checkpoints, trained by another number of ranks: sums are rounded in another order.

    That grows with the steps, so the difference is held to the length of all weights.
    """
    import torch

    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    weights = [name for name in ours if name.startswith("weight:")]
    assert len(weights) > 10, list(ours)[:5]
    x, y = (torch.cat([side[name].double().flatten() for name in weights]) for side in (ours, theirs))
    off = float(torch.linalg.vector_norm(x - y) / torch.linalg.vector_norm(x))
    assert off <= relative, f"weights differ by {off:.1e} of their length"


def check_ledger(run: SlurmRun, causes: Sequence[str]) -> None:
    """The ledger names these causes, and agrees with what the ranks themselves wrote down."""
    entries = run.ledger
    assert [e.cause for e in entries] == list(causes), run.text()
    assert not any(e.open for e in entries)
    assert entries[0].step == 0
    assert sum(e.gained for e in entries) == entries[-1].saved == STEPS
    for before, after in itertools.pairwise(entries):
        assert after.step == before.saved
        assert after.begun >= before.begun
    for number, entry in enumerate(entries, 1):
        done = last_step(run.dir, number)
        assert entry.attempt == number
        assert entry.lost <= max(0, done - entry.saved), (entry, done)
        assert entry.gained == max(0, entry.saved - entry.step)
        assert entry.device_hours > 0


def kill(pid: int, number: int = signal.SIGKILL) -> float:
    """Send a signal; returns when."""
    os.kill(pid, number)
    return time.time()


@contextlib.contextmanager
def job_on(cluster: Any, partition: str, nodes: int, folder: Path) -> Iterator[str]:
    """A job that holds nodes of a partition for the length of a block."""
    script = folder / "hold.sh"
    script.write_text("#!/bin/sh\nexec sleep 3600\n")
    job = cluster.run(
        "sbatch", "--parsable", "-p", partition, f"-N{nodes}", "--exclusive", "-o", "/dev/null", str(script)
    ).stdout.strip()
    try:
        yield job
    finally:
        cluster.run("scancel", job)
