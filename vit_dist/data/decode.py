"""From the bytes of an image to uint8 [3, S, S]. Of data/, only this, mixup, reader and stream need torch.

Randomness is a function of (seed, epoch, ordinal of the sample in its manifest), so an image is cropped the same
way on whatever rank and after whatever restart it is read.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

from vit_dist.config.schema import DataConfig
from vit_dist.core.seeding import hash64, uniform

_TAG_CROP = 0x43524F50  # "CROP"
_TRIES = 10


class DecodeError(Exception):
    """The bytes are not a whole image. Caught by the stream, which replaces and counts the sample."""


def decode(content: bytes | memoryview) -> Tensor:
    """Bytes of a JPEG, or of any format that Pillow reads -> uint8 [3, H, W]. Transparency is dropped.

    Only JPEGs go to torchvision, which is faster there: its PNG decoder dies of some damaged files, and takes the
    whole process with it.

    Raises:
        DecodeError: not an image, or cut off. A JPEG without its end marker counts as cut off: decoders fill the
            missing part with grey and say nothing.
    """
    if not content:
        raise DecodeError("the image has no bytes")
    if bytes(content[:3]) != b"\xff\xd8\xff":
        return _decode_with_pillow(content)
    if b"\xff\xd9" not in bytes(content[-64:]):
        raise DecodeError("the JPEG is cut off: it has no end marker")
    try:
        # A copy: torch wants writable memory, and says so in a warning.
        image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise DecodeError(str(error).splitlines()[0]) from None
    pixels: Tensor = image
    return pixels


def _decode_with_pillow(content: bytes | memoryview) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            # 16 bits a channel, which convert() would cut off at 255.
            if image.mode.startswith("I"):
                deep = np.asarray(image).clip(0, 65535).astype(np.uint16)
                return torch.from_numpy((deep >> 8).astype(np.uint8)).expand(3, -1, -1)
            pixels: Tensor = tv.pil_to_tensor(image.convert("RGB"))
            return pixels
    except MemoryError:
        # The machine's trouble, not the image's: it must not be replaced and counted as broken.
        raise
    except UnidentifiedImageError:
        raise DecodeError("not an image of any format that Pillow knows") from None
    except Exception as error:
        # Pillow's many plug-ins raise whatever damaged bytes make them raise.
        raise DecodeError(f"not an image that can be decoded: {error}") from None


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
            return _resize(image, self.size)
        key = hash64(self.seed, epoch, _TAG_CROP, ordinal)
        if self.kind == "inception":
            top, left, height, width = self.crop_box(image.shape[1], image.shape[2], key)
            image = image[:, top : top + height, left : left + width]
        image = _resize(image, self.size)
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
    """Evaluation's view: the shorter side resized to size / fraction, the middle cut out. -> uint8 [3, size, size]."""
    height, width = image.shape[1:]
    side = round(size / fraction)
    scale = side / min(height, width)
    tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
    if (tall, wide) != (height, width):
        image = tv.resize(image, [tall, wide], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    top, left = (tall - size) // 2, (wide - size) // 2
    return image[:, top : top + size, left : left + size]


def squash(image: Tensor, size: int, fraction: float) -> Tensor:
    """Both sides resized to size / fraction, whatever the aspect, and the middle cut out. -> uint8 [3, size, size].

    The view of few-shot evaluation in google-research/big_vision, with fraction = 224 / 256.
    """
    side = max(size, round(size / fraction))
    edge = (side - size) // 2
    return _resize(image, side)[:, edge : edge + size, edge : edge + size]


def _resize(image: Tensor, size: int) -> Tensor:
    if image.shape[1:] == (size, size):
        return image
    resized: Tensor = tv.resize(image, [size, size], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    return resized


def normalize(
    images: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """uint8 [B, 3, S, S] in 0..255 -> dtype [B, 3, S, S] in [-1, 1], on the images' device, in `memory_format`."""
    return images.to(torch.float32).mul_(1 / 127.5).sub_(1.0).to(dtype, memory_format=memory_format)
