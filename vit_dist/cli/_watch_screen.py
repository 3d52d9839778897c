"""How runs stand, on a terminal: a panel of one run, a table of many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vit_dist.cli._watch_facts import ATTEMPT_COLUMNS, COLUMNS, attempt_row, clean, facts, filled, order, row, summary

if TYPE_CHECKING:
    from launcher.watch import RunView

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
    head = Text(clean(view.name), style="bold")
    head.append("  ")
    head.append(view.state, style=_STYLES.get(view.state, "bold"))
    if view.reason:
        head.append(f": {clean(view.reason)}")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in facts(view, now):
        grid.add_row(label, Text(text))
        if label == "progress" and view.share_done is not None:
            grid.add_row("", ProgressBar(total=1.0, completed=view.share_done, width=max(10, min(60, width - 14))))
    parts: list[RenderableType] = [head, Text(), grid]
    if view.attempts:
        parts += [Text(), _attempts(view, now, width, attempts)]
    for line in view.advice:
        arrow = Text("  -> ", style="bold yellow")
        arrow.append(clean(line), style="default")
        parts += [Text(), arrow]
    return Group(*parts)


def many(views: Sequence[RunView], note: str, *, width: int, rows: int | None = None) -> RenderableType:
    """A table of runs.

    Args:
        views: of them.
        note: a line below it; may be empty.
        width: of the terminal, in characters: narrow ones get fewer columns.
        rows: how many there is room for; None for all.
    """
    now = time.time()
    hidden = {"useful", "tries", "saved"} if width < 100 else {"useful"} if width < 120 else set[str]()
    if width < 78:
        hidden |= {"img/s", "job"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", expand=False)
    ordered = order(views)
    cut = len(ordered) if rows is None else max(1, rows - 6)
    lines = [row(view, now) for view in ordered[:cut]]
    shown = [name for name in filled(COLUMNS, lines) if name not in hidden]
    for name in shown:
        flexible = name in {"run", "note"}
        table.add_column(
            name,
            justify="right" if name in _RIGHT else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=18 if name == "run" else None,
            max_width=44 if name == "run" else None,
            ratio=None if not flexible else (2 if name == "note" else 3),
        )
    for view, line in zip(ordered, lines, strict=False):
        cells = dict(zip(COLUMNS, line, strict=True))
        table.add_row(
            *(Text(cells[name], style=_STYLES.get(view.state, "") if name == "state" else "") for name in shown)
        )
    parts: list[RenderableType] = [table]
    foot = summary(views)
    if cut < len(ordered):
        foot += f" ({len(ordered) - cut} more are not shown here)"
    parts.append(Text(foot))
    if note:
        parts.append(Text(clean(note), style="yellow"))
    return Group(*parts)


def console() -> Console:
    """The terminal on stdout."""
    return Console(highlight=False)


def _attempts(view: RunView, now: float, width: int, count: int) -> Table:
    hidden = {"job"} if len({entry.job for entry in view.attempts}) == 1 else set[str]()
    if width < 100:
        hidden |= {"job", "took"}
    if width < 80:
        hidden |= {"began", "nodes"}
    earlier = len(view.attempts) - count
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="dim",
        caption=f"and {earlier} earlier attempts" if earlier > 0 else None,
        caption_justify="left",
    )
    lines = [attempt_row(entry, now) for entry in view.attempts[-count:]]
    shown = [name for name in filled(ATTEMPT_COLUMNS, lines) if name not in hidden]
    for name in shown:
        table.add_column(
            name, justify="right" if name in _RIGHT else "left", no_wrap=name not in {"ended", "then"}, overflow="fold"
        )
    for line in lines:
        cells = dict(zip(ATTEMPT_COLUMNS, line, strict=True))
        table.add_row(*(Text(cells[name]) for name in shown))
    return table
