"""`vit-dist study run`: train what is not done, on this machine."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.models.options import at_least_one
from vit_dist.cli.study.options import NamedStudy, add_runs, named_study, refused_by_name, study_parser
from vit_dist.core.errors import ConfigError
from vit_dist.core.tables import make_console
from vit_dist.core.units import counted
from vit_dist.core.urls import redact
from vit_dist.core.world import starts_ranks

if TYPE_CHECKING:
    from rich.console import Console

    from vit_dist.config.schema import Recipe
    from vit_dist.study.grid import Cell


def main(argv: list[str]) -> int:
    """See `vit-dist study run --help`."""
    parser = study_parser(
        "run",
        "Train every cell of a study that is not done, one after another, on this machine.",
        "demo",
        "demo --nproc 2 --runs /scratch/runs",
        "demo seeds=[0] subsets=[500,2000]",
        "demo --jobs 2                              # two runs at once, side by side",
        "demo --stop-on-failure                     # else the other cells are trained, and the exit code says 1",
    )
    add_runs(parser)
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="ranks of a run (default 1)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at once, each printing to its train.log (default 1)"
    )
    parser.add_argument("--stop-on-failure", action="store_true", help="train no other cell once one has failed")
    parser.add_argument(
        "--anyway", action="store_true", help="begin although cells cannot be trained, by what the plan says"
    )
    args = parser.parse_intermixed_args(argv)
    at_least_one(args, "nproc", "jobs")
    starts_ranks("study run", args.nproc)
    study, console = named_study(args.words, parser.prog, args.runs), make_console()

    from launcher.processes.ranks import run_local, run_ranks
    from launcher.processes.side_by_side import SideBySide
    from vit_dist.cli.train import refuse_before
    from vit_dist.core.scratch import scratch
    from vit_dist.study.kept import keep_study
    from vit_dist.study.local import evaluation_words, run_cells

    console.print(f"study {study.config.name}: {study.shape}, in {study.directory}", markup=False)
    _refuse_what_cannot_be_trained(study, args.nproc, args.jobs, console, anyway=args.anyway)
    keep_study(study.config, study.directory)
    run = partial(
        run_cells,
        study.cells,
        study.directory,
        print_line=lambda line: console.print(line, markup=False),
        resume_command=redact(shlex.join(["vit-dist", "study", "run", *argv])),
        keep_going=not args.stop_on_failure,
        jobs=args.jobs,
    )
    if args.jobs == 1:

        def evaluate(cell: Cell, run_dir: Path) -> int:
            with scratch(run_dir, "evaluate") as folder:
                return run_ranks(evaluation_words(cell, run_dir), nproc=args.nproc, folder=folder)

        def attempt(recipe: Recipe, run_dir: Path) -> int:
            # Whoever begins anyway wants the ranks' own word.
            if not args.anyway:
                refuse_before(recipe, run_dir, args.nproc)
            return run_local(recipe, run_dir, nproc=args.nproc)

        run(attempt=attempt, evaluate=evaluate)
    else:
        side_by_side = SideBySide(nproc=args.nproc, jobs=args.jobs)
        with side_by_side.signals():
            run(
                attempt=side_by_side,
                evaluate=lambda cell, run_dir: side_by_side.run(evaluation_words(cell, run_dir), run_dir),
                last_error_line=side_by_side.last_error_line,
            )
    options = [] if args.runs == Path("runs") else ["--runs", str(args.runs)]
    report = redact(shlex.join(["vit-dist", "study", "report", *args.words, *options]))
    console.print(
        f"study {study.config.name}: all {counted(len(study.cells), 'cell is', 'cells are')} done; next: {report}",
        markup=False,
    )
    return 0


def _refuse_what_cannot_be_trained(study: NamedStudy, nproc: int, jobs: int, console: Console, *, anyway: bool) -> None:
    """Say which of the cells that are to be trained cannot be: sets, stores and weights that are not there, what will
    not fit.

    Raises:
        ConfigError: there are such, and nobody said to begin anyway.
    """
    from launcher.processes.device import device_here
    from vit_dist.study.cost import cell_lines, estimate_costs, problem_lines
    from vit_dist.study.local import cell_state
    from vit_dist.study.sets import look_at_sets

    left = [cell for cell in study.cells if cell_state(study.directory / cell.name).state != "done"]
    estimates = estimate_costs(left, look_at_sets(left), devices=nproc, device=device_here(nproc * jobs))
    refused = refused_by_name(left, study.directory)
    lines = [*problem_lines(estimates), *cell_lines(refused)]
    if not lines:
        return
    if not anyway:
        told = "\n".join(lines)
        unfit = len({e.cell.name for e in estimates if e.missing or e.problems}.union(*refused.values()))
        count = f"{unfit} of the {counted(len(left), 'cell that is', 'cells that are')} left cannot be trained:"
        raise ConfigError(f"{count}\n{told}\nmend the study, or begin with --anyway: then the other cells are trained")
    for line in lines:
        console.print(line, markup=False)
