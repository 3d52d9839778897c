"""From the bytes of an image to uint8 [3, S, S]. Of data/, only this, mixup, reader and stream need torch.

Randomness is a function of (seed, epoch, ordinal of the sample in its manifest), so an image is cropped the same
way on whatever rank and after whatever restart it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

from vit_dist.config.schema import DataConfig
from vit_dist.core.seeding import hash64, uniform
from vit_dist.data.images import JPEG_BEGINS, DecodeError, check_jpeg, load

_TAG_CROP = 0x43524F50  # "CROP"
_TRIES = 10
_LONG = 16
_BETWEEN = 1 << 24  # pixels


def decode(content: bytes | memoryview) -> Tensor:
    """Bytes of an image of any of `images.FORMATS` -> uint8 [3, H, W], by the rules that stand there.

    Only JPEGs go to torchvision, which is faster there: its PNG decoder dies of some damaged files, and takes the
    whole process with it.

    Raises:
        DecodeError: not an image that is read, or cut off.
    """
    if content[:3] != JPEG_BEGINS:
        image = load(content).image
        pixels: Tensor = tv.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
        return pixels
    # A copy: torch wants writable memory, and says so in a warning.
    jpeg = bytearray(content)
    check_jpeg(jpeg)
    try:
        pixels = decode_jpeg(torch.frombuffer(jpeg, dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise DecodeError(str(error).splitlines()[0]) from None
    return pixels


@dataclass(frozen=True)
class Augment:
    """How a training image is cropped, flipped and resized.

    Attributes:
        kind: 'inception', 'flip' or 'none'.
        size: S, the side of the result in pixels.
        area: range of the crop's area, as a fraction of the image's.
        aspect: range of the crop's width over height.
        seed: the run's seed.
    """

    kind: str
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
        if self.kind == "none":
            return _resize(image, self.size, self.size)
        key = hash64(self.seed, epoch, _TAG_CROP, ordinal)
        if self.kind == "inception":
            top, left, height, width = self.crop_box(image.shape[1], image.shape[2], key)
            image = image[:, top : top + height, left : left + width]
        image = _resize(image, self.size, self.size)
        return image.flip(-1) if uniform(key, 0) < 0.5 else image

    def crop_box(self, height: int, width: int, key: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of a random crop: Inception's (Szegedy et al. 2015), ten tries, then the centre."""
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for attempt in range(_TRIES):
            area = height * width * (self.area[0] + uniform(key, attempt, 1) * (self.area[1] - self.area[0]))
            aspect = math.exp(low + uniform(key, attempt, 2) * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(uniform(key, attempt, 3) * (height - h + 1))
                left = int(uniform(key, attempt, 4) * (width - w + 1))
                return top, left, h, w
        ratio = min(max(width / height, self.aspect[0]), self.aspect[1])
        w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        return (height - h) // 2, (width - w) // 2, h, w


def centre(image: Tensor, size: int, fraction: float) -> Tensor:
    """Evaluation's view: the shorter side resized to size / fraction, the middle cut out. -> uint8 [3, size, size].

    Of an image longer than 16 times its shorter side, what cannot be seen there is cut off before it is resized.
    """
    if max(image.shape[1:]) > _LONG * min(image.shape[1:]):
        image = _middle(image)
    height, width = image.shape[1:]
    side = round(size / fraction)
    scale = side / min(height, width)
    tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
    image = _resize(image, tall, wide)
    top, left = (tall - size) // 2, (wide - size) // 2
    return image[:, top : top + size, left : left + size]


def squash(image: Tensor, size: int, fraction: float) -> Tensor:
    """Both sides resized to size / fraction, whatever the aspect, and the middle cut out. -> uint8 [3, size, size].

    The view of few-shot evaluation in google-research/big_vision, with fraction = 224 / 256.
    """
    side = max(size, round(size / fraction))
    edge = (side - size) // 2
    return _resize(image, side, side)[:, edge : edge + size, edge : edge + size]


def _middle(image: Tensor) -> Tensor:
    """The middle of a long image, about half of `_LONG` times as long as its shorter side."""
    kept = [min(n, _LONG // 2 * min(image.shape[1:])) for n in image.shape[1:]]
    # As much from both ends: the middle stays where it is.
    edges = [(n - k) // 2 for n, k in zip(image.shape[1:], kept, strict=True)]
    return image[:, edges[0] : image.shape[1] - edges[0], edges[1] : image.shape[2] - edges[1]]


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[1:] == (height, width):
        return image
    # Rows are resized before columns, so that what lies between is as tall as the image and as wide as the result.
    if image.shape[1] * width > max(_BETWEEN, image.shape[1] * image.shape[2]):
        image = _resized(image, height, image.shape[2])
    return _resized(image, height, width)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    resized: Tensor = tv.resize(image, [height, width], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    return resized


def normalize(
    images: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """uint8 [B, 3, S, S] in 0..255 -> dtype [B, 3, S, S] in [-1, 1], on the images' device, in `memory_format`."""
    return images.to(torch.float32).mul_(1 / 127.5).sub_(1.0).to(dtype, memory_format=memory_format)
