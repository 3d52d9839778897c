"""`vit-dist preflight`: test the nodes of an allocation, or this machine, before training does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from vit_dist.core.places import any_option, local_option, local_or_name

if TYPE_CHECKING:
    from launcher.preflight.run import PreflightOptions, PreflightReport
    from launcher.slurm.cluster import Cluster

SUMMARY = "test every node of an allocation: arithmetic, links, clock, shared memory, reading of shards"

_EXAMPLES = """
On every node: a matrix product whose result is checked, /dev/shm, the clock, and reads of a dataset's shards where one
is named; then whether the nodes reach each other, a checked all-reduce over all of them (NCCL on GPUs, gloo on CPUs),
and exchanges in changing pairs. A node below --slow of the median is slow; one that fails, hangs, dies or never starts
is sick, and is named without waiting for it. Both go to the list of bad nodes (RUN-ROOT/.bad-nodes.jsonl) for --keep;
`vit-dist doctor --bad-nodes` shows it, and jobs submitted later leave those nodes out.

Inside an allocation (sbatch, salloc) its nodes are tested. Elsewhere --nodes N makes an allocation for the test.

examples:
  vit-dist preflight --local                            this machine alone
  vit-dist preflight --local --nodes 3                  three processes on it, and the links between them
  vit-dist preflight --nodes 4 --cluster dgx-h100       four nodes, in an allocation of their own
  vit-dist preflight --cluster dgx-h100 --recipe vit-l16-imagenet21k      in a job: read its shards too

exit code: 0 where all nodes are fit, 1 where some are not, 2 for a wrong command line
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vit-dist preflight",
        description=SUMMARY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--nodes", metavar="N", type=int, help="how many (default: all of the allocation; 1 with --local)"
    )
    parser.add_argument(
        "--cluster", type=local_or_name, metavar="NAME", help="a YAML file, or the name of one in configs/clusters"
    )
    parser.add_argument("--local", action="store_true", help="processes on this machine, without Slurm")
    parser.add_argument(
        "--recipe", type=local_or_name, metavar="RECIPE", help="read shards of this recipe's training set"
    )
    parser.add_argument("--data", type=any_option, metavar="MANIFEST", help="read shards of this set")
    parser.add_argument(
        "--slow",
        metavar="FRACTION",
        type=float,
        default=0.7,
        help="of the median; below it a node is slow (default 0.7)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=180,
        help="for a node's own tests, and for the links (default 180)",
    )
    parser.add_argument(
        "--silence", metavar="SECONDS", type=float, default=15, help="without a heartbeat: dead (default 15)"
    )
    parser.add_argument(
        "--keep", metavar="SPAN", default="24h", help="how long bad nodes stay on the list (default 24h)"
    )
    parser.add_argument(
        "--run-root",
        type=local_option,
        metavar="DIR",
        help="where the list lies (default: the cluster's run_root, or runs)",
    )
    parser.add_argument("--no-list", action="store_true", help="put nothing on the list")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON on stdout")
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = _parser().parse_args(argv)

    from launcher.preflight.report import lines
    from launcher.preflight.run import PreflightOptions, put_on_list
    from launcher.slurm.cluster import load_cluster
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.files import local_path

    if args.nodes is not None and args.nodes < 1:
        raise ConfigError(f"--nodes={args.nodes}: at least 1 is needed")
    if not 0 < args.slow < 1:
        raise ConfigError(f"--slow={args.slow}: a fraction of the median between 0 and 1 is needed, such as 0.7")
    if args.timeout <= 0 or args.silence <= 0:
        raise ConfigError(f"--timeout={args.timeout:g}, --silence={args.silence:g}: seconds above 0 are needed")
    keep_s = _span(args.keep)
    cluster = load_cluster(args.cluster) if args.cluster else None
    reads = _reads(args.recipe, args.data)
    options = PreflightOptions(timeout_s=args.timeout, silence_s=args.silence, slow=args.slow, reads=reads)
    if not args.local and "SLURM_JOB_ID" not in os.environ:
        return _allocate(args.nodes, cluster, argv)
    report = _examine(args.local, args.nodes, cluster, options)
    if not args.local and not args.no_list:
        root = args.run_root or local_path((cluster.run_root if cluster else "") or "runs")
        put_on_list(report, root, keep_s)
    if args.json:
        print(json.dumps(report.as_json(), indent=1))  # noqa: T201 - the result
    else:
        print("\n".join(lines(report, colour=sys.stdout.isatty())))  # noqa: T201 - the result
    return 0 if report.ok else 1


def _examine(local: bool, nodes: int | None, cluster: Cluster | None, options: PreflightOptions) -> PreflightReport:
    from launcher.preflight import run as preflight
    from launcher.slurm import commands as slurm
    from vit_dist.core.errors import ConfigError

    if local:
        return preflight.examine_here(nodes or 1, options)
    names = slurm.hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))
    if nodes is not None and nodes > len(names):
        raise ConfigError(f"--nodes={nodes}: this allocation has {len(names)} ({', '.join(names[:8])})")
    names = names[:nodes]
    if cluster is None:
        return preflight.examine_nodes(names, 1, options)
    return preflight.examine_cluster(cluster, names, options)


def _allocate(nodes: int | None, cluster: Cluster | None, argv: list[str]) -> int:
    """Start this very command anew in an allocation of its own."""
    from launcher.preflight import run as preflight
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.process import cli_command

    if nodes is None:
        raise ConfigError(
            "this process runs in no allocation: give --nodes N for one of N nodes, or --local to test this machine"
        )
    return preflight.in_allocation(nodes, cluster, cli_command("preflight", *argv))


def _reads(recipe: str | None, data: str | None) -> tuple[tuple[str, int], ...]:
    """Shards to read from."""
    from vit_dist.core.errors import ConfigError
    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.readrate import places

    if recipe and data:
        raise ConfigError("--recipe and --data: give one of them")
    if recipe:
        from vit_dist.config.load import load_recipe
        from vit_dist.data.sets import open_training_set

        opened = open_training_set(load_recipe(recipe))
        return tuple(place for part in opened.parts for place in places(part.manifest))
    return tuple(places(read_manifest(data))) if data else ()


def _span(text: str) -> float:
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.units import parse_span

    try:
        return float(parse_span(text).value)
    except ValueError as error:
        raise ConfigError(f"--keep: {error}") from None
