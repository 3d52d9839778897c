"""What a person sees while a run trains: a bar on a terminal, plain lines in a log. Rank 0 only."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vit_dist.core.log import log, on_terminal
from vit_dist.core.units import format_seconds

_LINE_EVERY_S = 10.0


class ProgressLine:
    """The live line of a run.

    Args:
        total_steps: length of the run.
        step: where it starts.
        shown: False on all ranks but the first.
    """

    def __init__(self, total_steps: int, step: int, *, shown: bool) -> None:
        self._total, self._shown, self._started, self._first = total_steps, shown, time.monotonic(), step
        self._last_line = self._started
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if shown and on_terminal():
            self._bar = Progress(
                TextColumn("  step {task.completed:,.0f}/{task.total:,.0f}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[metrics]}"),
                TextColumn("left"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("train", total=total_steps, completed=step, metrics="")
            self._bar.start()

    def update(self, step: int, metrics: Mapping[str, float], *, force: bool = False) -> None:
        """Show where the run stands.

        Args:
            step: steps completed.
            metrics: short names and values, in the order to show.
            force: print a line in a log even if the last one was moments ago.
        """
        if not self._shown:
            return
        text = "  ".join(f"{name} {value:,.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, metrics=text)
            return
        now = time.monotonic()
        if force or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            done = step - self._first
            left = (now - self._started) / done * (self._total - step) if done else 0.0
            log(f"  step {step:,}/{self._total:,}  {text}  left {format_seconds(left)}")

    def close(self) -> None:
        """End the bar; what was last shown stays."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
