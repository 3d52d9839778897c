"""The supervisor's settings, which the job script gives it, and the signals that Slurm has sent it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vit_dist.core.process import handling
from vit_dist.core.run.checkpoints import measured_save_s


@dataclass(frozen=True)
class SupervisorSettings:
    """What the job script gives the supervisor.

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
class ReceivedSignals:
    """Signals that Slurm has sent to the batch script."""

    warned: bool = False
    """SIGUSR2: the time limit is near."""
    terminated: bool = False
    """SIGTERM: the job is being ended."""

    def on(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal."""
        self.warned = self.warned or number == signal.SIGUSR2
        self.terminated = self.terminated or number == signal.SIGTERM


@contextlib.contextmanager
def listening() -> Iterator[ReceivedSignals]:
    """Note SIGUSR2 and SIGTERM in place of dying of them."""
    received = ReceivedSignals()
    with handling((signal.SIGUSR2, signal.SIGTERM), received.on):
        yield received
