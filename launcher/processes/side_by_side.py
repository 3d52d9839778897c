"""Several attempts at once on this machine: a `vit-dist train` each, its output in a file, signals forwarded to all.

Each has a parent-death signal: where this process is killed, they and their ranks are too.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

from vit_dist.config.load import recipe_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.exit_codes import of_signal
from vit_dist.core.files import explained, open_append, write_bytes
from vit_dist.core.process import STOP_SIGNALS, cli_command, handling, parent_death_signal
from vit_dist.core.run import names
from vit_dist.core.scratch import scratch
from vit_dist.core.world import without_world

LOG = "train.log"
_LAST_LINES = 4


class SideBySide:
    """Runs attempts, each when it is called, from as many threads as there are `jobs`.

    Args:
        nproc: ranks of each attempt.
        jobs: how many attempts run at once; they share the cores.
    """

    def __init__(self, *, nproc: int, jobs: int) -> None:
        self._nproc = nproc
        cpus = max(1, len(os.sched_getaffinity(0)) // jobs)
        limits = {"OMP_NUM_THREADS": str(max(1, cpus // nproc)), "VIT_DIST_CPUS": str(cpus)}
        self._environ = {**limits, **without_world(os.environ), **parent_death_signal()}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._asked: list[int] = []

    def __call__(self, recipe: Recipe, run_dir: Path) -> int:
        """One attempt of a run, and its exit code; what it prints goes to `train.log` in the run directory."""
        with scratch(run_dir, "study") as folder:
            recipe_file = folder / names.RECIPE
            write_bytes(str(recipe_file), recipe_yaml(recipe).encode())
            return self.run(["train", str(recipe_file), "--run-dir", str(run_dir)], run_dir)

    def run(self, arguments: Sequence[str], run_dir: Path) -> int:
        """`vit-dist ARGUMENTS --nproc N`, and its exit code; its output goes to `train.log` in the run directory."""
        command = cli_command(*arguments, "--nproc", str(self._nproc))
        with explained(str(run_dir / LOG), "written"):
            run_dir.mkdir(parents=True, exist_ok=True)
            opened = open_append(run_dir / LOG)
        with opened as output:
            with self._lock:
                if self._asked:
                    return of_signal(self._asked[0])
                # A session of its own: Ctrl-C in the terminal reaches it once, through `signals`, and not twice, which
                # would kill it. Its parent-death signal comes when this thread ends, which waits for it below.
                process = subprocess.Popen(
                    command,
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
                # A stop that came just now found nothing to forward to.
                if self._asked:
                    process.send_signal(self._asked[0])
            try:
                code = process.wait()
                # Whatever it ended with, it was asked to: no other is begun after it.
                return of_signal(self._asked[0]) if code and self._asked else code
            finally:
                with self._lock:
                    self._running.discard(process)

    @staticmethod
    def last_error_line(run_dir: Path) -> str:
        """The error near the end of a run's `train.log`, without what to do next, and that file; '' if none."""
        try:
            text = (run_dir / LOG).read_text(errors="replace").rstrip()
        except OSError:
            return ""
        for line in reversed(text.splitlines()[-_LAST_LINES:]):
            verb, _, error = line.partition(": error: ")
            if error and verb.startswith("vit-dist "):
                return f"{error} (log: {run_dir / LOG})"
        return ""

    def signals(self) -> AbstractContextManager[None]:
        """While this lasts, SIGTERM and Ctrl-C let the attempts save and stop; a second Ctrl-C kills them."""

        def forward(number: int, _frame: FrameType | None) -> None:
            # No lock: the code that is interrupted may hold it. A process that is started just now gets the stop from
            # `run`, which looks at it after it has added the process.
            self._asked.append(number)
            for process in list(self._running):
                if process.poll() is None:
                    process.send_signal(number)

        return handling(STOP_SIGNALS, forward)
