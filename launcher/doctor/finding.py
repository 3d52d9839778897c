"""One finding of `vit-dist doctor`, and what the checks are given to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.slurm.cluster import Cluster
from vit_dist.config.schema import Recipe

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: what it belongs to, such as 'Slurm'.
        verdict: 'ok', 'warn' (works, but) or 'fail'.
        text: what was found.
        advice: what to do; '' where there is nothing to do.
    """

    area: str
    verdict: Verdict
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        recipe: whose data and needs; None: only the machine.
        cluster: whose settings; None: what this machine shows.
        run_root: where run directories lie.
        run_dir: of the recipe, where it has been trained already; measured figures come from there.
        images_per_s: that training takes; None: as measured in `run_dir`.
    """

    recipe: Recipe | None
    cluster: Cluster | None
    run_root: Path
    run_dir: Path | None = None
    images_per_s: float | None = None


Check = Callable[[Subject], Iterable[Finding]]
