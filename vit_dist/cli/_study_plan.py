"""`vit-dist study plan`: the cells of a study, without training."""

from __future__ import annotations

from pathlib import Path

from vit_dist.cli._study_common import add_runs, grid_line, make_console, split_words, state_word, study_parser


def main(argv: list[str]) -> int:
    """See `vit-dist study plan --help`."""
    parser = study_parser("plan", "Show the cells of a study, without training.", "demo", "demo seeds=[0,1,2]")
    add_runs(parser)
    args = parser.parse_intermixed_args(argv)
    name, overrides = split_words(args.words, "plan")

    from rich.table import Table

    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.local import cell_state

    study = load_study(name, overrides)
    cells, directory = plan(study), Path(args.runs) / study.name
    result = Table(title=f"study {study.name}: {grid_line(study)} = {len(cells)} runs", title_justify="left")
    for heading in ("run", "model", "horizon", "recipe", "state"):
        result.add_column(heading, no_wrap=True)
    for cell in cells:
        state = state_word(cell, cell_state(directory / cell.name))
        result.add_row(cell.name, cell.recipe.model.name, str(cell.recipe.horizon), cell.hash, state)
    make_console().print(result)
    return 0
