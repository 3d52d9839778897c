"""Branches: the checkpoint of another run becomes the first one of a run of its own, which goes on as any run does.

Nothing beyond that knows of branches: a checkpoint of the trunk's step stands in the branch's directory, with the
branch's own identity in its marker, and an attempt restores it. Where every tensor is the trunk's the parts are its
files, linked or copied; where tensors are resampled or begun anew the parts are written anew, and moments of those
tensors are zero.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vit_dist import __version__
from vit_dist.config.branch import BranchConfig
from vit_dist.config.branch_keys import TRUNK, check_changes, shown
from vit_dist.config.load import identity
from vit_dist.config.plugins import plugin_identity
from vit_dist.config.schema import Recipe, identity_hash
from vit_dist.core.errors import CheckpointError, ConfigError, DataError, RefusalError
from vit_dist.core.files import is_remote, local_path, parent_url, redact, remove_tree, sync_path, url_name, write_bytes
from vit_dist.core.run import lineage as lineages
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import (
    FORMAT,
    MARKER,
    committed,
    parse_marker,
    partial_name,
    seal_marker,
    step_name,
)
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.lineage import Lineage, Trunk, checkpoint_digest, plain_lineage, read_lineage
from vit_dist.core.world import World
from vit_dist.data.classes import Classes
from vit_dist.data.sets import TrainingSet
from vit_dist.models import ModelConfig
from vit_dist.models._macs import count_macs
from vit_dist.models.weights.described import config_of
from vit_dist.train.branch_point import read_trunk_marker
from vit_dist.train.branch_state import carried_state
from vit_dist.train.branch_tensors import Parts, fitted_parts
from vit_dist.train.checkpoint.format import SliceSource, checksum
from vit_dist.train.checkpoint.remote import fetch, remote_steps
from vit_dist.train.checkpoint.restore import on_main
from vit_dist.train.checkpoint.store import remove, verify_files
from vit_dist.train.checkpoint.weights import CLASSES
from vit_dist.train.claim import claim
from vit_dist.train.initial_weights import TEACHER
from vit_dist.train.teacher import TeacherWeights

_OPENED = ("fingerprint", "initial_weights", TEACHER, "plugins", TRUNK)
"""Of a run's identity, what its recipe alone does not say."""
_SCRATCH = ".trunk"
_PLANTING = "planting"


def begin(recipe: Recipe, data: TrainingSet, directory: RunDir) -> Lineage:
    """Begin a branch in a directory: its recipe, what it is, its first checkpoint. Does nothing where that is there.

    Args:
        recipe: with `branch`.
        data: its training set.
        directory: of the branch.

    Returns:
        Its lineage.

    Raises:
        VitDistError: the checkpoint is missing, damaged or another one than it was; the directory is another run's.
    """
    with directory.locked():
        # As an attempt has it; what a branch may not have of it, weights to begin from, is refused with the recipe.
        teacher = TeacherWeights(recipe, directory, World(), data.class_names).identity
        digests = {"fingerprint": data.fingerprint, **teacher, **plugin_identity(recipe)}
        run_identity = {**identity(recipe), **digests}
        lineage = _lineage(recipe, directory, run_identity)
        run_identity |= trunk_identity(recipe, lineage)
        claim(directory, recipe, data, run_identity, lineage)
        if _has_no_checkpoint(recipe, directory):
            _plant(recipe, data, directory, run_identity, lineage)
    return lineage


def agreed_lineage(recipe: Recipe, directory: RunDir, run_identity: Mapping[str, Any], world: World) -> Lineage:
    """What a run comes from, the same on all ranks; () where it is no branch. A collective.

    Raises:
        VitDistError: a branch that has not begun cannot begin from its checkpoint.
    """
    if recipe.branch is None:
        return ()
    return on_main(lambda: _lineage(recipe, directory, run_identity), world)


def trunk_identity(recipe: Recipe, lineage: Lineage) -> dict[str, str]:
    """What the trunk's checkpoint holds, for the identity of a branch whose recipe does not say it; {} of any other."""
    branch = recipe.branch
    return {TRUNK: lineage[-1].digest} if branch is not None and branch.digest is None else {}


def plant_missing(
    recipe: Recipe,
    data: TrainingSet,
    directory: RunDir,
    run_identity: dict[str, Any],
    lineage: Lineage,
    world: World,
) -> None:
    """Give a branch that has no checkpoint, here or among its copies, its first one. A collective.

    Raises:
        VitDistError: the trunk's checkpoint is missing, damaged, another one than it was, or does not fit.
    """
    if recipe.branch is None:
        return

    def plant() -> None:
        if _has_no_checkpoint(recipe, directory):
            _plant(recipe, data, directory, run_identity, lineage)

    on_main(plant, world)


def _has_no_checkpoint(recipe: Recipe, directory: RunDir) -> bool:
    """Whether there is none, here or among the branch's own copies, which count where its directory was lost."""
    remote = recipe.checkpoint.remote
    return not committed(directory.checkpoints) and not (remote and remote_steps(remote))


def _lineage(recipe: Recipe, directory: RunDir, run_identity: Mapping[str, Any]) -> Lineage:
    """From run.json of a branch that has begun; else from the trunk's checkpoint, which must be the one it was."""
    branch = _branch(recipe)
    claimed = directory.read_json(names.RUN)
    if claimed is not None and lineages.KEY in claimed:
        return read_lineage(claimed[lineages.KEY])
    marker = _trunk_marker(branch, branch.digest)
    changes = check_changes(marker["recipe"], run_identity)
    state = marker["state"]
    trunk = Trunk(
        run=branch.run,
        recipe_hash=_recipe_hash(marker),
        step=branch.step,
        examples=state["position"] - sum(end - begin for begin, end in state["passed_over"]),
        digest=checkpoint_digest(marker),
        macs_per_image=_macs(marker["recipe"]),
        changed=tuple(f"{key[:200]}: {shown(a)} -> {shown(b)}" for key, a, b in changes),
    )
    return (*read_lineage(marker.get(lineages.KEY, [])), trunk)


def _branch(recipe: Recipe) -> BranchConfig:
    assert recipe.branch is not None, "asked of branches alone"
    return recipe.branch


def _trunk_marker(branch: BranchConfig, digest: str | None) -> dict[str, Any]:
    """The marker of the trunk's checkpoint, which must be the one that it was.

    Args:
        branch: of the recipe.
        digest: of what it holds; None: not known yet, and then it must be of the trunk that the recipe names.
    """
    marker = read_trunk_marker(branch.checkpoint, unmade="" if digest else branch.run)
    found, step = checkpoint_digest(marker), marker["state"]["step"]
    if digest is None and (_recipe_hash(marker), step) != (branch.trunk, branch.step):
        raise RefusalError(
            f"branch.checkpoint: {redact(branch.checkpoint)} is of step {step:,} of recipe {_recipe_hash(marker)}, not "
            f"of step {branch.step:,} of {branch.trunk}, from which the branch is to begin; train {branch.run} as it "
            f"was planned"
        )
    if digest is not None and (found, step) != (digest, branch.step):
        raise RefusalError(
            f"branch.checkpoint: {redact(branch.checkpoint)} holds something else than when the branch was made (its "
            f"digest is {found[:8]}..., not {digest[:8]}...); bring that one back, or make another branch"
        )
    return marker


def _recipe_hash(marker: Mapping[str, Any]) -> str:
    """Of the run that has written a checkpoint."""
    return identity_hash({key: value for key, value in marker["recipe"].items() if key not in _OPENED})


def _macs(trunk: Mapping[str, Any]) -> int | None:
    """Multiply-adds of a forward pass of one image of the trunk's model; None where it cannot be built here."""
    try:
        data = trunk["data"]
        model = config_of(trunk["model"], "the trunk's model")
        return count_macs(model, data["num_classes"], data["image_size"], training=True)
    except (ConfigError, DataError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def _plant(
    recipe: Recipe, data: TrainingSet, directory: RunDir, run_identity: dict[str, Any], lineage: Lineage
) -> None:
    """Write the branch's first checkpoint. What is there of one that a kill has cut off is replaced."""
    branch = _branch(recipe)
    marker = _trunk_marker(branch, lineage[-1].digest)
    changed = [key for key, _, _ in check_changes(marker["recipe"], run_identity)]
    _check_classes(branch, marker, recipe, data)
    root = directory.checkpoints
    partial = root / partial_name(branch.step, _PLANTING)
    with _trunk_here(branch.checkpoint, directory.path / _SCRATCH) as trunk:
        problem = verify_files(trunk, marker, World())
        if problem:
            raise CheckpointError(f"branch.checkpoint: {redact(branch.checkpoint)}: damaged: {problem}")
        try:
            remove_tree(partial)
            partial.mkdir(parents=True)
            parts = _fitting(branch, recipe, trunk, sorted(marker["files"]))
            if parts is None:
                files = {name: _same(trunk / name, partial / name, entry) for name, entry in marker["files"].items()}
            else:
                files = {name: _written(snapshot, partial / name) for name, snapshot in parts}
            planted = {
                "format": FORMAT,
                "vit_dist": __version__,
                "layout": marker["layout"],
                "recipe": run_identity,
                "state": carried_state(marker["state"], data, changed, new_head=branch.head == "new"),
                "files": files,
                lineages.KEY: plain_lineage(lineage),
            }
            # The loss of the trunk's probe is that of a branch whose weights, set and loss are the same.
            sections = {key.partition(".")[0] for key in changed}
            if parts is None and "probe" in marker and not sections & {"data", "loss", "model", "fingerprint"}:
                planted["probe"] = marker["probe"]
            content = seal_marker(planted)
            _, problem = parse_marker(content)
            if problem:
                raise CheckpointError(f"{redact(branch.checkpoint)}: no branch can begin from it: {problem}")
            write_bytes(str(partial / MARKER), content)
            remove(root / step_name(branch.step))
            partial.rename(root / step_name(branch.step))
            sync_path(root)
        except OSError as error:
            raise CheckpointError(
                f"{root}: the branch's first checkpoint cannot be made of {redact(branch.checkpoint)}: {error.strerror}"
            ) from None
        finally:
            remove_tree(partial)


@contextlib.contextmanager
def _trunk_here(checkpoint: str, scratch: Path) -> Iterator[Path]:
    """The trunk's checkpoint on this file system, for as long as the block lasts."""
    if not is_remote(checkpoint):
        yield local_path(checkpoint)
        return
    remove_tree(scratch)
    try:
        scratch.mkdir(parents=True)
        yield fetch(parent_url(checkpoint), url_name(checkpoint), scratch)
    finally:
        remove_tree(scratch)


def _fitting(branch: BranchConfig, recipe: Recipe, trunk: Path, files: list[str]) -> Parts | None:
    """The parts of a checkpoint that fits the branch's model; None where the trunk's fit as they are."""
    model, data = recipe.model, recipe.data
    assert isinstance(model, ModelConfig)
    with torch.device("meta"):
        module = model.build(num_classes=data.num_classes, image_size=data.image_size)
    source = SliceSource([trunk / name for name in files])
    return fitted_parts(source, module, recipe, branch, files)


def _check_classes(branch: BranchConfig, marker: Mapping[str, Any], recipe: Recipe, data: TrainingSet) -> None:
    """Refuse a set that gives the outputs of a head that is kept to other classes."""
    if branch.head == "new":
        return
    theirs = list(map(str, marker.get(CLASSES, ())))
    ours = Classes("", recipe.data.num_classes, data.class_names).listing()
    other = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a and b and a != b), None)
    if other is not None:
        raise ConfigError(
            f"output {other} of the trunk's head is {theirs[other]!r}, of the training set it is {ours[other]!r}: they "
            f"number their classes otherwise; give branch.head=new, or a set that numbers them as the trunk's"
        )


def _same(source: Path, to: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A part that is the trunk's: the same file where both lie on one disk, else a copy. No part is ever changed."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
        # What was read there is what arrived here.
        if checksum(to) != entry["xxh128"]:
            raise CheckpointError(f"{source}: damaged while it was copied") from None
        sync_path(to)
    return {"bytes": entry["bytes"], "xxh128": entry["xxh128"]}


def _written(snapshot: Any, to: Path) -> dict[str, Any]:
    digest = snapshot.write(to)
    return {"bytes": snapshot.num_bytes, "xxh128": digest}
