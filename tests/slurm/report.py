"""The report of the drills, for people: runs/drills/slurm.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby

from tests.places import ROOT
from tests.slurm.scenarios import Row

REPORT = ROOT / "runs" / "drills" / "slurm.md"


def write_report(rows: Sequence[Row], asked: int) -> None:
    """Write what was done, what the ledger says, and what was measured. `asked`: how many scenarios were tried."""
    lines = [
        "# Drills on a real Slurm",
        "",
        f"{len(rows)} of {asked} scenarios passed, on a Slurm of 3 nodes on one machine of {os.cpu_count()} CPUs.",
        "Each of these ended with the examples, weights and moments of the undisturbed run, with no process left, and",
        "with a ledger that tells it.",
        "",
        "| scenario | what was done | attempts ended | steps done twice | seconds | measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        measured = "; ".join(f"{name.removesuffix(', s')} {value:.1f} s" for name, value in row.figures.items())
        cells = [row.name, row.done, describe_causes(row.causes), str(row.lost), f"{row.seconds:.0f}", measured]
        lines.append(f"| {' | '.join(cells)} |")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("\n".join([*lines, ""]))


def describe_causes(causes: Sequence[str]) -> str:
    """['crashed', 'crashed', 'done'] -> 'crashed x 2, done'."""
    runs = [(cause, len(list(same))) for cause, same in groupby(causes)]
    return ", ".join(f"{cause} x {n}" if n > 1 else cause for cause, n in runs)
