"""Kill tests: attempts that are killed on purpose, and the examples they trained on. For verify-resume and drills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vit_dist.core.errors import RunError
from vit_dist.core.process import cli_command, parent_death_signal
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import without_world

_POLL_S = 0.005


@dataclass(frozen=True)
class Attempt:
    """One attempt in processes of its own: what to run, where, on how many ranks."""

    recipe: Path
    run_dir: Path
    nproc: int

    def start(self) -> subprocess.Popen[str]:
        """Start it; its output is captured, and it leads a process group of its own, to be killed all at once."""
        command = cli_command("train", str(self.recipe))
        return subprocess.Popen(
            [*command, "--run-dir", str(self.run_dir), "--nproc", str(self.nproc)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**without_world(os.environ), **parent_death_signal()},
            text=True,
            start_new_session=True,
        )

    def finish(self, timeout_s: float) -> str:
        """Run it to its end. Returns its output.

        Raises:
            RunError: it failed, or took too long.
        """
        process = self.start()
        try:
            output = process.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            raise RunError(f"{self.run_dir}: the attempt did not end within {timeout_s:.0f}s") from None
        finally:
            end(process)
        if process.returncode:
            raise RunError(f"{self.run_dir}: the attempt failed with exit code {process.returncode}:\n{output[-3000:]}")
        return output

    def kill_when(self, ready: Callable[[], bool], timeout_s: float) -> str:
        """Kill it, all at once and with SIGKILL, as soon as something holds. Returns its output.

        Raises:
            RunError: it ended before, or that never came.
        """
        process, deadline = self.start(), time.monotonic() + timeout_s
        try:
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    end(process)
                    output = process.communicate()[0]
                    raise RunError(f"{self.run_dir}: the attempt ended before it could be killed:\n{output[-3000:]}")
                time.sleep(_POLL_S)
        finally:
            end(process)
        return process.communicate()[0]


def end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of an attempt: its parent, and with it its ranks."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trained_order(run_dir: Path) -> dict[int, list[int]]:
    """The ordinals of every step's examples, in the order of the global batch, from a run with `log.order`.

    Of steps that were done more than once the last attempt's count: its results are what the run ended with.
    """
    by_attempt: dict[str, dict[int, dict[int, list[int]]]] = {}
    for path in sorted(RunDir(run_dir).order.glob("attempt-*-rank-*.jsonl")):
        attempt, _, rank = path.stem.partition("-rank-")
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                # The kill has cut this line short.
                continue
            by_attempt.setdefault(attempt, {}).setdefault(entry["step"], {})[int(rank)] = entry["ordinals"]
    order: dict[int, list[int]] = {}
    for attempt in sorted(by_attempt):
        ranks = max(len(parts) for parts in by_attempt[attempt].values())
        for step, parts in by_attempt[attempt].items():
            # A step that was killed has the lines of some ranks alone: it will be done again. Position p of the batch
            # is rank p mod W's.
            if len(parts) == ranks:
                order[step] = [o for row in zip(*(parts[r] for r in sorted(parts)), strict=True) for o in row]
    return order
