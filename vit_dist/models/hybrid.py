"""Hybrids: a ViT whose patches are the positions of a ResNet's feature map (section 3.1 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from vit_dist.core.registry import MODELS
from vit_dist.models.bit import Stages, Stem, check_channels
from vit_dist.models.vit import BASE, LARGE, Positive, ViTConfig, sizes

if TYPE_CHECKING:
    from vit_dist.models._vit import ViT


class HybridConfig(ViTConfig):
    """A ViT over the feature map of a post-activation ResNet; `patch_size` counts positions of that map."""

    family: str = "hybrid"
    patch_size: Positive = Field(1, description="side of a patch, in positions of the feature map")
    stages: Stages = Field(description="residual blocks of each stage; every stage but the first halves the image")
    backbone_width: Positive = Field(64, description="channels of the stem; each stage doubles its own")
    stem: Stem = Field(
        "imagenet",
        description="imagenet: 7x7 with stride 2, then max-pooling; small: one 3x3; small/2: the same with stride 2",
    )
    groups: Positive = Field(32, description="groups of each GroupNorm of the backbone")

    @model_validator(mode="after")
    def _channels_fit(self) -> HybridConfig:
        check_channels(self.backbone_width, self.groups)
        return self

    @property
    def stride(self) -> int:
        """Side of a patch in pixels of the image."""
        stem = {"imagenet": 4, "small": 1, "small/2": 2}[self.stem]
        return (stem << (len(self.stages) - 1)) * self.patch_size

    def build(self, *, num_classes: int, image_size: int) -> ViT:
        """See `ModelConfig.build`; `stride` must divide the image size."""
        from vit_dist.models._hybrid import build_hybrid

        self.fit(image_size)
        return build_hybrid(self, num_classes=num_classes, image_size=image_size)


# The /16 hybrids have the blocks of the fourth stage in the third (section 4.1).
S32: dict[str, Any] = {"stages": (3, 4, 6, 3)}
S16: dict[str, Any] = {"stages": (3, 4, 9)}
SMALL: dict[str, Any] = {"stages": (1, 1), "stem": "small/2"}

PRESETS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "R50+ViT-B/32": {**S32, **BASE},
    "R50+ViT-B/16": {**S16, **BASE},
    "R50+ViT-L/32": {**S32, **LARGE},
    "R50+ViT-L/16": {**S16, **LARGE},
    # For 28-pixel images on a CPU.
    "hybrid-demo": {**SMALL, "backbone_width": 8, "groups": 4, **sizes(64, 2, 4)},
    "hybrid-test": {**SMALL, "backbone_width": 8, "groups": 4, **sizes(32, 1, 2)},
}
for _name, _defaults in PRESETS.items():
    MODELS.register(_name, **_defaults)(HybridConfig)
