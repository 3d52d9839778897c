"""Evaluators: each yields (name, value). One file each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from vit_dist.core.marks import NON_IDENTITY, WHEN_SET
from vit_dist.core.metrics import Metric
from vit_dist.core.registry import Plugin
from vit_dist.core.run.measured import MeasuredOn, digest_of
from vit_dist.core.units import Duration

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.core.world import World
    from vit_dist.data.manifest import ShardManifest
    from vit_dist.engines._protocol import Engine


@dataclass(frozen=True)
class EvalContext:
    """What an evaluator may look at.

    `val` is None where the recipe names no validation set; its labels are read as the model's head counts them.
    `outputs` is a folder for files beside the values, such as pictures and tables, which rank 0 makes when it writes
    the first; None where nobody wants any. In `pictures` rank 0 leaves PNG images for the log, by the metric that they
    belong to and by name, before it yields it.
    """

    engine: Engine
    recipe: Recipe
    world: World
    val: ShardManifest | None
    outputs: Path | None = None
    pictures: dict[str, dict[str, bytes]] = field(default_factory=dict)


class EvaluatorConfig(Plugin):
    """Base of every evaluator's config."""

    scores_head: ClassVar[bool] = True
    """Compares what the head says with labels of `EvalContext.val`, whose classes must be among the training set's."""

    every: Annotated[Duration | None, NON_IDENTITY, WHEN_SET] = Field(
        None, description="how often this one looks, and at the end; 0 steps: at the end alone; left out: eval.every"
    )

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that names no data for it; reads nothing.

        Raises:
            ValueError: a set is not named.
        """

    def own_sets(self) -> Mapping[str, str]:
        """URLs of sets that it names itself, by its own field; the recipe's are known."""
        return {}

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

    def measures_on(self, recipe: Recipe, val: ShardManifest | None) -> MeasuredOn | None:
        """What `run` will look at: its values have tags of their own where the run's are of something else.

        Here: `EvalContext.val`, and all fields of the evaluator as settings. None: no set.

        Raises:
            ConfigError, DataError: as `check_sets`.
        """
        from vit_dist.config.schema import dump_identity

        if val is None:
            return None
        settings = {name: value for name, value in dump_identity(self).items() if name != "name"}
        return whole_set(val, recipe.data.image_size, recipe.data.val_fraction, settings)

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """Names and values, the same on every rank. A collective."""
        raise NotImplementedError


def whole_set(
    manifest: ShardManifest, image_size: int, crop: float, settings: Mapping[str, Any], *shots: ShardManifest
) -> MeasuredOn:
    """All of a set as what is measured on.

    Args:
        manifest: of the set.
        image_size: what its images become, in pixels a side.
        crop: fraction of an image's side that is kept.
        settings: what else the values depend on.
        shots: further sets that do not count as measured on, but whose class names matter.
    """
    names = [name for one in (manifest, *shots) for name in _own_names(one)]
    return MeasuredOn(
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        classes=digest_of(names),
        examples=manifest.num_samples,
        subset=None if manifest.part is None else manifest.num_chosen,
        image_size=image_size,
        crop=crop,
        settings={**settings, **({} if manifest.part is None else {"slice": str(manifest.part)})},
    )


def _own_names(manifest: ShardManifest) -> Sequence[str]:
    """The names of a set's classes in its own order, also where labels are read as another counts them."""
    if manifest.numbers is None:
        return manifest.classes
    known = dict(enumerate(manifest.classes))
    return [known.get(number, "") for number in manifest.numbers]
