"""Evaluators: each yields (name, value). One file each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vit_dist.core.metrics import Metric
from vit_dist.core.registry import Plugin

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.core.world import World
    from vit_dist.data.manifest import ShardManifest
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

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that names no data for it; reads nothing.

        Raises:
            ValueError: a set is not named.
        """

    def check_sets(self, recipe: Recipe) -> None:
        """Look at the sets that it will need, before training starts.

        Raises:
            ConfigError: one is not named, or cannot serve.
            DataError: one cannot be read.
        """

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric] | None:  # noqa: ARG002
        """The tags that `run` yields for a recipe, and how their values are read; no torch.

        None: it does not say, so that what is asked of it can be known only when it has run.
        """
        return None

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """Names and values, the same on every rank. A collective."""
        raise NotImplementedError
