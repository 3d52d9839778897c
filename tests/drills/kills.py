"""Kills a run at random instants until it has been killed often enough, lets it end, and says what happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launcher.processes.kill_test import Attempt, end
from tests import forks
from tests.conftest import command
from tests.laws.test_resume import assert_same_bits, recipe_file
from vit_dist.core.errors import RunError
from vit_dist.core.events.reader import read_run
from vit_dist.core.run import history

ENGINES = {
    "plain": ("engine: {name: plain}", "bf16"),
    "fsdp": ("engine: {name: fsdp}", "bf16"),
    "fsdp-resharded": ("engine: {name: fsdp, reshard_after_forward: true}", "fp32"),
    "zero-1": ("engine: {name: deepspeed, zero_stage: 1, reduce_bucket: 1000000, allgather_bucket: 1000000}", "bf16"),
    "zero-2": ("engine: {name: deepspeed, zero_stage: 2, reduce_bucket: 1000000, allgather_bucket: 1000000}", "bf16"),
    "zero-3": ("engine: {name: deepspeed, zero_stage: 3, reduce_bucket: 1000000, allgather_bucket: 1000000}", "fp32"),
}
STEPS_A_KILL = 30
_TIMEOUT_S = 240.0


@dataclass
class Kill:
    """One kill: of whom, while what, after which step."""

    victim: str
    phase: str
    step: int


@dataclass
class Report:
    """What a drill found."""

    engine: str
    seed: int
    steps: int
    kills: list[Kill] = field(default_factory=list)
    seconds: float = 0.0
    lost_steps: int = 0

    def text(self) -> str:
        """For people."""
        phases = {p: sum(k.phase == p for k in self.kills) for p in ("start", "training", "saving")}
        victims = {v: sum(k.victim == v for k in self.kills) for v in ("rank 0", "rank 1", "parent")}
        lines = [
            (
                f"{self.engine}: {len(self.kills)} kills in {self.seconds:.0f}s (seed {self.seed}), {self.steps} steps,"
                f" {self.lost_steps} of them done twice; final weights and moments bit-identical, log without gaps"
            ),
            "  while " + ", ".join(f"{phase}: {n}" for phase, n in phases.items()),
            "  of " + ", ".join(f"{victim}: {n}" for victim, n in victims.items()),
        ]
        lines += [f"  {i + 1:3d}  {k.victim:<7} {k.phase:<9} step {k.step}" for i, k in enumerate(self.kills)]
        return "\n".join(lines) + "\n"


def drill(
    folder: Path,
    train: str,
    val: str,
    engine: str,
    *,
    kills: int,
    seed: int,
    start: Callable[[Attempt], subprocess.Popen[str]] = Attempt.start,
) -> Report:
    """Kill a run `kills` times, and hold its end to that of a run which nobody disturbed.

    Args:
        folder: for the recipe and both runs.
        train: URL of a manifest.
        val: another.
        engine: of ENGINES.
        kills: how many.
        seed: of whom, when and while what.
        start: an attempt that is to be killed.

    Raises:
        AssertionError: the weights, the moments or the log differ.
        RunError: an attempt failed by itself.
    """
    section, precision = ENGINES[engine]
    steps = STEPS_A_KILL * (kills + 1)
    recipe = recipe_file(folder, train, val)
    text = recipe.read_text().replace("horizon: 10 steps", f"horizon: {steps} steps\nprecision: {precision}")
    text = text.replace("engine: {name: deepspeed, reduce_bucket: 1000000, allgather_bucket: 1000000}", section)
    recipe.write_text(text.replace("eval: {every: 5 steps}", f"eval: {{every: {steps} steps}}"))
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    words = command("train", str(recipe), "--run-dir", str(undisturbed), "--nproc", "2")
    forks.run(words, timeout=_TIMEOUT_S, check=True)

    dice, report, began = random.Random(f"{engine} {seed}"), Report(engine, seed, steps), time.monotonic()
    while len(report.kills) < kills:
        process = start(Attempt(recipe, killed, 2))
        try:
            report.kills.append(_kill(process, killed, dice))
            process.communicate(timeout=90)
        finally:
            end(process)
        report.lost_steps += max(0, report.kills[-1].step - _newest(killed))
    forks.run([*words[:-3], str(killed), *words[-2:]], timeout=_TIMEOUT_S, check=True)
    report.seconds = time.monotonic() - began

    last = f"checkpoints/step-{steps:010d}"
    assert_same_bits(undisturbed / last, killed / last)
    expected, continued = (read_run(str(run / "tb")).scalars for run in (undisturbed, killed))
    for tag in ("train/loss", "train/grad_norm", "val/top1", "val/loss"):
        assert expected[tag].steps.tolist() == continued[tag].steps.tolist()
        assert expected[tag].values.tolist() == continued[tag].values.tolist()
    assert expected["train/loss"].steps.tolist() == list(range(1, steps + 1))
    return report


def _kill(process: subprocess.Popen[str], run_dir: Path, dice: random.Random) -> Kill:
    """Wait for a random instant of a random phase, and kill a random process with SIGKILL."""
    phase = dice.choices(["start", "training", "saving"], [1, 3, 2])[0]
    victim = dice.choice(["rank 0", "rank 1", "parent"])
    number, deadline = history.read(run_dir).next_attempt, time.monotonic() + _TIMEOUT_S

    def still_going() -> None:
        if process.poll() is not None or time.monotonic() > deadline:
            end(process)
            raise RunError(f"the attempt ended before it could be killed:\n{process.communicate()[0][-3000:]}")

    if phase == "start":
        time.sleep(dice.uniform(0.2, 3.0))
    else:
        while not _steps_begun(run_dir, number):
            still_going()
            time.sleep(0.002)
        time.sleep(dice.uniform(0.0, 0.5))
        while phase == "saving" and not list((run_dir / "checkpoints").glob(".step-*.partial/*")):
            still_going()
        if phase == "saving":
            time.sleep(dice.uniform(0.0, 0.01))
    still_going()
    os.kill(_pid(process, victim), signal.SIGKILL)
    status = history.read(run_dir).status
    return Kill(victim, phase, status.step if status is not None else 0)


def _steps_begun(run_dir: Path, attempt: int) -> bool:
    status = history.read(run_dir).status
    return status is not None and status.status == "running" and status.attempt >= attempt


def _pid(process: subprocess.Popen[str], victim: str) -> int:
    """The process to kill; the parent where its ranks are not there yet."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks.update({entry.decode(): int(child) for entry in environment if entry.startswith(b"RANK=")})
    return process.pid if victim == "parent" else ranks.get(victim.replace("rank ", "RANK="), process.pid)


def _newest(run_dir: Path) -> int:
    steps = [int(p.parent.name[5:]) for p in (run_dir / "checkpoints").glob("step-*/COMMITTED.json")]
    return max(steps, default=0)
