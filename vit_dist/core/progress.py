"""How far a long command is: a live bar on a terminal, plain lines elsewhere. Always on stderr. No torch."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from vit_dist.core.units import format_bytes, format_seconds

_LINE_EVERY_S = 10.0


class Progress:
    """Counts `total` things (0: unknown) and, where given, their bytes; shows the rate and the time that is left."""

    def __init__(self, title: str, total: int, unit: str, *, quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.done, self.num_bytes = 0, 0
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Bar(*columns, console=Console(file=sys.stderr), transient=True)
            self._task = self._bar.add_task(self.title, total=self.total or None, text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and not self.quiet:
            spent = time.monotonic() - self._started
            sys.stderr.write(f"{self.title}: {self._amount()} in {format_seconds(spent)}, {self._rate()}\n")
            sys.stderr.flush()

    def advance(self, count: int = 1, num_bytes: int = 0) -> None:
        """So many more are done."""
        self.update(self.done + count, self.num_bytes + num_bytes)

    def update(self, done: int, num_bytes: int = 0) -> None:
        """So many are done in all."""
        self.done, self.num_bytes = done, num_bytes
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self._text())
            return
        now = time.monotonic()
        if now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            sys.stderr.write(f"{self.title}: {self._text()}\n")
            sys.stderr.flush()

    def _amount(self) -> str:
        size = f" ({format_bytes(self.num_bytes)})" if self.num_bytes else ""
        return f"{self.done:,} {self.unit}{size}"

    def _rate(self) -> str:
        spent = max(time.monotonic() - self._started, 1e-9)
        rate = f"{self.done / spent:,.0f} {self.unit}/s"
        return f"{rate}, {format_bytes(self.num_bytes / spent)}/s" if self.num_bytes else rate

    def _text(self) -> str:
        if not self.total:
            return f"{self._amount()}, {self._rate()}"
        spent = time.monotonic() - self._started
        left = spent / self.done * (self.total - self.done) if self.done else 0.0
        eta = f", {format_seconds(left)} left" if self.done else ""
        return f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%}), {self._rate()}{eta}"
