"""How runs stand, on a terminal: a panel of one run, a table of many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vit_dist.cli.runs.facts import ATTEMPT_COLUMNS, COLUMNS, attempt_row, facts, one_line, order, row, summary
from vit_dist.core.tables import columns
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from launcher.status.run_view import RunView

_STYLES = {
    "running": "bold green",
    "starting": "green",
    "ending": "green",
    "waiting": "yellow",
    "done": "bold cyan",
    "stopped": "cyan",
    "cancelled": "magenta",
    "failed": "bold red",
    "given up": "bold red",
    "lost": "bold red",
    "silent": "red",
}
_RIGHT = {"#", "took", "gained", "lost", "step", "done", "img/s", "left", "useful", "saved", "tries"}


def one(view: RunView, *, width: int, attempts: int = 12) -> RenderableType:
    """One run.

    Args:
        view: of it.
        width: of the terminal, in characters.
        attempts: how many of the last are shown.
    """
    now = time.time()
    head = Text(one_line(view.name), style="bold")
    head.append("  ")
    head.append(view.state, style=_STYLES.get(view.state, "bold"))
    if view.reason:
        head.append(f": {one_line(view.reason)}")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in facts(view, now):
        grid.add_row(label, Text(text))
        if label == "progress" and view.fraction_done is not None:
            grid.add_row(
                "",
                ProgressBar(
                    total=1.0, completed=view.fraction_done, width=max(10, min(60, width - 14)), complete_style="green"
                ),
            )
    parts: list[RenderableType] = [head, Text(), grid]
    if view.attempts:
        parts += [Text(), _attempts(view, now, width, attempts)]
    parts += [Text()] if view.advice else []
    for line in view.advice:
        arrow = Text("  -> ", style="bold yellow")
        arrow.append(one_line(line), style="default")
        parts.append(arrow)
    return Group(*parts)


def many(views: Sequence[RunView], note: str, *, width: int, rows: int | None = None) -> RenderableType:
    """A table of runs.

    Args:
        views: of them.
        note: a line below it; may be empty.
        width: of the terminal, in characters: a narrow one gets fewer columns.
        rows: how many there is room for; None for all.
    """
    now = time.time()
    ordered = order(views)
    cut = len(ordered) if rows is None else max(1, rows - 5)
    lines = [row(view, now) for view in ordered[:cut]]
    parts: list[RenderableType] = []
    if lines:
        parts.append(
            columns(
                [_styled(COLUMNS, line, view.state) for view, line in zip(ordered, lines, strict=False)],
                COLUMNS,
                right=_RIGHT,
                width=width,
                dispensable=_DISPENSABLE,
                flexible={"run": 24, "note": 16},
            )
        )
    foot = summary(views)
    if cut < len(ordered):
        foot += f" ({len(ordered) - cut} more are not shown here)"
    parts += [Text(), Text(foot)]
    if note:
        parts.append(Text(one_line(note), style="yellow"))
    return Group(*parts)


_DISPENSABLE = ("tries", "useful", "saved", "img/s", "job", "done", "left", "note")


def _styled(names: Sequence[str], cells: Sequence[str], state: str) -> list[str | Text]:
    return [
        Text(cell, _STYLES.get(state, "")) if name == "state" else cell for name, cell in zip(names, cells, strict=True)
    ]


def _attempts(view: RunView, now: float, width: int, count: int) -> RenderableType:
    lines = [attempt_row(entry, now) for entry in view.attempts[-count:]]
    hidden = {"job"} if len({entry.job for entry in view.attempts}) == 1 else set[str]()
    lines = [
        tuple("" if name in hidden else cell for name, cell in zip(ATTEMPT_COLUMNS, line, strict=True))
        for line in lines
    ]
    parts: list[RenderableType] = [
        columns(
            lines,
            ATTEMPT_COLUMNS,
            right=_RIGHT,
            width=width,
            dispensable=("job", "took", "began", "gained", "nodes"),
            flexible={"then": 10, "ended": 20},
        )
    ]
    earlier = len(view.attempts) - count
    if earlier > 0:
        parts.append(Text(f"and {counted(earlier, 'earlier attempt')}", style="dim"))
    return Group(*parts)
