"""Restoring: the newest checkpoint that is intact, belongs to this run and gives the loss it was saved with.

A checkpoint is verified before it is read (sizes, checksums) and judged after (probe). One that fails is skipped, which
is logged. Where there is none here and copies are kept elsewhere, the newest copy is fetched first. See saver.py for
writing, store.py for what lies where.

Every rank walks the same candidates and decides on each from gathered answers: a rank that took another one than its
peers would train a mixture of two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.config.load import differences
from vit_dist.core.errors import CheckpointError, VitDistError
from vit_dist.core.files import redact
from vit_dist.core.log import WARNING, log
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.world import World
from vit_dist.engines._collectives import all_gather_object, broadcast_object
from vit_dist.engines._layout import completed
from vit_dist.engines._protocol import Engine
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.probe import Probe
from vit_dist.train.checkpoint.remote import fetch, remote_steps
from vit_dist.train.checkpoint.store import remove, verify_files


@dataclass(frozen=True)
class Restored:
    """A checkpoint whose weights were loaded: where it lies, its train state and its marker."""

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
        restored = _restore_one(path, engine, identity, world, probe)
        if restored is not None:
            return restored
    copies = _on_main(lambda: remote_steps(remote), world) if remote else []
    for name in copies:
        if world.is_main:
            log(f"  fetching {name} from {redact(remote)}")
        path = _on_main(lambda name=name: _replace(remote, name, root), world)
        restored = _restore_one(path, engine, identity, world, probe)
        if restored is not None:
            return restored
    if candidates or copies:
        raise CheckpointError(
            f"{root}: none of the {len(candidates) or len(copies)} checkpoints is intact; restore one from a copy, or "
            f"start in another --run-dir"
        )
    return None


def restore_from(path: Path, engine: Engine, identity: dict[str, Any], world: World, probe: Probe | None) -> Restored:
    """Load one checkpoint and no other. A collective.

    Raises:
        CheckpointError: damaged, or of another recipe.
    """
    restored = _restore_one(path, engine, identity, world, probe)
    if restored is None:
        raise CheckpointError(f"{path}: damaged; see above")
    return restored


def _restore_one(
    path: Path, engine: Engine, identity: dict[str, Any], world: World, probe: Probe | None
) -> Restored | None:
    marker, problem = read_marker(path)
    problem = problem or verify_files(path, marker, world)
    # Each of the three stages ends in a collective, and the next begins only where no rank has a problem: loading and
    # the probe are collectives themselves, which a rank with a damaged file could not join.
    problems = all_problems(problem, world)
    if not problems:
        _check_belongs(path, marker, identity)
        problems = all_problems(_load(path, marker, engine), world)
    recorded = marker.get("probe")
    if not problems and probe is not None and recorded is not None and recorded["examples"] == len(probe.images):
        problems = all_problems(probe.judge(engine, float(recorded["loss"]), marker["layout"]), world)
    if problems:
        if world.is_main:
            log(f"checkpoint {path} is damaged and skipped: {problems[0]}", WARNING)
        return None
    return Restored(path, marker["state"], marker)


def _load(path: Path, marker: dict[str, Any], engine: Engine) -> str:
    try:
        source = SliceSource([path / name for name in sorted(marker["files"])])
    except CheckpointError as error:
        return str(error)
    # Not caught: all files were verified, so an error here (another model's tensors) is the same on every rank.
    engine.load(source)
    return ""


def all_problems(problem: str, world: World) -> list[str]:
    """What any rank found wrong, the same on every rank. A collective."""
    return [p for p in all_gather_object(problem, world) if p]


def _on_main(work: Any, world: World) -> Any:
    """What a function returns on rank 0, on every rank; or what it raises there. A collective."""
    value, error = None, None
    if world.is_main:
        try:
            value = work()
        except VitDistError as raised:
            error = raised
    value, error = broadcast_object((value, error), world)
    if error is not None:
        raise error
    return value


def _replace(remote: str, name: str, root: Path) -> Path:
    # A local one of this name was verified a moment ago, and is damaged.
    if (root / name).exists():
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
    return differences(reads, completed(wrote, reads))
