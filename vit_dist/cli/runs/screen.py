"""How runs stand, on a terminal: a panel of one run, a table of many."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vit_dist.cli.runs.facts import ATTEMPT_COLUMNS, COLUMNS, attempt_row, clean, facts, filled, order, row, summary

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
        parts += [Text(), _attempts(view, now, width, attempts)]
    parts += [Text()] if view.advice else []
    for line in view.advice:
        arrow = Text("  -> ", style="bold yellow")
        arrow.append(clean(line), style="default")
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
    columns = _widths(COLUMNS, lines, width, _DISPENSABLE, ("run", 24), ("note", 16))
    parts: list[RenderableType] = []
    if lines:
        parts.append(_line(COLUMNS, COLUMNS, columns, "dim", "dim"))
    parts += [
        _line(COLUMNS, line, columns, "", _STYLES.get(view.state, ""))
        for view, line in zip(ordered, lines, strict=False)
    ]
    foot = summary(views)
    if cut < len(ordered):
        foot += f" ({len(ordered) - cut} more are not shown here)"
    parts += [Text(), Text(foot)]
    if note:
        parts.append(Text(clean(note), style="yellow"))
    return Group(*parts)


_DISPENSABLE = ("tries", "useful", "saved", "img/s", "job", "done", "left", "note")
_GAP = 2


def _widths(
    names: Sequence[str],
    lines: Sequence[Sequence[str]],
    width: int,
    dispensable: Sequence[str],
    *flexible: tuple[str, int],
) -> dict[str, int]:
    """Column -> characters. Columns that say least go first where there is no room; then flexible ones are cut.

    Args:
        names: of all columns.
        lines: cells.
        width: of the terminal.
        dispensable: columns in the order in which they go.
        flexible: columns that may be cut, each with the least that is left of it; the last gives way first.
    """
    said = filled(names, lines)
    full = {n: max([len(n), *(len(line[i]) for line in lines)]) for i, n in enumerate(names) if n in said}
    least = {name: min(full[name], size) for name, size in flexible if name in full}
    for name in dispensable:
        if sum({**full, **least}.values()) + _GAP * (len(full) - 1) <= width:
            break
        full.pop(name, None)
        least.pop(name, None)
    spare = width - _GAP * (len(full) - 1) - sum(size for name, size in full.items() if name not in least)
    for name in list(least):
        others = sum(size for other, size in least.items() if other != name)
        full[name] = max(least[name], min(full[name], spare - others))
        spare -= full[name]
        del least[name]
    return full


def _line(
    names: Sequence[str], cells: Sequence[str], columns: Mapping[str, int], style: str, state_style: str = ""
) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, cell in zip(names, cells, strict=True):
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


def _attempts(view: RunView, now: float, width: int, count: int) -> RenderableType:
    lines = [attempt_row(entry, now) for entry in view.attempts[-count:]]
    hidden = {"job"} if len({entry.job for entry in view.attempts}) == 1 else set[str]()
    lines = [
        tuple("" if name in hidden else cell for name, cell in zip(ATTEMPT_COLUMNS, line, strict=True))
        for line in lines
    ]
    columns = _widths(
        ATTEMPT_COLUMNS, lines, width, ("job", "took", "began", "gained", "nodes"), ("then", 10), ("ended", 20)
    )
    parts = [_line(ATTEMPT_COLUMNS, ATTEMPT_COLUMNS, columns, "dim")]
    parts += [_line(ATTEMPT_COLUMNS, line, columns, "") for line in lines]
    earlier = len(view.attempts) - count
    if earlier > 0:
        parts.append(Text(f"and {earlier} earlier attempts", style="dim"))
    return Group(*parts)
