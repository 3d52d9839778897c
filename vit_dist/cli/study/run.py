"""`vit-dist study run`: train what is not done, on this machine."""

from __future__ import annotations

import shlex
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.models.options import at_least_one
from vit_dist.cli.study.options import add_runs, named_study, study_parser
from vit_dist.core.tables import make_console
from vit_dist.core.world import starts_ranks

if TYPE_CHECKING:
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
    )
    add_runs(parser)
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes a run (1)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at once, each printing to its train.log (1)"
    )
    parser.add_argument("--keep-going", action="store_true", help="train the other cells when one fails")
    args = parser.parse_intermixed_args(argv)
    at_least_one(args, "nproc", "jobs")
    starts_ranks("study run", args.nproc)
    study, console = named_study(args.words, parser.prog, args.runs), make_console()

    from launcher.processes.ranks import run_local, run_ranks
    from launcher.processes.side_by_side import SideBySide
    from vit_dist.study.local import evaluation_words, run_cells

    console.print(f"study {study.config.name}: {study.shape}, in {study.directory}", markup=False)
    run = partial(
        run_cells,
        study.cells,
        study.directory,
        print_line=lambda line: console.print(line, markup=False),
        resume_command=shlex.join(["vit-dist", "study", "run", *argv]),
        keep_going=args.keep_going,
        jobs=args.jobs,
    )
    if args.jobs == 1:

        def evaluate(cell: Cell, run_dir: Path) -> int:
            with tempfile.TemporaryDirectory(prefix="vit-dist-") as scratch:
                return run_ranks(evaluation_words(cell, run_dir), nproc=args.nproc, scratch=Path(scratch))

        run(attempt=lambda recipe, run_dir: run_local(recipe, run_dir, nproc=args.nproc), evaluate=evaluate)
    else:
        side_by_side = SideBySide(nproc=args.nproc, jobs=args.jobs)
        with side_by_side.signals():
            run(
                attempt=side_by_side,
                evaluate=lambda cell, run_dir: side_by_side.run(evaluation_words(cell, run_dir), run_dir),
                last_error_line=side_by_side.last_error_line,
            )
    options = [] if args.runs == Path("runs") else ["--runs", str(args.runs)]
    report = shlex.join(["vit-dist", "study", "report", *args.words, *options])
    console.print(f"study {study.config.name}: all {len(study.cells)} cells are done; next: {report}", markup=False)
    return 0
