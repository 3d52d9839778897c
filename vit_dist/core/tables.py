"""Tables for people, on a terminal and in a pipe alike.

rich is imported when one is printed: that takes a tenth of a second, which `--help` does not have.

Numbers are never cut: in a narrow window the columns that say least are left out, and then texts end in an ellipsis.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from vit_dist.core.terminal import clean, steering

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_JUSTIFY: dict[str, Literal["left", "center", "right"]] = {"l": "left", "c": "center", "r": "right"}
_GAP = 2
_SHORTEST = 8


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV: numbers with every digit, None as an empty cell, tuples joined by blanks, the rest as text.

    Text that a spreadsheet would take for a formula gets a ' before it, which it does not show; control characters are
    escapes. Numbers are numbers, also those below zero.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _csv_cell(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else value
    text = clean(" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return f"'{text}" if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text


def columns(
    rows: Sequence[Sequence[str | Text]],
    heads: Sequence[str] = (),
    *,
    right: Collection[str] = (),
    width: int | None = None,
    dispensable: Sequence[str] = (),
    flexible: Mapping[str, int] | None = None,
) -> Table:
    """A table without lines, a row a line; columns in which no row has anything are left out.

    Args:
        rows: cells; a `Text` brings a style of its own.
        heads: a name over each column; none: no line of heads.
        right: columns of numbers, which are aligned on the right.
        width: of the window, in characters; None: as wide as it gets.
        dispensable: columns in the order in which they go where there is no room.
        flexible: columns that are then cut, each with what should be left of it; the last gives way first.
    """
    from rich.table import Table
    from rich.text import Text

    # A run's name may hold what rich would take for markup.
    lines = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    names = list(heads) if heads else [str(i) for i in range(max(map(len, lines), default=0))]
    widths = _natural(names, lines, heads)
    if width is not None:
        widths = _fit(widths, width, dispensable, flexible or {})
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=bool(heads), header_style="dim")
    for name, size in widths.items():
        side = "right" if name in right else "left"
        table.add_column(name, justify=side, width=size, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    for line in lines:
        table.add_row(*(cell for name, cell in zip(names, line, strict=True) if name in widths))
    return table


def _natural(names: Sequence[str], lines: Sequence[Sequence[Text]], heads: Sequence[str]) -> dict[str, int]:
    """Column -> characters, of those in which a row has something."""
    from rich.cells import cell_len

    sizes = {name: max((line[i].cell_len for line in lines), default=0) for i, name in enumerate(names)}
    return {name: max(size, cell_len(name) if heads else 0) for name, size in sizes.items() if size}


def _fit(
    natural: Mapping[str, int], width: int, dispensable: Sequence[str], flexible: Mapping[str, int]
) -> dict[str, int]:
    """Column -> characters in a window of this width."""
    sizes = dict(natural)
    least = {name: min(sizes[name], size) for name, size in flexible.items() if name in sizes}
    for name in dispensable:
        if _total({**sizes, **least}) <= width:
            break
        sizes.pop(name, None)
        least.pop(name, None)
    excess = _total(sizes) - width
    # First down to what should be left of each, the last one first; where that is not enough, further.
    for floors in (least, dict.fromkeys(least, _SHORTEST)):
        for name in reversed(least):
            given = min(max(0, excess), max(0, sizes[name] - floors[name]))
            sizes[name] -= given
            excess -= given
    return sizes


def _total(sizes: Mapping[str, int]) -> int:
    return sum(sizes.values()) + _GAP * (len(sizes) - 1)


def to_lines(table: Table, *, colour: bool = False) -> list[str]:
    """A table as lines of text, none cut; with a terminal's colours if wanted. None where it has no rows."""
    from rich.console import Console

    if not table.row_count:
        return []
    text = io.StringIO()
    console = Console(
        file=text,
        width=10_000,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    console.print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def make_console(*, wrap: bool = False) -> Console:
    """Where a verb prints, with no guessing at what to colour.

    Args:
        wrap: break long lines at the window's edge; else they stay whole, for copying and for pipes.
    """
    from rich.console import Console

    console = Console(file=steering(sys.stdout), highlight=False, soft_wrap=not wrap)
    console.push_render_hook(_Cleaning())  # type: ignore[arg-type]
    return console


class Cleaned:
    """What rich shows, without control characters but those of rich itself."""

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The segments of what is shown."""
        from rich.segment import Segment

        for segment in console.render(self._shown, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)


class _Cleaning:
    """rich's hook for everything that is printed."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        from rich.control import Control

        return [shown if isinstance(shown, Control) else Cleaned(shown) for shown in renderables]


def table(title: str, *columns: str, align: str = "lr", caption: str = "") -> Table:
    """An empty table.

    Args:
        title: above it; text in square brackets is rich's markup, in headings, cells and caption as well.
        columns: headings.
        align: l, c or r for each column; the last letter counts for all that follow.
        caption: below it.
    """
    from rich.table import Table

    result = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for i, column in enumerate(columns):
        result.add_column(column, no_wrap=True, justify=_JUSTIFY[align[min(i, len(align) - 1)]])
    return result


def show(console: Console, table: Table) -> None:
    """Print a table without cutting a cell: where it is too wide its lines go, and then it is wider than the window."""
    from rich import box

    def natural_width() -> int:
        return table.__rich_measure__(console, console.options.update(width=10_000)).maximum

    before = console.width
    if natural_width() > before:
        table.box = box.SIMPLE_HEAD
        table.show_edge, table.pad_edge, table.padding = False, False, (0, 1, 0, 0)
    # rich cuts cells to the console's width, so that is widened for the table and put back after it.
    console.width = max(before, natural_width())
    try:
        console.print(table)
    finally:
        console.width = before
