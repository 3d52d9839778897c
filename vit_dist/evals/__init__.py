"""Evaluators: each yields (name, value). One file each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vit_dist.core.registry import Plugin

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.core.world import World
    from vit_dist.data.manifest import ShardManifest
    from vit_dist.data.sets import TrainingSet
    from vit_dist.engines._protocol import Engine


@dataclass(frozen=True)
class EvalContext:
    """What an evaluator may look at.

    `val` is None where the recipe names no validation set; its labels are read as the model's head counts them.
    """

    engine: Engine
    recipe: Recipe
    world: World
    val: ShardManifest | None


class EvaluatorConfig(Plugin):
    """Base of every evaluator's config."""

    scores_head: ClassVar[bool] = True
    """Compares what the head says with labels of `EvalContext.val`, whose classes must be among the training set's."""

    def check_sets(self, recipe: Recipe) -> None:
        """Look at the sets that it will need, before training starts.

        Raises:
            ConfigError: one is not named, or cannot serve.
            DataError: one cannot be read.
        """

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """Names and values, the same on every rank. A collective."""
        raise NotImplementedError


def open_validation_set(recipe: Recipe, data: TrainingSet) -> ShardManifest | None:
    """The validation set with labels as the head counts them; None where the recipe names none.

    Where no evaluator compares its labels with what the head says, the set is returned as it is.

    Args:
        recipe: of the run.
        data: its training set.

    Raises:
        ConfigError: it has classes that the training set has not.
        DataError: the manifest cannot be read.
    """
    from vit_dist.data.classes import Classes, counted_as
    from vit_dist.data.manifest import read_manifest

    if not recipe.data.val:
        return None
    val = read_manifest(recipe.data.val)
    if not any(getattr(evaluator, "scores_head", True) for evaluator in recipe.evaluators):
        return val
    head = Classes(f"the training set {data.name!r}", recipe.data.num_classes, data.class_names)
    return counted_as(val, head, "data.val: the set", _OTHER_VAL)


_OTHER_VAL = (
    "pack or index both with the names of all classes in one file (--classes FILE), or name another set with "
    "data.val=URL, or none with data.val=''"
)
