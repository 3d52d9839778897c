"""`vit-dist list`: names of runs, of shipped recipes, clusters, studies and datasets, of optimizers and plug-ins."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence

from vit_dist.cli.verbs import verb_parser

KINDS = ("runs", "recipes", "clusters", "studies", "data", "optimizers", "plugins")

_EXAMPLES = """
One name a line, for eyes and for scripts. Slurm is not asked: states are what the files say (`vit-dist status` asks).

examples:
  vit-dist list                            state, path and job of every run, newest last
  vit-dist list --state failed --names     paths alone
  vit-dist list recipes                    names; `vit-dist recipes` has costs, sources and what was reported
  vit-dist list clusters
  vit-dist list optimizers                 what each is, and on which engines it trains
  vit-dist list plugins                    what installed packages bring, and why one could not be imported
  for run in $(vit-dist list --state stopped --names); do vit-dist resume "$run"; done
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import add_runs

    what = "list runs, or shipped recipes, clusters, studies and datasets, or optimizers, or installed plug-ins"
    parser = verb_parser("vit-dist list", what, _EXAMPLES)
    parser.add_argument("kind", metavar="WHAT", nargs="?", default="runs", help=f"{', '.join(KINDS)} (default runs)")
    parser.add_argument("--state", metavar="STATE", action="append", default=[], help="only runs in this state")
    parser.add_argument("--names", action="store_true", help="paths alone")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_runs(parser)
    args = parser.parse_args(argv)

    from vit_dist.core.errors import ConfigError, did_you_mean

    if args.kind not in KINDS:
        raise ConfigError(f"vit-dist list {args.kind}: there is nothing of that kind{did_you_mean(args.kind, KINDS)}")
    return {"runs": _runs, "optimizers": _optimizers, "plugins": _plugins}.get(args.kind, _shipped)(args)


def _runs(args: argparse.Namespace) -> int:
    from launcher.status.find import find_runs, no_runs, run_roots
    from launcher.status.view import look
    from vit_dist.cli.runs.facts import one_line
    from vit_dist.core.log import log

    roots = run_roots(args.runs)
    found = find_runs(roots)
    views, _ = look(found, ask_slurm=False)
    views = sorted((v for v in views if not args.state or v.state in args.state), key=lambda v: (v.seen, v.name))
    if args.json:
        records = [
            {
                "path": str(v.path.resolve()),
                "state": v.state,
                "job": v.job_id,
                "step": v.step,
                "damaged": list(v.problems),
            }
            for v in views
        ]
        sys.stdout.write(json.dumps(records, indent=1) + "\n")
        return 0
    if not views:
        # Not on stdout: a script that counts lines gets none.
        log(f"no runs in state {', '.join(args.state)}" if args.state and found else no_runs(roots))
    paths = [one_line(str(v.path)) for v in views]
    jobs = [f"job {v.job_id}" if v.job_id else "" for v in views]
    damages = [f"damaged: {one_line(v.problems[0])}" if v.problems else "" for v in views]
    _print(paths if args.names else _columns(zip((v.state for v in views), paths, jobs, damages, strict=True)))
    return 0


def _shipped(args: argparse.Namespace) -> int:
    from vit_dist.config.load import config_dirs, read_mapping
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.text import read_text

    shipped = []
    for path in sorted({f.stem: f for d in reversed(config_dirs()) for f in (d / args.kind).glob("*.yaml")}.values()):
        try:
            description = str(read_mapping(path).get("description") or "") or _comment(read_text(path))
        except ConfigError as error:
            description = str(error)
        shipped.append({"name": path.stem, "path": str(path), "description": description})
    return _write(args, shipped)


def _optimizers(args: argparse.Namespace) -> int:
    from vit_dist.core.registry import OPTIMIZERS

    rows = []
    for cls, names in OPTIMIZERS.classes().items():
        engines = "plain, fsdp, deepspeed" if getattr(cls, "elementwise", False) else "plain"
        if engines == "plain" and getattr(cls, "whole_rows", False):
            engines = "plain, fsdp"
        what = (cls.__doc__ or "").strip().partition("\n")[0]
        rows += [{"name": n, "path": cls.__module__, "engines": engines, "description": what} for n in names]
    if args.json or args.names:
        return _write(args, rows)
    _print(_columns((row["name"], row["engines"], row["description"]) for row in rows))
    return 0


def _plugins(args: argparse.Namespace) -> int:
    from vit_dist.core.registry import REGISTRIES, load_installed

    brought = [(f"{r.kind} {name}", origin) for r in REGISTRIES for name, origin in r.from_outside().items()]
    plugins = []
    for plugin in load_installed():
        names = ", ".join(what for what, origin in brought if origin == plugin.origin)
        description = plugin.problem or f"{plugin.distribution}, {plugin.module}: {names or 'brings nothing'}"
        plugins.append({"name": plugin.name, "path": plugin.module, "description": description})
    return _write(args, plugins)


def _write(args: argparse.Namespace, entries: list[dict[str, str]]) -> int:
    if args.json:
        sys.stdout.write(json.dumps(entries, indent=1) + "\n")
        return 0
    listed = [one["name"] for one in entries]
    _print(listed if args.names else _columns((one["name"], one["description"]) for one in entries))
    return 0


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    from vit_dist.core.tables import columns, to_lines

    return to_lines(columns(list(rows)))


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _comment(text: str) -> str:
    """The comment at the head of a file, as far as its first full stop."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".")
