"""`vit-dist finetune` on this machine: what is left of the grid, the choice, the last run, the table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.finetune.result import show_result
from vit_dist.core.errors import RunError
from vit_dist.core.tables import make_console
from vit_dist.core.units import counted
from vit_dist.core.urls import redact

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit_dist.config.schema import Recipe
    from vit_dist.study.finetune import Finetuning
    from vit_dist.study.grid import Cell
    from vit_dist.study.local import Attempt


def advance_here(
    tuning: Finetuning, *, nproc: int = 1, jobs: int = 1, argv: Sequence[str] = (), attempt: Attempt | None = None
) -> int:
    """Train what is not done, choose, train the last run, print the table. Returns the exit code.

    Args:
        tuning: what is to be done.
        nproc: processes of a run.
        jobs: runs of the grid at once.
        argv: of the command, which goes on with it.
        attempt: trains one run after another, and returns the exit code of each; None: ranks are started.

    Raises:
        StudyStoppedError: somebody asked for the end.
        RunError: a run has failed.
    """
    from vit_dist.study.finetune import choose, edge_of_grid, is_diverged, left, words_of
    from vit_dist.study.local import StudyStoppedError, run_cells

    console = make_console()

    def say(line: str) -> None:
        console.print(line, markup=False)

    again = redact(shlex.join(["vit-dist", "finetune", *argv]))
    train = _ranks(nproc) if attempt is None else attempt
    check_before(tuning, nproc)
    tuning.prepare()
    cells = tuning.cells
    say(f"{tuning.recipe.name}: in {tuning.directory}")
    while todo := left(cells, tuning.grid_directory):
        say(f"grid: {counted(len(todo), 'run')} of {len(cells)} left, on all but {tuning.rates.held_out}")
        try:
            if jobs > 1:
                _train_side_by_side(todo, tuning.grid_directory, nproc=nproc, jobs=jobs, say=say, again=again)
            else:
                run_cells(todo, tuning.grid_directory, train, say, resume_command=again, keep_going=False)
        except StudyStoppedError:
            raise
        except RunError:
            # A rate that is too high is an answer, and no failure of the grid.
            gone = [cell for cell in todo if is_diverged(tuning.grid_directory / cell.name)]
            if not gone:
                raise
            say(f"{', '.join(cell.family for cell in gone)}: diverged; the others are tried")
    chosen = choose(tuning)
    if chosen is not None:
        say(f"chosen: {words_of(chosen)}")
        if edge := edge_of_grid(chosen):
            say(f"  {edge}")
    final = tuning.final(chosen)
    if left([final], tuning.directory):
        run_cells([final], tuning.directory, train, say, resume_command=again, keep_going=False)
    show_result(tuning, chosen, console)
    return 0


def check_before(tuning: Finetuning, ranks: int) -> None:
    """Refuse what cannot be, before anything of it is written; what was begun before has its weights, and is not asked.

    Args:
        tuning: what is to be done.
        ranks: of a run.

    Raises:
        VitDistError: the sets, the weights or the recipe do not fit.
    """
    from vit_dist.cli.train import refuse_before
    from vit_dist.study.finetune import FINAL, REQUEST, grid_recipe

    if (tuning.directory / REQUEST).exists():
        return
    refuse_before(tuning.recipe, tuning.directory / FINAL, ranks)
    if tuning.chooses:
        refuse_before(grid_recipe(tuning.recipe), tuning.grid_directory / FINAL, ranks)


def _ranks(nproc: int) -> Attempt:
    """Trains a run in ranks of its own."""
    from launcher.processes.ranks import run_local
    from vit_dist.cli.train import refuse_before

    def attempt(recipe: Recipe, run_dir: Path) -> int:
        refuse_before(recipe, run_dir, nproc)
        return run_local(recipe, run_dir, nproc=nproc)

    return attempt


def _train_side_by_side(
    cells: Sequence[Cell], directory: Path, *, nproc: int, jobs: int, say: Callable[[str], None], again: str
) -> None:
    """Train runs that are not done, several at once; see `run_cells`. The first that fails ends it."""
    from launcher.processes.side_by_side import SideBySide
    from vit_dist.study.local import run_cells

    several = SideBySide(nproc=nproc, jobs=jobs)
    last_line = several.last_error_line
    with several.signals():
        run_cells(
            cells,
            directory,
            several,
            say,
            resume_command=again,
            keep_going=False,
            jobs=jobs,
            last_error_line=last_line,
        )
