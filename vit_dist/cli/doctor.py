"""`vit-dist doctor`: check everything a run depends on, and say what to do about what is not well."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from vit_dist.core.files import local_path
from vit_dist.core.places import local_option, local_or_name

SUMMARY = "check this machine, Slurm, files and data, and say what to do about what is not well"

_EXAMPLES = """
Looks at packages and versions, limits and shared memory, GPUs with driver and NCCL, Slurm and those of its settings
that decide how a run survives, the directory of runs (writable, atomic, lockable, with space, seen by all nodes of a
job), and with a RECIPE at its data: credentials, manifests, and the measured rate at which shards are read against what
training takes. That is the recipe's fastest so far, or --images-per-s. Nothing of all this needs to be there.

examples:
  vit-dist doctor                                       this machine
  vit-dist doctor vit-l16-imagenet21k --cluster dgx-h100
  vit-dist doctor demo data.train=s3://bucket/photos/train --images-per-s 4000
  vit-dist doctor --json | jq '.findings[] | select(.verdict != "ok")'
  vit-dist doctor --bad-nodes                           nodes that new jobs stay away from
  vit-dist doctor --forget n17                          take one off that list

exit code: 0, or 1 where something fails. `vit-dist preflight` tests nodes at work.
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist doctor",
        description=SUMMARY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "recipe", type=local_or_name, metavar="RECIPE", nargs="?", help="look at this recipe's data too"
    )
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides of the recipe")
    parser.add_argument(
        "--cluster", type=local_or_name, metavar="NAME", help="a YAML file, or the name of one in configs/clusters"
    )
    parser.add_argument(
        "--run-root", type=local_option, metavar="DIR", help="where runs lie (default: the cluster's run_root, or runs)"
    )
    parser.add_argument(
        "--run-dir", type=local_option, metavar="DIR", help="of the recipe (default RUN-ROOT/NAME-HASH)"
    )
    parser.add_argument("--images-per-s", metavar="N", type=float, help="what training takes, on this machine")
    parser.add_argument("--json", action="store_true", help="findings as JSON on stdout")
    parser.add_argument("--bad-nodes", action="store_true", help="only list the nodes that new jobs stay away from")
    parser.add_argument("--forget", metavar="NODE", help="only take a node off that list")
    args = parser.parse_intermixed_args(argv)

    from launcher.doctor.examine import as_json, examine, lines
    from launcher.doctor.finding import Subject
    from launcher.slurm.cluster import load_cluster
    from vit_dist.cli.train import default_run_dir
    from vit_dist.config.load import load_recipe
    from vit_dist.core.errors import ConfigError

    cluster = load_cluster(args.cluster) if args.cluster else None
    root = args.run_root or local_path((cluster.run_root if cluster else "") or "runs")
    if args.bad_nodes or args.forget:
        return _bad_nodes(root, args.forget, as_json=args.json)
    if args.images_per_s is not None and args.images_per_s <= 0:
        raise ConfigError(f"--images-per-s={args.images_per_s:g}: a rate above 0 is needed")
    recipe = load_recipe(args.recipe, args.overrides) if args.recipe else None
    run_dir = args.run_dir
    if recipe is not None and run_dir is None:
        run_dir = root / default_run_dir(recipe).name
    findings = examine(Subject(recipe, cluster, root, run_dir, args.images_per_s))
    if args.json:
        print(json.dumps(as_json(findings), indent=1))  # noqa: T201 - the result
    else:
        terminal = sys.stdout.isatty()
        width = min(120, shutil.get_terminal_size().columns) if terminal else 0
        print("\n".join(lines(findings, colour=terminal, width=width)))  # noqa: T201 - the result
    return 1 if any(f.verdict == "fail" for f in findings) else 0


def _bad_nodes(root: Path, forget: str | None, *, as_json: bool) -> int:
    from dataclasses import asdict

    from launcher import bad_nodes
    from vit_dist.core.errors import ConfigError, did_you_mean
    from vit_dist.core.run.names import BAD_NODES
    from vit_dist.core.tables import columns, to_lines
    from vit_dist.core.units import format_seconds

    listed = bad_nodes.active(root)
    if forget is not None:
        if forget not in listed:
            raise ConfigError(f"--forget {forget}: not on the list {root / BAD_NODES}{did_you_mean(forget, listed)}")
        bad_nodes.remove(root, forget)
        del listed[forget]
    if as_json:
        print(json.dumps([asdict(entry) for entry in listed.values()], indent=1))  # noqa: T201 - the result
    elif not listed:
        print(f"no bad nodes ({root / BAD_NODES})")  # noqa: T201 - the result
    else:
        now = time.time()
        rows = [(node, f"for another {format_seconds(e.until - now)}", e.reason) for node, e in listed.items()]
        print("\n".join(to_lines(columns(rows))))  # noqa: T201 - the result
    return 0
