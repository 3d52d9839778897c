"""BiT ResNets: pre-activation, GroupNorm, weight standardisation; the baselines of the paper's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from vit_dist.core.registry import MODELS
from vit_dist.models import ModelConfig
from vit_dist.models.vit import Positive, Rate

if TYPE_CHECKING:
    from vit_dist.models._bit import BiT

Stages = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Stem = Literal["imagenet", "small", "small/2"]


class BiTConfig(ModelConfig):
    """A BiT ResNet (arXiv 1912.11370): ResNet v2 with GroupNorm for BatchNorm and standardised kernels."""

    family: str = "bit"
    blocks: Stages = Field(description="residual blocks of each stage; every stage but the first halves the image")
    width_factor: Positive = Field(1, description="times the channels of every stage: the x2 of R50x2")
    width: Positive = Field(64, description="channels of the stem before the factor; each stage doubles its own")
    block: Literal["bottleneck", "basic"] = Field(
        "bottleneck", description="bottleneck: 1x1, 3x3, 1x1 and four times as wide outside; basic: two 3x3"
    )
    stem: Stem = Field(
        "imagenet",
        description="imagenet: 7x7 with stride 2, then max-pooling; small: one 3x3; small/2: the same with stride 2",
    )
    groups: Positive = Field(32, description="groups of each GroupNorm")
    stochastic_depth: Rate = Field(0.0, description="chance that an example skips a block of the last stage")

    @model_validator(mode="after")
    def _channels_fit(self) -> BiTConfig:
        check_channels(self.width * self.width_factor, self.groups)
        return self

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that leave each stage."""
        outside = self.width * self.width_factor * (4 if self.block == "bottleneck" else 1)
        return tuple(outside * 2**i for i in range(len(self.blocks)))

    def build(self, *, num_classes: int, image_size: int) -> BiT:
        """See `ModelConfig.build`; every image size will do."""
        from vit_dist.models._bit import BiT

        self.fit(image_size)
        return BiT(self, num_classes)


def check_channels(width: int, groups: int) -> None:
    """Raise ValueError unless the stem's channels divide into groups, and by 8 as timm rounds channels to that."""
    if width % groups:
        raise ValueError(f"{width} channels do not divide into groups={groups}")
    if width % 8:
        raise ValueError(f"{width} channels in the stem; the number must be a multiple of 8")


R50: dict[str, Any] = {"blocks": (3, 4, 6, 3)}
R101: dict[str, Any] = {"blocks": (3, 4, 23, 3)}
R152: dict[str, Any] = {"blocks": (3, 8, 36, 3)}
R200: dict[str, Any] = {"blocks": (3, 24, 36, 3)}

PRESETS: dict[str, dict[str, Any]] = {
    "bit": {},
    "R50x1": {**R50, "width_factor": 1},
    "R50x2": {**R50, "width_factor": 2},
    "R101x1": {**R101, "width_factor": 1},
    "R101x3": {**R101, "width_factor": 3},
    "R152x1": {**R152, "width_factor": 1},
    "R152x2": {**R152, "width_factor": 2},
    "R152x4": {**R152, "width_factor": 4},
    "R200x3": {**R200, "width_factor": 3},
    # For 28-pixel images on a CPU.
    "bit-demo": {"blocks": (1, 1, 1), "width": 16, "block": "basic", "stem": "small/2", "groups": 8},
    "bit-test": {"blocks": (1, 1), "width": 8, "stem": "small/2", "groups": 4},
}
for _name, _defaults in PRESETS.items():
    MODELS.register(_name, **_defaults)(BiTConfig)
