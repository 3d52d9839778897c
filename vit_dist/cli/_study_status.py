"""`vit-dist study status`: how far each cell is."""

from __future__ import annotations

from pathlib import Path

from vit_dist.cli._study_common import add_runs, make_console, split_words, state_word, study_parser


def main(argv: list[str]) -> int:
    """See `vit-dist study status --help`."""
    parser = study_parser("status", "Show how far each cell of a study is: size by family and seed.", "demo")
    add_runs(parser)
    args = parser.parse_intermixed_args(argv)
    name, overrides = split_words(args.words, "status")

    from rich.table import Table

    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.local import cell_state

    study = load_study(name, overrides)
    directory = Path(args.runs) / study.name
    states = {
        (cell.family, cell.subset, cell.seed): state_word(cell, cell_state(directory / cell.name))
        for cell in plan(study)
    }
    done = sum(state == "done" for state in states.values())
    result = Table(title=f"study {study.name}: {done} of {len(states)} runs done", title_justify="left")
    result.add_column("examples", justify="right")
    columns = [(family, seed) for family in study.families for seed in study.seeds]
    for family, seed in columns:
        result.add_column(f"{family}\nseed {seed}", no_wrap=True)
    for subset in sorted(study.subsets, key=lambda n: (n is None, n or 0)):
        row = [states[family, subset, seed] for family, seed in columns]
        result.add_row("all" if subset is None else f"{subset:,}", *row)
    make_console().print(result)
    return 0
