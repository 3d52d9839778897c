"""A new job for a run that has ended: the same directory, the same recipe, perhaps another number of nodes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.slurm.cluster import load_cluster
from launcher.status.view import look_at
from launcher.submit.run import SubmitRequest, parse_time
from vit_dist.config.load import find_config, load_recipe
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.run import history, names


@dataclass(frozen=True)
class Changes:
    """What differs from the job before; None and '' keep it.

    Attributes:
        nodes, spares, time_limit: of the job.
        cluster: name or file of another site.
        site: 'key=value' overrides of the cluster.
        overrides: of the recipe, of keys that are no part of its identity.
    """

    nodes: int | None = None
    spares: int | None = None
    time_limit: str = ""
    cluster: str = ""
    site: Sequence[str] = ()
    overrides: Sequence[str] = ()


def check_ended(path: Path) -> None:
    """Raise where the run is done, or still has a job or a process.

    Raises:
        RunError: it is.
    """
    view, _ = look_at(path)
    if view.active:
        where = f", job {view.job_id}" if view.job_id else ""
        raise RunError(
            f"{path}: is {view.state}{where}; there is nothing to resume. `vit-dist status {path}` tells more"
        )
    if view.state == "done":
        raise RunError(f"{path}: is done, at step {view.step:,}; there is nothing to resume")
    if not recipe_of(path).is_file():
        raise RunError(f"{path}: has no recipe.yaml, so what it was to train is not known; submit it anew")


def recipe_of(path: Path) -> Path:
    """The resolved recipe of a run."""
    return path / names.RECIPE


def request_to_resume(path: Path, changes: Changes) -> SubmitRequest:
    """What to hand to `launcher.submit.run.submit`.

    Changes to the directory from which the run was first submitted: paths in its recipe may be relative to that.

    Raises:
        ConfigError: no cluster is known, or it or a change is not valid.
        RunError: the run is done, or still has a job or a process.
    """
    path = path.absolute()
    check_ended(path)
    job = history.read(path, forgiving=True).submission
    name = changes.cluster or str(job.get("cluster_file") or "")
    if not name:
        raise ConfigError(f"{path}: was never a Slurm job; --cluster NAME submits it as one")
    cluster_file = find_config(name, "clusters").absolute()
    cluster = load_cluster(str(cluster_file), changes.site)
    # Numbers of nodes and time limits are a site's: on another one they begin anew.
    known = not changes.cluster
    before = job.get("nodes") if known else None
    nodes = changes.nodes if changes.nodes is not None else before if isinstance(before, int) else 1
    spares = job.get("spares") if known and changes.spares is None else changes.spares
    limit = parse_time(changes.time_limit) if changes.time_limit else str(job.get("time_limit") or "") if known else ""
    recipe = load_recipe(str(recipe_of(path)), changes.overrides)
    cwd = str(job.get("cwd") or "")
    if cwd and Path(cwd).is_dir():
        os.chdir(cwd)
    return SubmitRequest(
        recipe=recipe,
        cluster=cluster,
        nodes=nodes,
        spares=spares if isinstance(spares, int) else 0,
        time_limit=limit,
        run_dir=path,
        words=(str(recipe_of(path)), *changes.overrides),
        cluster_file=cluster_file,
    )
