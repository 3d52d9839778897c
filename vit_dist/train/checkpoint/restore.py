"""Restoring: the newest checkpoint that is intact, belongs to this run and gives the loss it was saved with.

A checkpoint is verified before it is read (sizes, checksums) and judged after (probe). One that fails is skipped, which
is logged. Where there is none here and copies are kept elsewhere, the newest copy is fetched first. See saver.py for
writing, store.py for what lies where.

Rank 0 lists the candidates and reads their markers, every rank walks that list and decides on each from gathered
answers: a rank that took another one than its peers would train a mixture of two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from vit_dist.config.load import differences
from vit_dist.core.errors import CheckpointError, OtherCheckpointError, VitDistError
from vit_dist.core.files import redact
from vit_dist.core.log import WARNING, log
from vit_dist.core.process import wait_until
from vit_dist.core.run.checkpoints import MARKER, committed, lacks, read_marker, step_of
from vit_dist.core.world import World
from vit_dist.engines._collectives import all_gather_object, broadcast_object
from vit_dist.engines._layout import completed
from vit_dist.engines._protocol import Engine
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.probe import Probe
from vit_dist.train.checkpoint.remote import fetch, remote_steps
from vit_dist.train.checkpoint.store import verify_files

T = TypeVar("T")

_VISIBLE_S = 30.0
_POLL_S = 0.5


@dataclass(frozen=True)
class Restored:
    """A checkpoint whose weights were loaded.

    Attributes:
        path: where it lies.
        state: its train state.
        marker: all of it.
        damaged: steps of the newer ones that were skipped.
        damaged_copies: the same of copies.
        fetched: URL of the copy that it was fetched from; '' of one that lay here.
    """

    path: Path
    state: dict[str, Any]
    marker: dict[str, Any]
    damaged: frozenset[int] = frozenset()
    damaged_copies: frozenset[int] = frozenset()
    fetched: str = ""


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
    # Rank 0's listing decides: another node's view of a shared file system may be seconds old.
    candidates = on_main(lambda: [path.name for path in committed(root)], world)
    damaged: set[int] = set()
    damaged_copies: set[int] = set()

    def tried(name: str) -> Restored | None:
        restored = _restore_one(root / name, engine, identity, world, probe)
        if restored is None:
            damaged.add(step_of(name) or 0)
            return None
        skipped = frozenset(damaged - {step_of(name) or 0})
        return replace(restored, damaged=skipped, damaged_copies=frozenset(damaged_copies))

    for name in candidates:
        restored = tried(name)
        if restored is not None:
            return restored
    copies = on_main(lambda: remote_steps(remote), world) if remote else []
    for name in copies:
        if world.is_main:
            log(f"  fetching {name} from {redact(remote)}")
        # A local one of this name was verified a moment ago, and is damaged: it is replaced.
        problem = on_main(partial(_fetched, remote, name, root), world)
        if problem and world.is_main:
            log(f"copy {redact(remote)}/{name} is damaged and skipped: {problem}", WARNING)
        restored = None if problem else tried(name)
        if restored is not None:
            return replace(restored, fetched=remote)
        damaged_copies.add(step_of(name) or 0)
    if candidates or copies:
        raise CheckpointError(
            f"{root}: none of the {len(candidates) or len(copies)} checkpoints is intact; restore one from a copy, or "
            f"start in another --run-dir"
        )
    return None


def _fetched(remote: str, name: str, root: Path) -> str:
    """Fetch a copy; what is wrong with its marker, or ''."""
    try:
        fetch(remote, name, root)
    except CheckpointError as error:
        return str(error)
    return ""


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
    marker, problem = on_main(lambda: read_marker(path), world)
    # What rank 0 has just read may take its time to show on another node.
    wait_until(lambda: bool(problem) or (path / MARKER).exists(), _VISIBLE_S, _POLL_S)
    problem = problem or lacks(marker) or verify_files(path, marker, world)
    # Each of the stages ends in a collective, and the next begins only where no rank has a problem: loading and the
    # probe are collectives themselves, which a rank with a damaged file could not join.
    problems = all_problems(problem, world)
    source: SliceSource | None = None
    if not problems:
        _check_belongs(path, marker, identity)
        source, problem = _fitting(path, marker, engine)
        problems = all_problems(problem, world)
    recorded = marker.get("probe")
    if source is not None and not problems:
        engine.load(source)
        if probe is not None and recorded is not None and probe.is_of(recorded):
            problems = all_problems(probe.judge(engine, float(recorded["loss"]), marker["layout"]), world)
    if problems:
        if world.is_main:
            log(f"checkpoint {path} is damaged and skipped: {problems[0]}", WARNING)
        return None
    return Restored(path, marker["state"], marker)


def _fitting(path: Path, marker: dict[str, Any], engine: Engine) -> tuple[SliceSource | None, str]:
    """The tensors of a checkpoint, or what keeps them from being those of the engine. No collective."""
    try:
        source = SliceSource([path / name for name in sorted(marker["files"])])
    except CheckpointError as error:
        return None, str(error)
    return source, source.misfit(engine.wanted())


def all_problems(problem: str, world: World) -> list[str]:
    """What any rank found wrong, the same on every rank. A collective."""
    return [p for p in all_gather_object(problem, world) if p]


def on_main(work: Callable[[], T], world: World) -> T:
    """What a function returns on rank 0, on every rank; or what it raises there. A collective."""
    value: T | None = None
    error: VitDistError | None = None
    if world.is_main:
        try:
            value = work()
        except VitDistError as raised:
            error = raised
    value, error = broadcast_object((value, error), world)
    if error is not None:
        raise error
    return cast(T, value)


def _check_belongs(path: Path, marker: dict[str, Any], identity: dict[str, Any]) -> None:
    changes = differences(identity, marker["recipe"])
    if changes:
        raise OtherCheckpointError(
            f"{path}: a checkpoint of another recipe: {'; '.join(changes)}. Restore these settings, or train "
            f"anew in another --run-dir"
        )


def agree_on_place(place: tuple[int, int], path: Path, world: World) -> None:
    """Refuse to go on where ranks stand at different places of a run. A collective.

    Args:
        place: (step, position) of this rank's train state, once the weights are loaded.
        path: of the checkpoint it was restored from, on this rank.
        world: this rank's place.

    Raises:
        CheckpointError: they differ; says which rank stands where.
    """
    places = all_gather_object((*place, path.name), world)
    other = next((rank for rank, there in enumerate(places) if there != places[0]), None)
    if other is not None:
        here, there = places[0], places[other]
        raise CheckpointError(
            f"{path.parent}: rank 0 has restored step {here[0]}, position {here[1]} ({here[2]}), rank {other} step "
            f"{there[0]}, position {there[1]} ({there[2]}): ranks see different files; see that the run directory is "
            f"on one shared file system"
        )


def layout_changes(wrote: dict[str, Any], reads: dict[str, Any]) -> Sequence[str]:
    """How what wrote a checkpoint differs from what reads it: allowed, exact to load, and worth saying."""
    return differences(reads, completed(wrote, reads))
