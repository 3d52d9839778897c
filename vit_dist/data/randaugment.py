"""RandAugment's operations: which are drawn and how strong they are, without an image; and what each does to one.

torchvision's are those of its RandAugment. big_vision's are those that "How to train your ViT?" was trained with
(google-research/big_vision, pp/autoaugment.py), with torchvision's functions for them. Neither draws a number of
torch's generators: they are shared by all threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from vit_dist.config.augment import RandAugmentConfig
from vit_dist.core.seeding import uniform

GREY = 128
"""What a model gets as 0.004: big_vision's filling of what comes in from outside of an image."""

_STRONGEST = 30  # of torchvision, whose magnitudes are 0 to 30
_LEVEL = 10  # of big_vision, which may be exceeded
_SIDE = 224  # pixels for which big_vision gives shifts
_WHITE = 255

_FACTORS = frozenset(["Brightness", "Color", "Contrast", "Sharpness"])
_UNITS = {"Rotate": " deg", "TranslateX": " px", "TranslateY": " px", "Posterize": " bits"}


class Op(NamedTuple):
    """One operation that was drawn.

    Attributes:
        name: as torchvision and big_vision call it.
        values: how strong it is, in the units of its function; () where there is nothing to say.
        fill: of what comes in from outside, 0 to 255.
    """

    name: str
    values: tuple[float, ...] = ()
    fill: int = 0

    def words(self) -> str:
        """For people, such as `Rotate -30 deg`."""
        if not self.values:
            return self.name
        value = self.values[0]
        if self.name == "Cutout":
            return f"Cutout {2 * value:.0f} px"
        if self.name in _FACTORS:
            return f"{self.name} x {1 + value:.2f}"
        if self.name == "Solarize" and value > _WHITE:
            return "Solarize nothing"
        return f"{self.name} {value:.3g}{_UNITS.get(self.name, '')}"


# By the share of the strongest magnitude, m / 30, and the image's side in pixels; and whether half are negative.
_TORCHVISION: dict[str, tuple[Callable[[float, int], float] | None, bool]] = {
    "Identity": (None, False),
    "ShearX": (lambda share, _: 0.3 * share, True),
    "ShearY": (lambda share, _: 0.3 * share, True),
    "TranslateX": (lambda share, side: int(150 / 331 * side * share), True),
    "TranslateY": (lambda share, side: int(150 / 331 * side * share), True),
    "Rotate": (lambda share, _: 30 * share, True),
    "Brightness": (lambda share, _: 0.9 * share, True),
    "Color": (lambda share, _: 0.9 * share, True),
    "Contrast": (lambda share, _: 0.9 * share, True),
    "Sharpness": (lambda share, _: 0.9 * share, True),
    "Posterize": (lambda share, _: round(8 - 4 * share), False),
    "Solarize": (lambda share, _: 255 * (1 - share), False),
    "AutoContrast": (None, False),
    "Equalize": (None, False),
}

# By level / 10 and the image's side. Factors are 0.1 at level 0, 1.9 at level 10.
_BIG_VISION: dict[str, tuple[Callable[[float, int], float] | None, bool]] = {
    "AutoContrast": (None, False),
    "Equalize": (None, False),
    "Invert": (None, False),
    "Rotate": (lambda level, _: 30 * level, True),
    # 0 bits are 1 there too: its shift by 8 stops at 7.
    "Posterize": (lambda level, _: min(8, max(1, int(4 * level))), False),
    "Solarize": (lambda level, _: int(256 * level), False),
    "Color": (lambda level, _: 1.8 * level + 0.1 - 1, False),
    "Contrast": (lambda level, _: 1.8 * level + 0.1 - 1, False),
    "Brightness": (lambda level, _: 1.8 * level + 0.1 - 1, False),
    "Sharpness": (lambda level, _: 1.8 * level + 0.1 - 1, False),
    "ShearX": (lambda level, _: 0.3 * level, True),
    "ShearY": (lambda level, _: 0.3 * level, True),
    "TranslateX": (lambda level, side: int(100 * level * side / _SIDE), True),
    "TranslateY": (lambda level, side: int(100 * level * side / _SIDE), True),
    "Cutout": (lambda level, side: int(40 * level * side / _SIDE), False),
    "SolarizeAdd": (lambda level, _: int(110 * level), False),
}


def draw_ops(config: RandAugmentConfig, key: int, side: int) -> tuple[Op, ...]:
    """The operations of one image of side x side pixels, as a function of `key` alone."""
    ours = config.ops == "torchvision"
    space, fill = (_TORCHVISION, 0) if ours else (_BIG_VISION, GREY)
    strength = config.magnitude / (_STRONGEST if ours else _LEVEL)
    names, drawn = list(space), []
    for layer in range(config.num_ops):
        name = names[int(uniform(key, layer, 0) * len(names))]
        value, is_signed = space[name]
        values = [] if value is None else [value(strength, side)]
        if is_signed and uniform(key, layer, 1) < 0.5:
            values = [-number for number in values]
        if name == "Cutout":
            values += [int(uniform(key, layer, 2) * side), int(uniform(key, layer, 3) * side)]
        drawn.append(Op(name, tuple(values), fill))
    return tuple(drawn)


def apply_op(image: Tensor, op: Op) -> Tensor:
    """uint8 [3, S, S] -> uint8 [3, S, S]."""
    result: Tensor = _APPLY[op.name](image, op.values, [float(op.fill)] * 3)
    return result


def _affine(
    image: Tensor, fill: list[float], *, move: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    # Shears leave the upper left corner where it is, in torchvision as in big_vision.
    centre = [0.0, 0.0] if any(shear) else None
    degrees = [math.degrees(math.atan(level)) for level in shear]
    moved: Tensor = tv.affine(
        image, angle=0.0, translate=[int(m) for m in move], scale=1.0, shear=degrees, fill=fill, center=centre
    )
    return moved


def _cutout(image: Tensor, values: tuple[float, ...], fill: list[float]) -> Tensor:
    half, row, column = (int(value) for value in values)
    top, left = max(0, row - half), max(0, column - half)
    bottom, right = (min(n, at + half) for n, at in zip(image.shape[1:], (row, column), strict=True))
    grey = torch.full((3, 1, 1), int(fill[0]), dtype=torch.uint8)
    erased: Tensor = tv.erase(image, top, left, bottom - top, right - left, grey)
    return erased


def _solarize(image: Tensor, values: tuple[float, ...], _: list[float]) -> Tensor:
    # torchvision refuses thresholds that no pixel reaches.
    solarized: Tensor = tv.solarize(image, values[0]) if values[0] <= _WHITE else image
    return solarized


def _solarize_add(image: Tensor, values: tuple[float, ...], _: list[float]) -> Tensor:
    # The one that torchvision has not: dark pixels become lighter.
    added = (image.to(torch.int16) + int(values[0])).clamp_(0, 255).to(torch.uint8)
    return torch.where(image < 128, added, image)


_APPLY: dict[str, Callable[[Tensor, tuple[float, ...], list[float]], Tensor]] = {
    "Identity": lambda image, _, __: image,
    "AutoContrast": lambda image, _, __: tv.autocontrast(image),
    "Equalize": lambda image, _, __: tv.equalize(image),
    "Invert": lambda image, _, __: tv.invert(image),
    "Rotate": lambda image, v, fill: tv.rotate(image, v[0], fill=fill),
    "Posterize": lambda image, v, _: tv.posterize(image, int(v[0])),
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, v, _: tv.adjust_saturation(image, 1 + v[0]),
    "Contrast": lambda image, v, _: tv.adjust_contrast(image, 1 + v[0]),
    "Brightness": lambda image, v, _: tv.adjust_brightness(image, 1 + v[0]),
    "Sharpness": lambda image, v, _: tv.adjust_sharpness(image, 1 + v[0]),
    "ShearX": lambda image, v, fill: _affine(image, fill, shear=(v[0], 0)),
    "ShearY": lambda image, v, fill: _affine(image, fill, shear=(0, v[0])),
    "TranslateX": lambda image, v, fill: _affine(image, fill, move=(v[0], 0)),
    "TranslateY": lambda image, v, fill: _affine(image, fill, move=(0, v[0])),
    "Cutout": _cutout,
}
