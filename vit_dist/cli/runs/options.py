"""What the verbs that look after runs share: how a run is named, and where runs are."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.places import local_option, local_or_name
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from launcher.submit.run import SubmitRequest, Submitted

RUN_HELP = "its directory, its name or the beginning of it, or the number of one of its jobs"


def run_parser(verb: str, description: str, epilog: str, *, run: bool = True) -> argparse.ArgumentParser:
    """A parser with RUN and --runs."""
    parser = argparse.ArgumentParser(
        f"vit-dist {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run:
        parser.add_argument("run", type=local_or_name, metavar="RUN", help=RUN_HELP)
    add_runs(parser)
    return parser


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Where runs are looked for."""
    parser.add_argument(
        "--runs",
        type=local_option,
        metavar="DIR",
        action="append",
        default=[],
        help="look for runs here (may be repeated); default: runs, those of VIT_DIST_RUNS (a:b), and the run_root of "
        "cluster files",
    )


def job_and_start(done: Submitted, request: SubmitRequest) -> str:
    """Two lines about a job that was submitted: on what it runs, and when it is expected to start."""
    start = "unknown" if done.start is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(done.start))
    spare = f" and {request.spares} spare" if request.spares else ""
    return (
        f"job     {done.job} on {request.cluster.name}: {request.nodes} x "
        f"{counted(request.cluster.tasks, 'rank')}{spare}\n"
        f"start   {start} (Slurm's estimate)\n"
    )


def the_run(args: argparse.Namespace) -> Path:
    """The directory of RUN.

    Raises:
        ConfigError: there is no such run, or several.
    """
    from launcher.status.find import find_run, run_roots

    return find_run(args.run, run_roots(args.runs))
