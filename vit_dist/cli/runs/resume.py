"""`vit-dist resume`: resume a run that has ended, perhaps on another number of nodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.places import local_or_name
from vit_dist.core.run import history

if TYPE_CHECKING:
    import argparse

    from launcher.submit.run import SubmitRequest, Submitted

_EXAMPLES = """
For a run that was stopped or cancelled, has failed or was given up. A new job resumes in the same directory from the
newest committed checkpoint, with the cluster and the number of nodes of the last job unless options say otherwise. Any
number of nodes whose processes divide the batch will do: the order of examples stays the same.

A run that trained on this machine (`vit-dist run`) resumes here, with as many processes as before unless --nproc is
given; --cluster submits it as a job.

examples:
  vit-dist resume vit-l16
  vit-dist resume vit-l16 --nodes 4
  vit-dist resume vit-l16 --time 2h --site partition=hi log.every="100 steps"
  vit-dist resume runs/demo-934dabdd --nproc 4
  vit-dist resume runs/demo-934dabdd --cluster dgx-h100 --nodes 2
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import run_parser, the_run

    parser = run_parser("resume", "resume a run that has ended", _EXAMPLES)
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="keys of the recipe that are not of its identity")
    parser.add_argument("--nodes", metavar="N", type=int, help="nodes that train (default: as before)")
    parser.add_argument(
        "--spares", metavar="N", type=int, help="spare nodes, in place of lost ones (default: as before)"
    )
    parser.add_argument("--time", metavar="SPAN", default="", help="time limit of the job (default: as before)")
    parser.add_argument(
        "--cluster", type=local_or_name, metavar="NAME", default="", help="another site (default: as before)"
    )
    parser.add_argument("--site", metavar="k=v", action="append", default=[], help="override a key of the cluster")
    parser.add_argument("--nproc", metavar="N", type=int, help="ranks to start on this machine (default: as before)")
    args = parser.parse_intermixed_args(argv)

    from vit_dist.core.errors import ConfigError

    run = the_run(args)
    local = not args.cluster and not history.read(run, forgiving=True).submission
    of_jobs = {"--nodes": args.nodes, "--spares": args.spares, "--time": args.time, "--site": args.site}
    given = [name for name, value in of_jobs.items() if value not in (None, "", [])]
    if local and given:
        raise ConfigError(
            f"{run}: was never a Slurm job, so {given[0]} means nothing; --cluster NAME submits it as one"
        )
    if not local and args.nproc is not None:
        raise ConfigError(f"{run}: resumes as a Slurm job; --nodes says on how many nodes, --nproc is for this machine")
    return _here(run, args) if local else _as_job(run, args)


def _here(run: Path, args: argparse.Namespace) -> int:
    from launcher.status.actions import device_count
    from launcher.submit.resume import check_ended, recipe_of
    from vit_dist.cli.run import main as train

    check_ended(run)
    # A request was for the attempt before.
    history.forget(run)
    nproc = args.nproc if args.nproc is not None else device_count(run)
    return train([str(recipe_of(run)), *args.overrides, "--run-dir", str(run), "--nproc", str(nproc)])


def _as_job(run: Path, args: argparse.Namespace) -> int:
    from launcher.submit.resume import Changes, request_to_resume
    from launcher.submit.run import check, submit
    from vit_dist.core.world import World
    from vit_dist.train.plan import check_beginning, open_training

    changes = Changes(args.nodes, args.spares, args.time, args.cluster, args.site, args.overrides)
    request = request_to_resume(run, changes)
    check(request)
    # What cannot be is an error now, not after hours in the queue.
    data, val, _ = open_training(request.recipe, World(size=request.ranks))
    check_beginning(request.recipe, request.directory, data, val)
    _report(submit(request), request)
    return 0


def _report(done: Submitted, request: SubmitRequest) -> None:
    from vit_dist.cli.runs.options import job_and_start
    from vit_dist.core.run.checkpoints import newest_checkpoint

    for text in done.warnings:
        sys.stderr.write(f"warning: {text}\n")
    saved, _ = newest_checkpoint(done.run_dir)
    sys.stdout.write(
        f"run     {done.run_dir}, {f'from step {saved:,}' if saved is not None else 'from the beginning'}\n"
        f"{job_and_start(done, request)}"
        f"follow  vit-dist status {done.job} --watch\n"
    )
