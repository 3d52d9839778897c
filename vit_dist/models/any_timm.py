"""Any other model of timm: `timm:convnext_tiny`. Initial weights are timm's; the head is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from vit_dist.core.registry import MODELS
from vit_dist.models import ModelConfig

if TYPE_CHECKING:
    from vit_dist.models._any_timm import TimmModel

PREFIX = "timm:"


@MODELS.register_prefix(PREFIX)
class TimmConfig(ModelConfig):
    """A model by timm's name, without weights. Models with BatchNorm are refused."""

    family: str = "timm"
    args: dict[str, Any] = Field({}, description="more arguments of timm.create_model, such as {drop_path_rate: 0.1}")

    @property
    def architecture(self) -> str:
        """The name without its prefix."""
        return self.name.removeprefix(PREFIX)

    def build(self, *, num_classes: int, image_size: int) -> TimmModel:
        """See `ModelConfig.build`.

        Raises:
            ConfigError: timm knows no such model, or it cannot be made as asked, or it has BatchNorm.
        """
        from vit_dist.models._any_timm import TimmModel

        return TimmModel(self, num_classes, image_size)
