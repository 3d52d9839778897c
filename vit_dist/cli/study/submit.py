"""`vit-dist study submit`: what is left of a study, as arrays of Slurm jobs."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from vit_dist.cli.models.options import at_least_one
from vit_dist.cli.study.options import named_study, refused_by_name, study_parser
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import local_path
from vit_dist.core.places import local_option, local_or_name
from vit_dist.core.tables import make_console
from vit_dist.core.units import counted
from vit_dist.core.urls import redact

if TYPE_CHECKING:
    from rich.console import Console

    from launcher.submit.study import StudyJobs, Todo


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "submit",
        "Submit what is left of a study as arrays of Slurm jobs, an element a run; evaluations follow each run. Given "
        "again, it skips what is done or in the queue, and lets broken runs resume from their checkpoints.",
        "demo --cluster dgx-h100",
        "my.yaml --cluster site.yaml --nodes 4 --max-parallel 8",
        "my.yaml --cluster site.yaml seeds=[0] --dry-run     # the scripts; nothing is submitted",
    )
    parser.add_argument(
        "--cluster",
        type=local_or_name,
        required=True,
        metavar="NAME|PATH",
        help="a file, or a name in configs/clusters",
    )
    parser.add_argument("--set", action="append", default=[], metavar="k=v", help="changes a key of the cluster")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of each run (default 1)")
    parser.add_argument("--spares", type=int, default=0, metavar="N", help="spare nodes of each run (default 0)")
    parser.add_argument("--time", default="", metavar="SPAN", help="time limit of a job (default: the cluster's)")
    parser.add_argument("--max-parallel", type=int, default=0, metavar="N", help="runs at a time (default: no limit)")
    parser.add_argument(
        "--runs",
        type=local_option,
        metavar="DIR",
        help="run directories are DIR/<study>/<cell> (default: the cluster's run_root)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and the scripts")
    return parser


def main(argv: list[str]) -> int:
    """See `vit-dist study submit --help`."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    at_least_one(args, "nodes")
    for option, number in (("--spares", args.spares), ("--max-parallel", args.max_parallel)):
        if number < 0:
            raise ConfigError(f"{option}={number}: 0 or more")

    from launcher.slurm.cluster import load_cluster
    from launcher.submit.run import parse_time
    from launcher.submit.study import StudyJobs, dry_run, submit, todo
    from vit_dist.study.kept import keep_study

    cluster = load_cluster(args.cluster, args.set)
    # Jobs start in directories of their own.
    root = (args.runs or local_path(cluster.run_root or "runs")).expanduser().absolute()
    study = named_study(args.words, parser.prog, root)
    jobs = StudyJobs(
        cluster=cluster,
        directory=study.directory,
        cells=tuple(study.cells),
        nodes=args.nodes,
        spares=args.spares,
        time_limit=parse_time(args.time) if args.time else "",
        throttle=args.max_parallel,
    )
    _check_sets(jobs)
    console = make_console()
    console.print(
        f"study {study.config.name}: {study.shape} on cluster {cluster.name}, in {jobs.directory}", markup=False
    )
    left = todo(jobs)
    _show(console, jobs, left)
    if args.dry_run:
        for array in dry_run(jobs, left):
            for script in filter(None, (array.train, array.evaluate)):
                console.print(f"\n{script}", markup=False, end="")
        return 0
    keep_study(study.config, study.directory)
    entry = submit(jobs, left)
    for array in entry["arrays"]:
        what = (
            f"job {array['job']}: {counted(len(array['cells']), 'run')}"
            if array["job"]
            else f"{counted(len(array['cells']), 'done run')}"
        )
        behind = f", evaluations in job {array['evaluate']}" if array["evaluate"] else ""
        after = f", each behind its trunk in job {array['behind']}" if array["behind"] else ""
        console.print(f"  {what}{after}{behind}", markup=False)
    if left.train or left.evaluate:
        options = ["--runs", str(root)]
        follow = redact(shlex.join(["vit-dist", "study", "status", *args.words, *options]))
        console.print(f"follow: {follow}", markup=False)
    return 0


def _show(console: Console, jobs: StudyJobs, left: Todo) -> None:
    parts = [f"{counted(len(left.train), 'run')} to train"]
    if any(cell.evaluations for cell in jobs.cells):
        parts.append(f"{counted(len(left.evaluate), 'done run')} to evaluate")
    if left.behind:
        parts.insert(1, f"{counted(len(left.behind), 'branch')} behind them")
    parts += [f"{len(left.done)} done", f"{len(left.queued)} in the queue or running"]
    console.print("  " + ", ".join(parts), markup=False)
    for name, lack in left.later.items():
        console.print(f"  {name} is not submitted: {lack}; submit the study again once it has", markup=False)


def _check_sets(jobs: StudyJobs) -> None:
    """Say before anything is submitted what would fail in every job.

    Raises:
        ConfigError: a recipe that does not come out, or that names what is not there.
        DataError: a set that cannot be read.
    """
    from vit_dist.core.world import World
    from vit_dist.study.cost import cell_lines
    from vit_dist.study.local import cell_state
    from vit_dist.train.plan import open_training

    seen = set()
    for cell in jobs.cells:
        key = (cell.line, cell.subset)
        if key not in seen:
            seen.add(key)
            open_training(cell.recipe, World(size=jobs.nodes * jobs.cluster.tasks))
    left = [cell for cell in jobs.cells if cell_state(jobs.directory / cell.name).state != "done"]
    refused = refused_by_name(left, jobs.directory)
    if refused:
        raise ConfigError(
            "cells cannot begin as asked, so that nothing is submitted:\n" + "\n".join(cell_lines(refused))
        )
