"""`vit-dist study status`: the matrix of a study, size by family by seed, and what is going on or has gone wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.study.options import add_runs, make_console, print_table, split_words, study_parser

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vit_dist.study.grid import Cell
    from vit_dist.study.local import CellState

_LOOK = {  # glyph, letter where the terminal has no such glyphs, style, meaning
    "done": ("●", "D", "green", "done"),
    "running": ("◐", "R", "yellow", "running"),
    "queued": ("◔", "Q", "cyan", "queued"),
    "stopped": ("◌", "S", "blue", "stopped, will go on"),
    "started": ("◍", "K", "magenta", "killed, will go on"),
    "failed": ("✗", "F", "bold red", "failed"),
    "other recipe": ("!", "!", "bold red", "holds another recipe"),
    "missing": ("·", "-", "dim", "not begun"),
}


def main(argv: list[str]) -> int:
    """See `vit-dist study status --help`."""
    parser = study_parser(
        "status",
        "Show how far a study is: its sizes by its families, a mark for each seed; what runs, and what has failed.",
        "demo",
        "demo --runs /scratch/runs",
        "demo --json -                               # a record a run, to standard output",
    )
    add_runs(parser)
    parser.add_argument("--json", metavar="FILE", help="write a record a run there; -: to standard output, and no more")
    args = parser.parse_intermixed_args(argv)
    name, overrides = split_words(args.words, "status")

    from launcher.submit.study import queued
    from vit_dist.core.files import write_bytes
    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.local import cell_state

    study = load_study(name, overrides)
    directory, cells = Path(args.runs) / study.name, plan(study)
    found = {cell.name: cell_state(directory / cell.name) for cell in cells}
    waiting = queued(directory, [name for name, state in found.items() if state.state not in ("done", "running")])
    words = {cell.name: _word(cell, found[cell.name], waiting) for cell in cells}
    if args.json:
        text = json.dumps([_record(cell, found[cell.name], words[cell.name]) for cell in cells], indent=1) + "\n"
        if args.json == "-":
            print(text, end="")  # noqa: T201
            return 0
        write_bytes(args.json, text.encode())
    console = make_console()
    done = sum(word == "done" for word in words.values())
    plain = not console.encoding.lower().startswith("utf")
    title = f"study {study.name}: {done} of {len(cells)} runs done, in {directory}"
    print_table(console, _matrix(title, cells, words, plain))
    counted = Counter(words.values())
    legend = [f"[{_LOOK[w][2]}]{_LOOK[w][plain]}[/] {_LOOK[w][3]} {counted[w]}" for w in _LOOK if counted[w]]
    console.print("   ".join(legend) + f"   [dim]seeds {', '.join(map(str, study.seeds))}[/]")
    _details(console, cells, found, words)
    return 0


def _word(cell: Cell, state: CellState, waiting: Mapping[str, str]) -> str:
    if state.recipe_hash is not None and state.recipe_hash != cell.hash:
        return "other recipe"
    return "queued" if cell.name in waiting else state.state


def _matrix(title: str, cells: Sequence[Cell], words: Mapping[str, str], plain: bool) -> Table:
    """Families down, sizes across, a mark a seed."""
    from rich.table import Table

    sizes = list(dict.fromkeys(cell.subset for cell in cells))
    marks: dict[tuple[str, int | None], list[str]] = {}
    for cell in cells:
        word = words[cell.name]
        mark = f"[{_LOOK[word][2]}]{_LOOK[word][plain]}[/]"
        marks.setdefault((cell.family, cell.subset), []).append(mark)
    table = Table(title=title, title_justify="left")
    table.add_column("family", no_wrap=True)
    for size in sizes:
        table.add_column("all" if size is None else f"{size:,}", justify="center", no_wrap=True)
    for family in dict.fromkeys(cell.family for cell in cells):
        table.add_row(family, *("".join(marks.get((family, size), [])) for size in sizes))
    return table


def _details(console: Console, cells: Sequence[Cell], found: Mapping[str, CellState], words: Mapping[str, str]) -> None:
    for cell in cells:
        state, word, total = found[cell.name], words[cell.name], _steps(cell)
        at = f"step {state.step or 0:,}" + (f" of {total:,} ({100 * (state.step or 0) / total:.0f}%)" if total else "")
        because = f": {state.reason}" if state.reason else ""
        if word in ("running", "stopped", "started"):
            console.print(f"{_LOOK[word][3]:<20} {cell.name}, {at}{because}", markup=False)
        elif word == "failed":
            console.print(f"failed               {cell.name}, {at}{because}", markup=False, style="red")
        elif word == "other recipe":
            text = f"{state.recipe_hash} there, {cell.hash} here"
            console.print(f"holds another recipe {cell.name}: {text}", markup=False, style="red")


def _steps(cell: Cell) -> int | None:
    horizon = cell.recipe.horizon
    if cell.subset is None and horizon.unit == "epochs":
        return None
    return horizon.steps(global_batch=cell.recipe.global_batch, epoch_examples=cell.subset or 0)


def _record(cell: Cell, state: CellState, word: str) -> dict[str, object]:
    return {
        "run": cell.name,
        "family": cell.family,
        "model": cell.recipe.model.name,
        "subset": cell.subset,
        "seed": cell.seed,
        "state": word,
        "step": state.step,
        "steps": _steps(cell),
        "reason": state.reason,
    }
