"""What came of a fine-tuning: a table for people, and the same as CSV."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vit_dist.core.run.history import read
from vit_dist.core.tables import csv_text, show, table
from vit_dist.core.urls import redact

if TYPE_CHECKING:
    from rich.console import Console

    from vit_dist.config.finetune import ChosenConfig
    from vit_dist.study.finetune import Finetuning

_HEADS = ("run", "optim.lr", "steps", "of the training set", "metric", "value", "measured on", "directory")


def rows(tuning: Finetuning, chosen: ChosenConfig | None) -> list[tuple[object, ...]]:
    """A row for each value: of the grid on the slice, of the last run on the validation set.

    Raises:
        DataError: a log cannot be read.
    """
    from vit_dist.study.finetune import FINAL, GRID, values_of

    found: list[tuple[object, ...]] = []
    for cell in tuning.cells if chosen is not None else ():
        assert chosen is not None
        lr = cell.recipe.optim.lr  # type: ignore[attr-defined]
        run_dir = tuning.grid_directory / cell.name
        status, value = read(run_dir).status, chosen.values.get(f"{lr:g}")
        measured = "diverged" if value is None else value
        slice_words = f"train, {chosen.slice}"
        steps = status.step if status else 0
        found.append((GRID, lr, steps, f"all but {chosen.held_out}", chosen.metric, measured, slice_words, run_dir))
    final, run_dir = tuning.final(chosen), tuning.directory / FINAL
    lr, status = final.recipe.optim.lr, read(run_dir).status  # type: ignore[attr-defined]
    val = redact(tuning.recipe.data.val) or "nothing"
    values: list[tuple[str, float | str]] = [*values_of(run_dir, final.recipe).items()] or [("", "")]
    head = (
        FINAL,
        lr,
        status.step if status else 0,
        "all of it" if tuning.recipe.data.subset is None else f"all {tuning.recipe.data.subset}",
    )
    return [*found, *((*head, tag, value, val, run_dir) for tag, value in values)]


def show_result(tuning: Finetuning, chosen: ChosenConfig | None, console: Console) -> None:
    """Print the table, and write the CSV.

    Raises:
        DataError: a log cannot be read, or the file cannot be written.
    """
    from vit_dist.core.files import write_bytes
    from vit_dist.study.finetune import RESULTS

    made = rows(tuning, chosen)
    shown = table(tuning.recipe.name, *_HEADS[:-1], align="lrrllrl")
    for row in made:
        best = chosen is not None and row[1] == chosen.best and row[0] != "final"
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row[:-1]]
        shown.add_row(*[f"{cells[0]} *" if best else cells[0], *cells[1:]])
    if chosen is not None:
        shown.caption = f"* chosen on {chosen.slice}, held out of the training set"
    show(console, shown)
    target = tuning.directory / RESULTS
    write_bytes(str(target), csv_text([_HEADS, *made]).encode())
    sys.stdout.flush()
    console.print(f"table   {target}\nrun     {made[-1][-1]}", markup=False)
