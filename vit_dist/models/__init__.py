"""The model families, built from timm's parts. One public file a family; a name is a preset of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import Plugin

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.models._base import ImageModel


class ModelConfig(Plugin):
    """Base of every model family's config; `family` is the label of its curve in a study."""

    family: str = Field(description="label of its curve in a study, unless the recipe's `family` says another")
    head_bias: float = Field(
        0.0, description="initial bias of every logit; the paper's code pretrains with a sigmoid loss from -10"
    )

    def build(self, *, num_classes: int, image_size: int) -> ImageModel:
        """The module: float images [B, 3, H, W] in [-1, 1] -> logits [B, num_classes], with initial weights.

        Initial weights come from torch's global generator: seed it first.

        Raises:
            ConfigError: the image size does not fit the model.
        """
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Pixels of an image's side that one token or final feature stands for; it divides the image size. 1: any."""
        return 1

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe whose images do not fit the model.

        Raises:
            ValueError: the image size is no multiple of `stride`.
        """
        problem = self._misfit(recipe.data.image_size)
        if problem:
            raise ValueError(f"data.{problem}")

    def fit(self, image_size: int) -> None:
        """Refuse images of a size that does not fit the model.

        Raises:
            ConfigError: the image size is no multiple of `stride`.
        """
        problem = self._misfit(image_size)
        if problem:
            raise ConfigError(problem)

    def _misfit(self, image_size: int) -> str | None:
        if image_size > 0 and image_size % self.stride == 0:
            return None
        low = image_size // self.stride * self.stride
        fitting = f"{low}, {low + self.stride}" if low > 0 else f"{self.stride}"
        return (
            f"image_size={image_size} does not divide into the {self.stride}-pixel patches of {self.name}; "
            f"nearest that do: {fitting}"
        )
