"""What the verbs that look after runs share: how a run is named, and where runs are."""

from __future__ import annotations

import argparse
from pathlib import Path

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
        parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_runs(parser)
    return parser


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Where runs are looked for."""
    parser.add_argument(
        "--runs",
        metavar="DIR",
        action="append",
        default=[],
        help="look for runs here (may be repeated); default: runs, those of VIT_DIST_RUNS (a:b), and the run_root of "
        "cluster files",
    )


def the_run(args: argparse.Namespace) -> Path:
    """The directory of RUN.

    Raises:
        ConfigError: there is no such run, or several.
    """
    from launcher.status.find import find_run, run_roots

    return find_run(args.run, run_roots(args.runs))
