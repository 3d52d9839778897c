"""`vit-dist study`: finds the verb's module; a module a verb, of its name."""

from __future__ import annotations

import argparse
import importlib

from vit_dist.core.errors import ConfigError, did_you_mean

SUMMARY = "train a grid of runs (family x subset x seed) and draw the curves from their logs"

VERBS = {
    "plan": "the grid, its cost, what exists, what will not fit",
    "run": "train what is not done, on this machine",
    "submit": "train what is not done, as arrays of Slurm jobs",
    "status": "the matrix: size by family by seed",
    "report": "tables and figures from event files alone",
    "fit": "scaling curves of a plain table, their crossovers and forecasts",
}

_EXAMPLES = """\
examples:
  vit-dist study plan demo                             # configs/studies/demo.yaml: its cells and their cost
  vit-dist study submit my.yaml --cluster site.yaml    # as arrays of Slurm jobs; again: what is left
  vit-dist study run demo --nproc 2                    # train them; the same command resumes after a stop
  vit-dist study run my.yaml seeds=[0] optim.lr=1e-3   # other seeds, and another learning rate for every cell
  vit-dist study status demo                           # how far each cell is
  vit-dist study report demo                           # figure and tables under runs/demo/report
  vit-dist study report --logs s3://bucket/tb --out r  # event files are enough, wherever they are
  vit-dist study fit results.csv --x examples --y error --group model
"""


def main(argv: list[str]) -> int:
    """Run one verb of `vit-dist study`; returns the exit code."""
    if not argv or argv[0] in {"-h", "--help"}:
        verbs = "\n".join(f"  {verb:<8} {what}" for verb, what in VERBS.items())
        parser = argparse.ArgumentParser(
            prog="vit-dist study",
            usage="vit-dist study VERB ...",
            description=SUMMARY[0].upper() + SUMMARY[1:] + ".",
            epilog=f"verbs (`vit-dist study VERB --help` says more):\n{verbs}\n\n{_EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.print_help()
        return 0 if argv else 2
    if argv[0] not in VERBS:
        raise ConfigError(f"vit-dist study: unknown verb {argv[0]!r}{did_you_mean(argv[0], VERBS)}")
    module = importlib.import_module(f"{__name__}.{argv[0]}")
    return int(module.main(argv[1:]))
