"""How a training image is cropped and changed: first what is drawn for it, then what that makes of its pixels.

What is drawn is a function of (seed, epoch, ordinal of the sample in its manifest) and of the image's size, so an image
is changed the same way on whatever rank, by whatever thread and after whatever restart it is read. No generator of
torch's is asked: they are shared by the decode threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.augment import AugmentConfig, EraseConfig, JitterConfig
from vit_dist.config.schema import DataConfig
from vit_dist.core.seeding import hash64, permutation, uniform, uniforms
from vit_dist.data.decode import Encoded, resize
from vit_dist.data.randaugment import GREY, Op, apply_op, draw_ops
from vit_dist.data.torchvision_parts import functional as tv

_TAG_CROP = 0x43524F50  # "CROP"
_TAG_JITTER = 0x4A4954  # "JIT"
_TAG_OPS = 0x4F5053  # "OPS"
_TAG_ERASE = 0x4552415345  # "ERASE"
_TRIES = 10


@dataclass(frozen=True)
class Erased:
    """A rectangle that is painted over; `noise` is the key of its values, None: grey."""

    top: int
    left: int
    height: int
    width: int
    noise: int | None


@dataclass(frozen=True)
class Draw:
    """What was drawn for one image in one epoch.

    Attributes:
        box: top, left, height and width of the crop; None: all of the image.
        flip: left and right are exchanged.
        jitter: changes of the colours in their order: name and factor.
        ops: of RandAugment.
        erased: of random erasing; None: nothing.
    """

    box: tuple[int, int, int, int] | None = None
    flip: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    ops: tuple[Op, ...] = ()
    erased: Erased | None = None

    def words(self) -> list[str]:
        """For people, a few words for each change."""
        said = [f"crop {self.box[3]} x {self.box[2]}{', flipped' if self.flip else ''}"] if self.box else []
        said += ["flipped"] if self.flip and not self.box else []
        said += [f"{name} {factor:.2f}" for name, factor in self.jitter]
        said += [op.words() for op in self.ops]
        return said + ([f"erased {self.erased.width} x {self.erased.height}"] if self.erased else [])


@dataclass(frozen=True)
class Augment:
    """What is drawn and done by a recipe.

    Attributes:
        config: `data.augment`.
        size: S, the side of the result in pixels.
        area: range of the crop's area, as a fraction of the image's.
        aspect: range of the crop's width over height.
        seed: the run's seed.
    """

    config: AugmentConfig
    size: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    seed: int

    @classmethod
    def of(cls, config: DataConfig, seed: int) -> Augment:
        """The augmentation of a recipe's data section."""
        area, aspect = config.crop_area, config.crop_aspect
        return cls(config.augment, config.image_size, (area[0], area[1]), (aspect[0], aspect[1]), seed)

    def apply(self, image: Tensor, *, epoch: int, ordinal: int) -> Tensor:
        """uint8 [3, H, W] -> uint8 [3, S, S]."""
        return self.render(image, self.draw(image.shape[1], image.shape[2], epoch=epoch, ordinal=ordinal))

    def decode(self, image: Encoded, *, epoch: int, ordinal: int) -> Tensor:
        """The same of an image of which no more need be decoded than its crop: -> uint8 [3, S, S].

        Raises:
            DecodeError: it cannot be decoded.
        """
        draw = self.draw(*image.size, epoch=epoch, ordinal=ordinal)
        return self.change(self.cut(image, draw), draw)

    def cut(self, image: Encoded, draw: Draw) -> Tensor:
        """What a draw cuts out of an image, of which no more need be decoded: uint8 [3, height, width].

        Raises:
            DecodeError: it cannot be decoded.
        """
        return image.whole() if draw.box is None else image.region(draw.box)

    def draw(self, height: int, width: int, *, epoch: int, ordinal: int) -> Draw:
        """What is drawn for an image of height x width pixels."""
        config, operations = self.config, self.config.operations

        def key(tag: int) -> int:
            return hash64(self.seed, epoch, tag, ordinal)

        crop = key(_TAG_CROP)
        return Draw(
            box=self._box(height, width, crop),
            flip=config.crop != "none" and uniform(crop, 0) < 0.5,
            jitter=_draw_jitter(config.jitter, key(_TAG_JITTER)) if config.jitter else (),
            ops=draw_ops(operations, key(_TAG_OPS), self.size) if operations else (),
            erased=_draw_erased(config.erase, key(_TAG_ERASE), self.size) if config.erase else None,
        )

    def render(self, image: Tensor, draw: Draw) -> Tensor:
        """What a draw makes of an image: uint8 [3, H, W] -> uint8 [3, S, S]."""
        if draw.box is not None:
            top, left, height, width = draw.box
            image = image[:, top : top + height, left : left + width]
        return self.change(image, draw)

    def change(self, image: Tensor, draw: Draw) -> Tensor:
        """What a draw makes of what it has cut out: uint8 [3, height, width] -> uint8 [3, S, S]."""
        image = resize(image, self.size, self.size)
        if draw.flip:
            image = image.flip(-1)
        if draw.jitter or draw.ops:
            picture = tv.to_pil_image(image)
            for name, factor in draw.jitter:
                picture = getattr(tv, f"adjust_{name}")(picture, factor)
            for op in draw.ops:
                picture = apply_op(picture, op)
            image = tv.pil_to_tensor(picture)
        return _erase(image, draw.erased) if draw.erased is not None else image

    def _box(self, height: int, width: int, key: int) -> tuple[int, int, int, int] | None:
        """What is cut out; None: nothing."""
        if self.config.crop == "inception":
            return self.crop_box(height, width, key)
        if self.config.resize is None:
            return None
        # Squashing, then cutting S of R pixels, is to cut S / R of either side, then to squash.
        share = self.size / self.config.resize
        h, w = max(1, round(height * share)), max(1, round(width * share))
        return int(uniform(key, 1) * (height - h + 1)), int(uniform(key, 2) * (width - w + 1)), h, w

    def crop_box(self, height: int, width: int, key: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of a random crop: Inception's (Szegedy et al. 2015), ten tries, then the centre."""
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for attempt in range(_TRIES):
            for_area, for_aspect, for_top, for_left = uniforms(range(1, 5), key, attempt)
            area = height * width * (self.area[0] + for_area * (self.area[1] - self.area[0]))
            aspect = math.exp(low + for_aspect * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(for_top * (height - h + 1)), int(for_left * (width - w + 1)), h, w
        ratio = min(max(width / height, self.aspect[0]), self.aspect[1])
        w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        return (height - h) // 2, (width - w) // 2, h, w


_JITTER = ("brightness", "contrast", "saturation", "hue")
"""In the order in which torchvision's ColorJitter counts them."""


def _draw_jitter(config: JitterConfig, key: int) -> tuple[tuple[str, float], ...]:
    if uniform(key, 0) >= config.probability:
        return ()
    strengths = {
        "brightness": config.brightness,
        "contrast": config.contrast,
        "saturation": config.saturation,
        "hue": config.hue,
    }
    drawn = []
    for number in permutation(len(_JITTER), key, 1).tolist():
        name = _JITTER[number]
        strength = strengths[name]
        low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
        if strength:
            drawn.append((name, low + uniform(key, 2, number) * (high - low)))
    return tuple(drawn)


def _draw_erased(config: EraseConfig, key: int, size: int) -> Erased | None:
    """As torchvision's RandomErasing draws: up to ten tries for a rectangle that fits, then none."""
    if uniform(key, 0) >= config.probability:
        return None
    low, high = math.log(config.aspect[0]), math.log(config.aspect[1])
    for attempt in range(_TRIES):
        area = size * size * (config.area[0] + uniform(key, attempt, 1) * (config.area[1] - config.area[0]))
        aspect = math.exp(low + uniform(key, attempt, 2) * (high - low))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size and 0 < width < size:
            top = int(uniform(key, attempt, 3) * (size - height + 1))
            left = int(uniform(key, attempt, 4) * (size - width + 1))
            noise = hash64(key, attempt, 5) if config.fill == "noise" else None
            return Erased(top, left, height, width, noise)
    return None


def _erase(image: Tensor, erased: Erased) -> Tensor:
    shape = (3, erased.height, erased.width)
    if erased.noise is None:
        values = torch.full((3, 1, 1), GREY, dtype=torch.uint8)
    else:
        words = np.asarray(hash64(erased.noise, np.arange(-(-math.prod(shape) // 8), dtype=np.uint64)))
        # Of little-endian words, wherever it runs.
        values = torch.from_numpy(words.astype("<u8").view(np.uint8)[: math.prod(shape)].reshape(shape))
    result: Tensor = tv.erase(image, erased.top, erased.left, erased.height, erased.width, values)
    return result
