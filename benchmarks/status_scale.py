"""`vit-dist status` of many runs: seconds, and how often Slurm is asked. At most 2 s for 500 runs, with one squeue.

    python -m benchmarks.status_scale                 500 runs, without Slurm
    python -m benchmarks.status_scale --events 1000   each with a history of so many events
    python -m benchmarks.status_scale --slurm 20      with the toy cluster (slurm/dev-cluster), 20 jobs in it

Run directories are made as training and its supervisors leave them: histories of several attempts, checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vit_dist.core.run import names

CAUSES = (("time_limit", "requeue"), ("node_lost", "requeue"), ("preempted", "requeue"), ("crashed", "respawn"))
LIMIT_S = 2.0
ROOT = Path(__file__).resolve().parent.parent


def make_run(path: Path, number: int, rng: random.Random, job: str = "", events: int = 0) -> None:
    """One run of up to eight attempts, or of so many that its history has so many events."""
    path.mkdir(parents=True)
    now, attempts, step = time.time(), rng.randint(1, 8), 0
    attempts = max(1, events // 5) if events else attempts
    job = job or str(900_000 + number)
    facts = {"cluster": "dgx-h100", "nodes": 4, "devices_per_node": 8}
    begun, lines = now - 3600.0 * (attempts + 1), dict[str, list[dict[str, object]]]()
    lines[names.BY_PEOPLE] = [
        {"event": "submitting", "at": begun, "after": 0, **facts},
        {"event": "submitted", "at": begun, "after": 0, "job": job},
    ]
    supervisor, ranks = lines.setdefault(names.BY_SUPERVISOR, []), lines.setdefault(names.BY_RANKS, [])
    progress: dict[str, object] = {}
    for attempt in range(1, attempts + 1):
        began = now - 3600.0 * (attempts - attempt + 1)
        nodes = [f"n{rng.randint(1, 400):03d}" for _ in range(4)]
        head = {"attempt": attempt, "at": began, "host": nodes[0], "pid": 1, "step": step}
        supervisor.append(
            {"event": "begun", **head, "launcher": "slurm", "job": job, "restart": attempt - 1, "nodes": nodes}
        )
        ranks += [{"event": "opened", **head, "ranks": 32}, {"event": "training", "attempt": attempt, "at": began}]
        goodput = {"train": 3000.0 * attempt, "wait": 20.0, "save": 30.0, "start": 60.0, "lost": 100.0, "down": 500.0}
        over = attempt < attempts or number % 3
        gained = rng.randint(100, 5000) if over else 0
        step += gained
        progress = {"attempt": attempt, "time": now, "step": step, "examples": step * 4096, "goodput": goodput}
        if over:
            cause, action = ("done", "none") if attempt == attempts else rng.choice(CAUSES)
            told = "done" if cause == "done" else "stopped"
            ranks.append({"event": "ended", **progress, "at": began + 3490, "status": told, "saved": step})
            end = {"cause": cause, "action": action, "detail": f"{nodes[0]} is down", "saved": step, "gained": gained}
            supervisor.append({"event": "closed", "attempt": attempt, "at": began + 3500, **end})
    for name, of_file in lines.items():
        (path / name).write_text("".join(json.dumps(event) + "\n" for event in of_file))
    identity = {"horizon": "300M examples", "global_batch": 4096, "data": {"subset": 30_000_000}}
    (path / names.HEARTBEAT).write_text(json.dumps(progress))
    (path / "run.json").write_text(
        json.dumps({"name": path.name, "identity": identity, "recipe_hash": f"{number:016x}"})
    )
    for saved in (step, max(0, step - 500)):
        folder = path / "checkpoints" / f"step-{saved:010d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "COMMITTED.json").write_text("{}")
    (path / "tb").mkdir()


def counting(folder: Path, path: str) -> dict[str, Path]:
    """Wrappers of Slurm's commands that note each call: {command: file of notes}."""
    notes = {}
    for name in ("squeue", "scontrol", "sacct", "sinfo"):
        real = shutil.which(name, path=path)
        if real is None:
            continue
        notes[name] = folder / f"{name}.calls"
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\necho x >> "{notes[name]}"\nexec "{real}" "$@"\n')
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return notes


@contextlib.contextmanager
def toy_cluster(jobs: int, script: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Environment of a real Slurm with so many jobs, and their numbers."""
    from tests.slurm.cluster import running_cluster

    with running_cluster(nodes=3) as cluster:
        script.write_text("#!/bin/sh\nsleep 600\n")
        numbers = [
            cluster.run("sbatch", "--parsable", "-n1", "-o", "/dev/null", str(script)).stdout.strip()
            for _ in range(jobs)
        ]
        yield cluster.environment(), numbers


def measure(root: Path, environ: dict[str, str], repeats: int) -> tuple[list[float], str]:
    """Seconds of each call of the command, and what the last one printed."""
    seconds, text = [], ""
    for _ in range(repeats):
        began = time.perf_counter()
        command = [sys.executable, "-m", "vit_dist.cli.main", "status", "--runs", str(root)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, cwd=ROOT)
        seconds.append(time.perf_counter() - began)
        text = done.stdout
    return seconds, text


def main() -> int:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="how many (500)")
    parser.add_argument(
        "--slurm", metavar="JOBS", type=int, default=0, help="bring up the toy cluster, with so many jobs"
    )
    parser.add_argument("--events", type=int, default=0, help="in the history of each (up to eight attempts)")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each kind; the median counts (5)")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="status-")))
        environ, jobs = {**os.environ, "PYTHONPATH": str(ROOT)}, list[str]()
        if args.slurm:
            found, jobs = stack.enter_context(toy_cluster(args.slurm, folder / "job.sh"))
            environ |= {name: found[name] for name in ("PATH", "SLURM_CONF")}
        rng = random.Random(0)
        for i in range(args.runs):
            # Every third run is not done: the jobs are theirs.
            make_run(
                folder / "runs" / f"run-{i:04d}-{i:08x}", i, rng, jobs.pop() if jobs and i % 3 == 0 else "", args.events
            )
        (folder / "bin").mkdir()
        notes = counting(folder / "bin", environ["PATH"]) if args.slurm else {}
        environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{environ['PATH']}"
        seconds, text = measure(folder / "runs", environ, args.repeats)
        median = sorted(seconds)[len(seconds) // 2]
        summary = next(line for line in text.splitlines() if line.startswith(f"{args.runs} runs"))
        print(f"{args.runs} runs: median {median:.2f} s, longest {max(seconds):.2f} s (limit {LIMIT_S} s)")
        print(summary)
        calls = {name: len(path.read_text().split()) if path.exists() else 0 for name, path in notes.items()}
        if args.slurm:
            print("calls a status: " + ", ".join(f"{name} {count / args.repeats:g}" for name, count in calls.items()))
        asked_once = not args.slurm or (calls.pop("squeue") == args.repeats and not any(calls.values()))
    return 0 if median <= LIMIT_S and asked_once else 1


if __name__ == "__main__":
    sys.exit(main())
