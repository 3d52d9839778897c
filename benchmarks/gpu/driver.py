"""Runs processes one after the other, each with a deadline, and says which of them failed. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRATCH_BYTES = 32 << 30
"""What tars and checkpoints of a stage may take; memory holds them where it has that much to spare."""

_ENVIRONMENT = {
    # Decode threads are the parallelism of a process: a team of OpenMP in each of them would be threads squared.
    "OMP_NUM_THREADS": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


@dataclass(frozen=True)
class Job:
    """One process: it appends its figures to results.jsonl of the folder that all share."""

    stage: str
    case: str
    command: tuple[str, ...]
    deadline_s: float

    @property
    def name(self) -> str:
        """For people: 'steps ViT-L/16:128'."""
        return f"{self.stage} {self.case}".strip()


def run_jobs(jobs: Iterable[Job], out: Path, ends: float) -> list[str]:
    """Run every job, whatever became of those before it.

    Args:
        jobs: in this order.
        out: the folder of results.jsonl, to which what failed is appended too.
        ends: the `time.monotonic()` after which no job runs.

    Returns:
        What failed: 'steps ViT-H/14:64: exit status 1 after 12 s'.
    """
    problems = []
    for job in jobs:
        began = time.monotonic()
        print(f"-- {job.name}", flush=True)
        before = len(read_results(out))
        problem = _run(job, ends - began)
        if not problem and len(read_results(out)) == before:
            problem = "ended without a figure"
        spent = f"after {time.monotonic() - began:.1f} s"
        print(f"-- {job.name}: {problem or 'done'} {spent}", flush=True)
        if problem:
            append(out, {"stage": job.stage, "case": job.case, "problem": f"{problem} {spent}"})
            problems.append(f"{job.name}: {problem} {spent}")
    return problems


def append(out: Path, line: dict[str, Any]) -> None:
    """Append a line to results.jsonl, in one write. A figure that is not finite is none: ValueError."""
    text = json.dumps(line, allow_nan=False)
    with (out / "results.jsonl").open("a") as file:
        file.write(text + "\n")


def read_results(out: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl, of all runs into this folder."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _run(job: Job, left_s: float) -> str:
    """Run a job; returns what went wrong, or ''. Nothing that it started or stored is left behind."""
    allowed = min(job.deadline_s, left_s)
    if allowed < min(job.deadline_s, 15):
        return f"not started, {max(0.0, left_s):.0f} s of the budget are left"
    scratch = tempfile.mkdtemp(prefix="bench-gpu-", dir=_scratch_root())
    process = subprocess.Popen(
        job.command, env={**_ENVIRONMENT, **os.environ, "TMPDIR": scratch}, start_new_session=True
    )
    try:
        status = process.wait(allowed)
    except subprocess.TimeoutExpired:
        short = "" if allowed == job.deadline_s else ", all that the budget had left"
        return f"stopped at its deadline of {allowed:.0f} s{short}"
    finally:
        _kill_group(process)
        shutil.rmtree(scratch, ignore_errors=True)
    return f"exit status {status}" if status else ""


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started in its group, at once: one that hangs in a driver hears no SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _scratch_root() -> str | None:
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free >= _SCRATCH_BYTES
    return str(memory) if roomy and "TMPDIR" not in os.environ else None
