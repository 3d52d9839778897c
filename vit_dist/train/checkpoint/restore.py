"""Restoring: the newest checkpoint that is whole, belongs to this run and gives the loss it was saved with.

A checkpoint is verified before it is read (sizes, checksums) and judged after (probe). One that fails is passed over,
and said. Where there is none here and copies are kept elsewhere, the newest copy is fetched first. See
checkpoint_saver.py for writing, checkpoint_store.py for what lies where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_dist.config.load import differences
from vit_dist.core.errors import CheckpointError, VitDistError
from vit_dist.core.files import redact
from vit_dist.core.log import log
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.world import World
from vit_dist.engines._protocol import Engine
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.probe import Probe
from vit_dist.train.checkpoint.remote import fetch, remote_steps
from vit_dist.train.checkpoint.store import remove, verify_share


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says beside the weights."""

    path: Path
    state: dict[str, Any]
    marker: dict[str, Any]


def restore(
    root: Path,
    engine: Engine,
    identity: dict[str, Any],
    world: World,
    *,
    probe: Probe | None = None,
    remote: str = "",
) -> Restored | None:
    """Load the newest valid checkpoint into the engine. A collective.

    Args:
        root: the run's checkpoints.
        engine: is filled.
        identity: of the recipe; a checkpoint of another is refused.
        world: this rank's place.
        probe: judges the restored weights; None leaves that out.
        remote: URL of copies, or ''.

    Returns:
        What was restored, or None where there is no checkpoint at all, here or there.

    Raises:
        CheckpointError: of another recipe (says what differs), or all are damaged.
        DataError: there is none here and the copies cannot be asked for.
    """
    candidates = committed(root)
    for path in candidates:
        found = _restore_one(path, engine, identity, world, probe)
        if found is not None:
            return found
    there = _on_first_rank(lambda: remote_steps(remote), world) if remote else []
    for name in there:
        if world.is_main:
            log(f"  fetching {name} from {redact(remote)}")
        path = _on_first_rank(lambda name=name: _replace(remote, name, root), world)
        found = _restore_one(path, engine, identity, world, probe)
        if found is not None:
            return found
    if candidates or there:
        raise CheckpointError(
            f"{root}: none of the {len(candidates) or len(there)} checkpoints is whole; restore one from a copy, or "
            f"start in another --run-dir"
        )
    return None


def restore_from(path: Path, engine: Engine, identity: dict[str, Any], world: World, probe: Probe | None) -> Restored:
    """Load one checkpoint and no other. A collective.

    Raises:
        CheckpointError: damaged, or of another recipe.
    """
    found = _restore_one(path, engine, identity, world, probe)
    if found is None:
        raise CheckpointError(f"{path}: damaged; see above")
    return found


def _restore_one(
    path: Path, engine: Engine, identity: dict[str, Any], world: World, probe: Probe | None
) -> Restored | None:
    marker, problem = read_marker(path)
    problem = problem or verify_share(path, marker, world)
    problems = all_problems(problem, world)
    if not problems:
        _check_belongs(path, marker, identity)
        problems = all_problems(_load(path, marker, engine), world)
    recorded = marker.get("probe")
    if not problems and probe is not None and recorded is not None and recorded["examples"] == len(probe.images):
        problems = all_problems(probe.judge(engine, float(recorded["loss"]), marker["layout"]), world)
    if problems:
        if world.is_main:
            log(f"checkpoint {path} is damaged and passed over: {problems[0]}")
        return None
    return Restored(path, marker["state"], marker)


def _load(path: Path, marker: dict[str, Any], engine: Engine) -> str:
    try:
        source = SliceSource([path / name for name in sorted(marker["files"])])
    except CheckpointError as error:
        return str(error)
    engine.load(source)  # an error here is of this rank alone only where files change under our hands
    return ""


def all_problems(problem: str, world: World) -> list[str]:
    """What any rank found wrong, the same on every rank. A collective."""
    if world.size == 1:
        return [problem] if problem else []
    everyone: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(everyone, problem)
    return [p for p in everyone if p]


def _on_first_rank(work: Any, world: World) -> Any:
    """What a function returns on the first rank, on every rank; or what it raises there."""
    told: list[Any] = [None, None]
    if world.is_main:
        try:
            told[0] = work()
        except VitDistError as error:
            told[1] = error
    if world.size > 1:
        torch.distributed.broadcast_object_list(told, 0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def _replace(remote: str, name: str, root: Path) -> Path:
    if (root / name).exists():  # it is here, and was found damaged
        remove(root / name)
    return fetch(remote, name, root)


def _check_belongs(path: Path, marker: dict[str, Any], identity: dict[str, Any]) -> None:
    changes = differences(identity, marker["recipe"])
    if changes:
        raise CheckpointError(
            f"{path}: a checkpoint of another recipe: {'; '.join(changes)}. Restore these settings, or start in "
            f"another --run-dir"
        )


def layout_changes(wrote: dict[str, Any], reads: dict[str, Any]) -> Sequence[str]:
    """How what wrote a checkpoint differs from what reads it: allowed, exact to load, and worth saying."""
    return differences(reads, wrote)
