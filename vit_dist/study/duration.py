"""What the runs of a study spend equally much of: epochs, examples or compute. No torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import Config
from vit_dist.core.units import Duration, Flops, is_bare, no_unit
from vit_dist.models.costs import model_cost, training_flops


def _length(value: object) -> Duration | Flops:
    if is_bare(value):
        raise ValueError(no_unit(value, (" epochs", " examples", " exaFLOPs")))
    return (
        Flops.parse(value) if isinstance(value, Flops | str) and "flop" in str(value).lower() else Duration.parse(value)
    )


class DurationRule(Config):
    """What is held equal over the cells, and how much of it.

    epochs: each makes so many passes over its subset; examples: each sees as many; compute: each spends as many FLOPs,
    so that a cheaper model sees more examples. The ViT paper does not say which of them its Figure 4 held equal.
    """

    equal: Literal["epochs", "examples", "compute"] = Field(description="what every run spends equally much of")
    length: Annotated[Duration | Flops, BeforeValidator(_length)] = Field(
        description="so much of it: '7 epochs', '300M examples', '500 exaFLOPs'"
    )

    @model_validator(mode="after")
    def _fits(self) -> DurationRule:
        unit = "compute" if isinstance(self.length, Flops) else self.length.unit
        if unit != self.equal:
            what = "FLOPs" if self.equal == "compute" else self.equal
            raise ValueError(f"equal {self.equal} need a length in {what}, such as '{_EXAMPLE[self.equal]}'")
        return self

    def horizon(self, recipe: Recipe) -> Duration:
        """How long a recipe is trained.

        Raises:
            ConfigError: compute is held equal, and what the model costs is not known.
        """
        if isinstance(self.length, Duration):
            return self.length
        size, classes = recipe.data.image_size, recipe.data.num_classes
        cost = model_cost(recipe.model, num_classes=classes, image_size=size, training=True)
        if cost is None:
            raise ConfigError(
                f"{recipe.name}: equal compute needs the cost of {recipe.model.name}, which is known for ViT, BiT and "
                f"hybrid models only; hold examples or epochs equal"
            )
        return Duration(Fraction(round(self.length.value / training_flops(cost.macs, 1))), "examples")


_EXAMPLE = {"epochs": "20 epochs", "examples": "40k examples", "compute": "100 exaFLOPs"}
