"""RandAugment's operations: which are drawn and how strong they are, without an image; and what each does to one.

torchvision's are those of its RandAugment. big_vision's are those that "How to train your ViT?" was trained with
(google-research/big_vision, pp/autoaugment.py), with torchvision's functions for them. They work on pictures of
Pillow's, in a fifth of the time that they take on tensors. Neither draws a number of torch's generators: those are
shared by all threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from vit_dist.config.augment import RandAugmentConfig
from vit_dist.core.seeding import uniform
from vit_dist.data.torchvision_parts import functional as tv

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


def apply_op(image: Any, op: Op) -> Any:
    """A picture of Pillow's in mode RGB -> another of the same size."""
    return _APPLY[op.name](image, op.values, [op.fill] * 3)


def _affine(
    image: Any, fill: list[int], *, move: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Any:
    # Shears leave the upper left corner where it is, in torchvision as in big_vision.
    centre = [0.0, 0.0] if any(shear) else None
    degrees = [math.degrees(math.atan(level)) for level in shear]
    whole = [int(m) for m in move]
    return tv.affine(image, angle=0.0, translate=whole, scale=1.0, shear=degrees, fill=fill, center=centre)


def _cutout(image: Any, values: tuple[float, ...], fill: list[int]) -> Any:
    half, row, column = (int(value) for value in values)
    cut = image.copy()
    # What lies outside of the image is left out.
    cut.paste(tuple(fill), (column - half, row - half, column + half, row + half))
    return cut


def _solarize_add(image: Any, values: tuple[float, ...], _: list[int]) -> Any:
    # The one that torchvision has not: dark pixels become lighter.
    return image.point([min(255, v + int(values[0])) if v < 128 else v for v in range(256)] * 3)


_APPLY: dict[str, Callable[[Any, tuple[float, ...], list[int]], Any]] = {
    "Identity": lambda image, _, __: image,
    "AutoContrast": lambda image, _, __: tv.autocontrast(image),
    "Equalize": lambda image, _, __: tv.equalize(image),
    "Invert": lambda image, _, __: tv.invert(image),
    "Rotate": lambda image, v, fill: tv.rotate(image, v[0], fill=fill),
    "Posterize": lambda image, v, _: tv.posterize(image, int(v[0])),
    "Solarize": lambda image, v, _: tv.solarize(image, v[0]),
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
