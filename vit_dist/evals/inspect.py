"""A look at the attention of the model while it trains, as pictures in its log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import EVALUATORS, AnyPlace
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.core.units import counted
from vit_dist.evals import EvalContext, EvaluatorConfig, whole_set
from vit_dist.models.bit import BiTConfig

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.data.manifest import ShardManifest

DISTANCE = "inspect/attention_distance"
"""Mean over all heads of all layers, in pixels."""


@EVALUATORS.register("inspect")
class InspectConfig(EvaluatorConfig):
    """Pictures `inspect/rollout`, `inspect/distance`, ... in the log, and `inspect/attention_distance` in pixels.

    What `vit-dist inspect` shows of a checkpoint, as far as one forward pass shows it, of a few images that are the
    same each time. Every rank runs them all, and rank 0 draws, some seconds long.
    """

    scores_head: ClassVar[bool] = False

    show: Annotated[tuple[Literal["rollout", "distance", "layers"], ...], Field(strict=False, min_length=1)] = Field(
        ("rollout", "distance"), description="a picture each: see `vit-dist inspect --help`"
    )
    images: Annotated[int, Field(ge=1, le=128)] = Field(
        12, description="of how many images, evenly spaced in the set; maps are drawn of the first 12"
    )
    set: AnyPlace = Field("", description="URL of the manifest that they are of; empty: the recipe's data.val")

    @field_validator("show")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected each view once, got {', '.join(value)}")
        return value

    def check(self, recipe: Recipe) -> None:
        """See EvaluatorConfig."""
        if isinstance(recipe.model, BiTConfig):
            raise ValueError(
                f"evaluators: inspect looks at attention, and {recipe.model.name} has none; leave it out (`vit-dist "
                f"inspect --show field` is for ResNets)"
            )
        if recipe.data.is_named and not (self.set or recipe.data.val):
            raise ValueError("evaluators: inspect has no images: give it `set: URL`, or the recipe a data.val")

    def own_sets(self) -> Mapping[str, str]:
        """See EvaluatorConfig."""
        return {"set": self.set} if self.set else {}

    def check_sets(self, recipe: Recipe) -> None:
        """See EvaluatorConfig."""
        self._open(recipe)

    def _open(self, recipe: Recipe) -> ShardManifest:
        from vit_dist.data.manifest import read_manifest

        url = self.set or recipe.data.val
        if not url:
            raise ConfigError("evaluators: inspect has no images: give it `set: URL`, or the recipe a data.val")
        manifest = read_manifest(url)
        if manifest.num_samples < self.images:
            raise ConfigError(
                f"evaluators: inspect: images={self.images}, and {manifest.name!r} has "
                f"{counted(manifest.num_samples, 'image')}; ask for fewer"
            )
        return manifest

    def measures_on(self, recipe: Recipe, val: ShardManifest | None) -> MeasuredOn | None:  # noqa: ARG002
        """See EvaluatorConfig. Which pictures are drawn does not matter to the value."""
        data = recipe.data
        return whole_set(self._open(recipe), data.image_size, data.val_fraction, {"images": self.images})

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig."""
        from vit_dist.evals._inspect import attended_in_training

        url = self.set or context.recipe.data.val
        distance, pictures = attended_in_training(context, url, self.images, self.show)
        context.pictures[DISTANCE] = pictures
        yield DISTANCE, distance
