"""`vit-dist submit`: a recipe as a Slurm job that looks after itself."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vit_dist.core.places import local_option, local_or_name

if TYPE_CHECKING:
    from launcher.submit.run import SubmitRequest, Submitted
    from vit_dist.config.blame import Sources

SUMMARY = "train a recipe as a Slurm job that survives time limits, preemption and dead nodes"

_EXAMPLES = """
Makes the run directory (resolved recipe, a copy of the code, the script), asks Slurm whether it would take the job, and
submits it. One process a GPU runs on --nodes nodes; the job saves before its time limit and queues itself again until
the run is done. --spares asks for nodes more: when one dies the run resumes at once in the same job.

A cluster is a YAML file: configs/clusters has some to copy. --dry-run prints the script alone, to read, edit and
`sbatch` as it is; it needs no Slurm, network or data.

examples:
  vit-dist submit vit-l16-jft300m --cluster dgx-h100 --nodes 8 data.train=s3://bucket/jft/train
  vit-dist submit vit-l16-imagenet21k --cluster my-site.yaml --nodes 2 --spares 1 --time 12h seed=1 name="second seed"
  vit-dist submit demo --cluster dev --site partition=lo
  vit-dist submit demo --cluster generic --nodes 2 --dry-run > job.sbatch && sbatch job.sbatch

afterwards: vit-dist status, logs, checkpoint, stop, cancel, requeue, resume
credentials: jobs inherit the environment of the shell that submits (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...), or read
~/.aws; they are never written into a script
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist submit", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", type=local_or_name, metavar="RECIPE", help="a YAML file, or the name of one in configs/recipes"
    )
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides, applied last; name= is one")
    parser.add_argument(
        "--cluster",
        type=local_or_name,
        metavar="NAME",
        required=True,
        help="a YAML file, or the name of one in configs/clusters",
    )
    parser.add_argument("--nodes", metavar="N", type=int, default=1, help="nodes that train (default 1)")
    parser.add_argument(
        "--spares", metavar="N", type=int, default=0, help="spare nodes, in place of lost ones (default 0)"
    )
    parser.add_argument(
        "--time", metavar="SPAN", default="", help="time limit of a job: 12h, 2-00:00:00 (default: the cluster's)"
    )
    parser.add_argument(
        "--run-dir",
        type=local_option,
        metavar="DIR",
        help="default: RUN-ROOT/NAME-HASH, RUN-ROOT from the cluster or runs",
    )
    parser.add_argument(
        "--site", metavar="k=v", action="append", default=[], help="override a key of the cluster, such as partition=hi"
    )
    parser.add_argument("--profile", metavar="STEPS", default="", help="as of `vit-dist train`, in every attempt")
    parser.add_argument("--dry-run", action="store_true", help="print the script and do nothing")
    args = parser.parse_intermixed_args(argv)

    from launcher.slurm.cluster import load_cluster
    from launcher.submit.run import SubmitRequest, dry_run, parse_time, submit
    from vit_dist.config.load import find_config, load_recipe, sources_of
    from vit_dist.train.profile import profile_options

    recipe = load_recipe(args.recipe, args.overrides)
    recipe_file = find_config(args.recipe, "recipes")
    request = SubmitRequest(
        recipe=recipe,
        cluster=load_cluster(args.cluster, args.site),
        nodes=args.nodes,
        spares=args.spares,
        time_limit=parse_time(args.time) if args.time else "",
        run_dir=args.run_dir,
        words=(str(recipe_file.absolute()), *args.overrides),
        cluster_file=find_config(args.cluster, "clusters").absolute(),
        options=profile_options(args.profile),
    )
    if args.dry_run:
        sys.stdout.write(dry_run(request))
        return 0
    _check_data(request, sources_of(args.recipe, args.overrides, recipe))
    _report(submit(request), request)
    return 0


def _check_data(request: SubmitRequest, sources: Sources | None) -> None:
    """What cannot be is an error now, not after hours in the queue."""
    from launcher.submit.run import check
    from vit_dist.core.world import World
    from vit_dist.train.plan import check_beginning, open_training

    check(request)
    data, val, _ = open_training(request.recipe, World(size=request.ranks), sources)
    check_beginning(request.recipe, request.directory, data, val)


def _report(done: Submitted, request: SubmitRequest) -> None:
    import os

    from vit_dist.cli.runs.options import job_and_start

    shown = os.path.relpath(done.run_dir)
    shown = str(done.run_dir) if shown.startswith("..") else shown
    for text in done.warnings:
        sys.stderr.write(f"warning: {text}\n")
    sys.stdout.write(
        f"run     {shown}\n"
        f"{job_and_start(done, request)}"
        f"follow  vit-dist status {shown} --watch\n"
        f"        vit-dist logs {shown} -f\n"
        f"end     vit-dist stop {shown}          saves first; `cancel` does not\n"
    )
