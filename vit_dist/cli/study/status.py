"""`vit-dist study status`: the matrix of a study, size by family by seed, and what is running or has failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vit_dist.cli.study.options import add_json, add_runs, named_study, state_word, study_parser, write_records
from vit_dist.core.tables import make_console, show, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vit_dist.cli.study.options import NamedStudy
    from vit_dist.study.grid import Cell
    from vit_dist.study.local import CellState

# Glyph, letter where the terminal has no such glyphs, style, meaning.
_LOOK = {
    "done": ("●", "D", "green", "done"),
    "running": ("◐", "R", "yellow", "running"),
    "queued": ("◔", "Q", "cyan", "queued"),
    "stopped": ("◌", "S", "blue", "stopped, will resume"),
    "started": ("◍", "K", "magenta", "killed, will resume"),
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
        "NAME                                        # by its name, where runs/NAME holds its runs",
        "demo --json -                               # a record a run, to standard output",
    )
    add_runs(parser)
    add_json(parser)
    args = parser.parse_intermixed_args(argv)
    study = named_study(args.words, parser.prog, args.runs)

    from launcher.submit.study import queued
    from vit_dist.study.local import cell_state

    directory, cells = study.directory, study.cells
    states = {cell.name: cell_state(directory / cell.name) for cell in cells}
    waiting = queued(directory, [name for name, state in states.items() if state.state not in ("done", "running")])
    words = {cell.name: _word(cell, states[cell.name], waiting) for cell in cells}
    if args.json and write_records(args.json, [_record(c, states[c.name], words[c.name]) for c in cells]):
        return 0
    console = make_console()
    done = sum(word == "done" for word in words.values())
    plain = not console.encoding.lower().startswith("utf")
    title = f"study {study.config.name}: {done} of {len(cells)} runs done, in {directory}"
    show(console, _matrix(title, cells, words, plain))
    counted = Counter(words.values())
    legend = [f"[{_LOOK[w][2]}]{_LOOK[w][plain]}[/] {_LOOK[w][3]} {counted[w]}" for w in _LOOK if counted[w]]
    console.print("   ".join(legend) + f"   [dim]seeds {', '.join(map(str, study.config.seeds))}[/]")
    _details(console, study, states, words)
    return 0


def _word(cell: Cell, state: CellState, waiting: Mapping[str, str]) -> str:
    word = state_word(cell, state)
    return "queued" if cell.name in waiting and word != "other recipe" else word


def _matrix(title: str, cells: Sequence[Cell], words: Mapping[str, str], plain: bool) -> Table:
    """Families down, sizes across, a mark a seed."""
    sizes = list(dict.fromkeys(cell.subset for cell in cells))
    marks: dict[tuple[str, int | None], list[str]] = {}
    for cell in cells:
        word = words[cell.name]
        mark = f"[{_LOOK[word][2]}]{_LOOK[word][plain]}[/]"
        marks.setdefault((cell.line, cell.subset), []).append(mark)
    result = table(title, "family", *("all" if size is None else f"{size:,}" for size in sizes), align="lc")
    for line in dict.fromkeys(cell.line for cell in cells):
        result.add_row(line, *("".join(marks.get((line, size), [])) for size in sizes))
    return result


def _details(console: Console, study: NamedStudy, states: Mapping[str, CellState], words: Mapping[str, str]) -> None:
    from vit_dist.core.run import names
    from vit_dist.study.local import first_line

    cells, directory = study.cells, study.directory
    for cell in cells:
        state, word, total = states[cell.name], words[cell.name], _steps(cell)
        at = f"step {state.step or 0:,}" + (f" of {total:,} ({100 * (state.step or 0) / total:.0f}%)" if total else "")
        because = f": {first_line(state.reason)}" if state.reason else ""
        if word in ("running", "stopped", "started"):
            console.print(f"{_LOOK[word][3]:<20} {cell.name}, {at}{because}", markup=False)
        elif word == "failed":
            where = directory / cell.name / names.LOGS
            logs = f" (logs: {where})" if "(log: " not in because and where.is_dir() else ""
            console.print(f"failed               {cell.name}, {at}{because}{logs}", markup=False, style="red")
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
        **cell.branched,
        "state": word,
        "step": state.step,
        "steps": _steps(cell),
        "reason": state.reason,
    }
