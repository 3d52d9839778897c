"""How runs stand, on a terminal: a panel of one run, a table of many."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
            grid.add_row(
                "",
                ProgressBar(
                    total=1.0, completed=view.share_done, width=max(10, min(60, width - 14)), complete_style="green"
                ),
            )
    parts: list[RenderableType] = [head, Text(), grid]
    if view.attempts:
        parts += [_attempts(view, now, width, attempts)]
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
        width: of the terminal, in characters: a narrow one gets fewer columns.
        rows: how many there is room for; None for all.
    """
    now = time.time()
    ordered = order(views)
    cut = len(ordered) if rows is None else max(1, rows - 5)
    lines = [row(view, now) for view in ordered[:cut]]
    columns = _widths(lines, width)
    parts: list[RenderableType] = []
    if lines:
        parts.append(_line(COLUMNS, columns, "dim", "dim"))
    parts += [_line(line, columns, "", _STYLES.get(view.state, "")) for view, line in zip(ordered, lines, strict=False)]
    foot = summary(views)
    if cut < len(ordered):
        foot += f" ({len(ordered) - cut} more are not shown here)"
    parts += [Text(), Text(foot)]
    if note:
        parts.append(Text(clean(note), style="yellow"))
    return Group(*parts)


_DISPENSABLE = ("tries", "useful", "saved", "img/s", "job", "done", "left", "note")
_GAP = 2


def _widths(lines: Sequence[Sequence[str]], width: int) -> dict[str, int]:
    """Column -> characters. What has least to say goes first where there is no room; names and notes are cut last."""
    full = {
        name: max([len(name), *(len(line[i]) for line in lines)])
        for i, name in enumerate(COLUMNS)
        if name in filled(COLUMNS, lines)
    }
    least = {"run": min(full.get("run", 0), 24), "note": min(full.get("note", 0), 16)}
    for name in _DISPENSABLE:
        if sum({**full, **least}.values()) + _GAP * (len(full) - 1) <= width:
            break
        full.pop(name, None)
        least.pop(name, None)
    spare = width - _GAP * (len(full) - 1) - sum(n for name, n in full.items() if name not in least)
    if "note" in full:
        full["run"] = min(full["run"], max(least["run"], spare - full["note"], spare // 2))
        full["note"] = max(0, min(full["note"], spare - full["run"]))
    elif "run" in full:
        full["run"] = max(8, min(full["run"], spare))
    return full


def _line(cells: Sequence[str], columns: Mapping[str, int], style: str, state_style: str) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, cell in zip(COLUMNS, cells, strict=True):
        if name not in columns:
            continue
        if len(text):
            text.append(" " * _GAP)
        size = columns[name]
        shown = cell if len(cell) <= size else cell[: max(0, size - 1)] + "…"
        text.append(
            shown.rjust(size) if name in _RIGHT else shown.ljust(size), state_style if name == "state" else style
        )
    text.rstrip()
    return text


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
