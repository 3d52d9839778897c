"""Tables that verbs print. rich is imported when the first one is made, so that `--help` stays quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_JUSTIFY: dict[str, Literal["left", "center", "right"]] = {"l": "left", "c": "center", "r": "right"}


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
