"""How far a long command or a run is: a live bar on a terminal, plain lines elsewhere. Always on stderr. No torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from vit_dist.core.log import log, log_to_file, on_terminal
from vit_dist.core.terminal import clean, steering
from vit_dist.core.units import counted, format_bytes, format_rate, format_seconds, plural

_LINE_EVERY_S = 10.0


class Progress:
    """Counts `total` things and, where given, their bytes; shows the rate and the time that is left.

    Args:
        title: what is being done.
        total: how many things there are; 0: unknown.
        unit: what one of them is: 'image'.
        quiet: show nothing.
        done: how many were done before, of which the rate knows nothing: a run that resumes.
        summary: end with one line of what was done in place of the bar; else the bar stays as it was last shown.
        estimate: show the time that is left; not where things take their time at anything but the same rate.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        *,
        quiet: bool = False,
        done: int = 0,
        summary: bool = True,
        estimate: bool = True,
    ) -> None:
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.done, self.num_bytes = done, 0
        self._first, self._summary, self._estimate = done, summary, estimate
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self.quiet and on_terminal():
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._bar = Bar(*columns, console=Console(file=steering(sys.stderr)), transient=self._summary)
            self._task = self._bar.add_task(
                escape(clean(self.title)), total=self.total or None, completed=self.done, text=""
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and self._summary and not self.quiet:
            log(f"{self.title}: {self._amount()} in {format_seconds(self._spent_s())}, {self._rate()}")

    def advance(self, count: int = 1, num_bytes: int = 0) -> None:
        """So many more are done."""
        self.update(self.done + count, self.num_bytes + num_bytes)

    def update(
        self, done: int, num_bytes: int = 0, *, metrics: Mapping[str, float | str] | None = None, force: bool = False
    ) -> None:
        """So many are done in all.

        Args:
            done: all that are done, those of before included.
            num_bytes: their bytes, where the unit has any.
            metrics: short names and values to show in place of the rate, in this order; texts as they are.
            force: print a line in a log even if the last one was moments ago.
        """
        self.done, self.num_bytes = done, num_bytes
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self._text(metrics))
        now = time.monotonic()
        if force or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            (log if self._bar is None else log_to_file)(f"{self.title}: {self._text(metrics)}")

    def _spent_s(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def _amount(self) -> str:
        size = f" ({format_bytes(self.num_bytes)})" if self.num_bytes else ""
        return f"{counted(self.done, self.unit)}{size}"

    def _rate(self) -> str:
        rate = f"{format_rate((self.done - self._first) / self._spent_s())} {plural(self.unit)}/s"
        return f"{rate}, {format_bytes(self.num_bytes / self._spent_s())}/s" if self.num_bytes else rate

    def _text(self, metrics: Mapping[str, float | str] | None) -> str:
        each = ((name, f"{v:,.4g}" if isinstance(v, float | int) else v) for name, v in (metrics or {}).items())
        shown = "  ".join(f"{name} {value}" for name, value in each) if metrics else self._rate()
        if not self.total:
            return f"{self._amount()}, {shown}"
        lately = self.done - self._first if self._estimate else 0
        eta = f", {format_seconds(self._spent_s() / lately * (self.total - self.done))} left" if lately else ""
        return f"{self.done:,} of {counted(self.total, self.unit)} ({self.done / self.total:.0%}), {shown}{eta}"
