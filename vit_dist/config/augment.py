"""What a recipe may say of how training images are changed: `data.augment` and `data.mixup`. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from vit_dist.core.registry import Config

Floats = Annotated[tuple[float, ...], Field(strict=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=2)]


class Setting(NamedTuple):
    """One strength of "How to train your ViT?": RandAugment's layers and magnitude, and MixUp's alpha."""

    num_ops: int
    magnitude: int
    alpha: float


AUGREG = {
    "none": Setting(0, 0, 0.0),
    "light1": Setting(2, 0, 0.0),
    "light2": Setting(2, 10, 0.2),
    "medium1": Setting(2, 15, 0.2),
    "medium2": Setting(2, 15, 0.5),
    "strong1": Setting(2, 20, 0.5),
    "strong2": Setting(2, 20, 0.8),
}
"""Steiner et al. 2021 (arXiv 2106.10270), section 3.2, and big_vision's configs/vit_i21k.py."""


class RandAugmentConfig(Config):
    """RandAugment (Cubuk et al. 2020): some operations in a row, each drawn from all with the same chance."""

    num_ops: Annotated[int, Field(ge=1, le=16)] = Field(2, description="operations an image goes through")
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(
        9, description="how strong each is; the strongest are 30 of torchvision, nominally 10 of big_vision"
    )
    ops: Literal["torchvision", "big_vision"] = Field(
        "torchvision",
        description="torchvision: its 14 operations and their ranges; big_vision: the 16 that AugReg was trained with",
    )


class JitterConfig(Config):
    """Colour jitter: torchvision's ColorJitter, in an order of its own for each image."""

    brightness: Strength = Field(0.0, description="b: times a factor in [max(0, 1 - b), 1 + b]")
    contrast: Strength = Field(0.0, description="as brightness")
    saturation: Strength = Field(0.0, description="as brightness")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="h: turned by up to h of the circle either way")
    probability: Share = Field(1.0, description="fraction of the images")

    @model_validator(mode="after")
    def _does_something(self) -> JitterConfig:
        if not any((self.brightness, self.contrast, self.saturation, self.hue)):
            raise ValueError(
                "brightness, contrast, saturation and hue are all 0: give one of them, or leave data.augment.jitter out"
            )
        return self


class EraseConfig(Config):
    """Random erasing (Zhong et al. 2020): a rectangle of the image is painted over, as by torchvision."""

    probability: Share = Field(0.5, description="fraction of the images")
    area: Floats = Field((0.02, 0.33), description="range of the rectangle's area, as a fraction of the image's")
    aspect: Floats = Field((0.3, 3.3), description="range of the rectangle's height over its width")
    fill: Literal["grey", "noise"] = Field(
        "grey", description="grey: 128, which a model gets as 0; noise: every value drawn for itself"
    )

    @field_validator("area", "aspect")
    @classmethod
    def _is_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return check_range(value)

    @field_validator("area")
    @classmethod
    def _is_inside(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value[1] > 1:
            raise ValueError(f"{list(value)}: an image has no more than 1 of its area")
        return value


class MixupConfig(Config):
    """MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of example j of the global batch with j + B/2.

    An alpha is that of Beta(alpha, alpha), from which each pair draws its lambda; 0 switches that one off.
    """

    alpha: Annotated[float, Field(ge=0, le=4)] = Field(0.0, description="of MixUp")
    cutmix_alpha: Annotated[float, Field(ge=0, le=4)] = Field(0.0, description="of CutMix")
    cutmix_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="fraction of the mixed pairs that are cut where both are on"
    )
    probability: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="fraction of the pairs that are mixed")

    @model_validator(mode="after")
    def _does_something(self) -> MixupConfig:
        if not self.alpha and not self.cutmix_alpha:
            raise ValueError("alpha and cutmix_alpha are both 0: give one of them, or leave data.mixup out")
        return self


class AugmentConfig(Config):
    """How a training image is cropped and changed; a text is short for {crop: TEXT}.

    In this order: crop and flip, resize, colour jitter, RandAugment, random erasing; MixUp and CutMix come last.
    """

    crop: Literal["inception", "random", "flip", "none"] = Field(
        "inception",
        description="inception: random area crop and flip; random: squash to `resize`, cut the image's size out of it, "
        "flip; flip: resize and flip; none: resize only",
    )
    resize: Annotated[int, Field(ge=1)] | None = Field(
        None, description="pixels a side that crop=random squashes to; BiT takes 512 for 480, 160 for 128"
    )
    augreg: Literal["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"] | None = Field(
        None, description="RandAugment and MixUp together as strong as in arXiv 2106.10270; see docs/data.md"
    )
    randaugment: RandAugmentConfig | None = Field(None, description="operations at random; left out: none")
    jitter: JitterConfig | None = Field(None, description="of the colours; left out: none")
    erase: EraseConfig | None = Field(None, description="of a random rectangle; left out: none")

    @field_validator("augreg")
    @classmethod
    def _none_is_none(cls, value: str | None) -> str | None:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _resize_is_of_a_random_crop(self) -> AugmentConfig:
        if self.crop == "random" and self.resize is None:
            raise ValueError(
                "crop=random squashes images before it cuts: give resize, such as {crop: random, resize: 512}"
            )
        if self.crop != "random" and self.resize is not None:
            raise ValueError(f"resize={self.resize} is of crop=random, not of crop={self.crop}: leave it out")
        return self

    @model_validator(mode="after")
    def _one_strength(self) -> AugmentConfig:
        if self.augreg is not None and self.randaugment is not None:
            raise ValueError(f"randaugment beside augreg={self.augreg}, {self.numbers}: leave one of them out")
        return self

    def check_size(self, image_size: int) -> None:
        """Refuse to cut more out of an image than it is squashed to.

        Raises:
            ValueError: `resize` is fewer pixels than the model's images have.
        """
        if self.resize is not None and self.resize < image_size:
            raise ValueError(
                f"augment.resize: {self.resize} pixels are fewer than image_size={image_size}, the side of what is cut "
                f"out of them; give {image_size} or more"
            )

    @property
    def operations(self) -> RandAugmentConfig | None:
        """RandAugment as it is given, or as the strength of AugReg says; None: none."""
        if self.augreg is None:
            return self.randaugment
        setting = AUGREG[self.augreg]
        return RandAugmentConfig(num_ops=setting.num_ops, magnitude=setting.magnitude, ops="big_vision")

    @property
    def alpha(self) -> float:
        """Of MixUp, as the strength of AugReg says; 0 where none is named."""
        return AUGREG[self.augreg].alpha if self.augreg is not None else 0.0

    @property
    def numbers(self) -> str:
        """What the strength of AugReg stands for, in words."""
        assert self.augreg is not None
        setting = AUGREG[self.augreg]
        return (
            f"which is randaugment={{num_ops: {setting.num_ops}, magnitude: {setting.magnitude}, ops: big_vision}} and "
            f"{f'MixUp of alpha {setting.alpha}' if setting.alpha else 'no MixUp'}"
        )

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        # Recipes from before there was more than a crop read, and count, as they did.
        plain = {name: value for name, value in handler(self).items() if value is not None}
        return plain["crop"] if plain.keys() == {"crop"} else plain


def spelt_augment(value: Any) -> Any:
    """`augment: flip` is short for `augment: {crop: flip}`."""
    return {"crop": value} if isinstance(value, str) else value


def check_range(value: tuple[float, ...]) -> tuple[float, ...]:
    """[low, high] of numbers above 0.

    Raises:
        ValueError: something else.
    """
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise ValueError("expected two numbers [low, high] with 0 < low <= high")
    return value
