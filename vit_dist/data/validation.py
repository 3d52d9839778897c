"""The validation set of a run: what its labels mean to the head. No torch."""

from __future__ import annotations

from vit_dist.config.schema import Recipe
from vit_dist.data.classes import Classes, counted_as
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.sets import TrainingSet, held_out_slice

_OTHER_VAL = (
    "pack or index both with the names of all classes in one file, as `vit-dist data index --classes FILE` does, or "
    "name another set with data.val=URL, or none with data.val=''"
)


def open_validation_set(recipe: Recipe, data: TrainingSet) -> ShardManifest | None:
    """The validation set with labels as the head counts them, or what is held out of the training set; None: neither.

    Where no evaluator compares its labels with what the head says, the set is returned as it is.

    Args:
        recipe: of the run.
        data: its training set.

    Raises:
        ConfigError: it has classes that the training set has not.
        DataError: the manifest cannot be read.
    """
    if recipe.data.held_out:
        # Of the training set itself, and so with its classes. No slice of a slice: that of a part has none yet.
        whole = data.parts[0].manifest
        return whole.sliced(held_out_slice(recipe.data, whole))
    if not recipe.data.val:
        return None
    val = read_manifest(recipe.data.val)
    if not any(getattr(evaluator, "scores_head", True) for evaluator in recipe.evaluators):
        return val
    head = Classes(f"the training set {data.name!r}", recipe.data.num_classes, data.class_names)
    return counted_as(val, head, "data.val: the set", _OTHER_VAL)
