"""From the bytes of an image to uint8 [3, H, W], and the views of evaluation.

Of data/, only this, augment, randaugment, gallery, mixup, reader, regions and stream need torch.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.core.memory import is_shortage
from vit_dist.data.images import JPEG_BEGINS, DecodeError, check_jpeg, load, orientation
from vit_dist.data.regions import RegionDecoder
from vit_dist.data.torchvision_parts import decode_jpeg
from vit_dist.data.torchvision_parts import functional as tv

_LONG = 16
_BETWEEN = 1 << 24  # pixels
BYTES_ARE_RESIZED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether torchvision has bytes resized as they are on this CPU; on some as floats, for what that gains."""


class Encoded:
    """An image as its file holds it, decoded as far as it is asked for: bytes of any of `images.FORMATS`.

    Only JPEGs go to torchvision, which is faster there: its PNG decoder dies of some damaged files, and takes the
    whole process with it.

    Args:
        content: of the image's file.
        upright: turn it as its EXIF orientation says; else only TIFFs are turned, by Pillow.
        regions: decodes parts of JPEGs that stand upright; None: a part is cut out of the whole.

    Raises:
        DecodeError: not an image that is read, or cut off.
    """

    def __init__(
        self, content: bytes | memoryview, *, upright: bool = False, regions: RegionDecoder | None = None
    ) -> None:
        self._content, self._upright, self._regions = content, upright, regions
        self._whole: Tensor | None = None
        self._is_jpeg = content[:3] == JPEG_BEGINS
        self._size = check_jpeg(content) if self._is_jpeg else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of `whole`."""
        if self._size is None or self._lies:
            _, height, width = self.whole().shape
            return height, width
        return self._size

    def whole(self) -> Tensor:
        """uint8 [3, H, W].

        Raises:
            DecodeError: see the class.
        """
        if self._whole is None:
            self._whole = self._decoded()
        return self._whole

    def region(self, box: tuple[int, int, int, int]) -> Tensor:
        """uint8 [3, height, width] of `whole`, from top, left, height, width.

        Raises:
            DecodeError: see the class; damage outside may be told or not.
        """
        if self._regions is not None and self._is_jpeg and self._whole is None and not self._lies:
            part = self._regions.decode(self._content, box)
            if part is not None:
                return part
        top, left, height, width = box
        return self.whole()[:, top : top + height, left : left + width]

    @functools.cached_property
    def _jpeg(self) -> bytearray:
        """The content, copied: torch wants writable memory, and says so in a warning."""
        return bytearray(self._content)

    @functools.cached_property
    def _lies(self) -> bool:
        """A JPEG that is to be turned."""
        # Asked of `images` as for packing: torchvision has a reader of EXIF of its own, which differs in damaged data.
        asked = self._upright and self._is_jpeg and _says_how_it_lies(self._jpeg)
        return asked and orientation(self._content) != 1

    def _decoded(self) -> Tensor:
        if not self._is_jpeg:
            image = load(self._content, upright=self._upright).image
            return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)
        try:
            pixels = decode_jpeg(torch.frombuffer(self._jpeg, dtype=torch.uint8))
        except RuntimeError as error:
            if is_shortage(error):
                # Else an image would be taken for broken, and another one be trained on, by what else the machine does.
                raise MemoryError(str(error).splitlines()[0]) from None
            raise DecodeError(str(error).splitlines()[0]) from None
        return _turned(pixels, orientation(self._content)) if self._lies else pixels


def decode(content: bytes | memoryview, *, upright: bool = False) -> Tensor:
    """All of an image: uint8 [3, H, W]. See `Encoded`."""
    return Encoded(content, upright=upright).whole()


def _says_how_it_lies(jpeg: bytearray) -> bool:
    return any(name in jpeg for name in (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/"))


def _turned(pixels: Tensor, stored: int) -> Tensor:
    """uint8 [3, H, W] of an EXIF orientation -> upright."""
    if stored in (5, 7):
        pixels = pixels.transpose(-1, -2)
    elif stored in (6, 8):
        pixels = pixels.rot90(1 if stored == 8 else 3, (-2, -1))
    flipped = {2: (-1,), 3: (-2, -1), 4: (-2,), 7: (-2, -1)}.get(stored, ())
    return pixels.flip(flipped) if flipped else pixels


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
    image = resize(image, tall, wide)
    top, left = (tall - size) // 2, (wide - size) // 2
    return image[:, top : top + size, left : left + size]


def squash(image: Tensor, size: int, fraction: float) -> Tensor:
    """Both sides resized to size / fraction, whatever the aspect, and the middle cut out. -> uint8 [3, size, size].

    The view of few-shot evaluation in google-research/big_vision, with fraction = 224 / 256.
    """
    side = max(size, round(size / fraction))
    edge = (side - size) // 2
    return resize(image, side, side)[:, edge : edge + size, edge : edge + size]


def _middle(image: Tensor) -> Tensor:
    """The middle of a long image, about half of `_LONG` times as long as its shorter side."""
    kept = [min(n, _LONG // 2 * min(image.shape[1:])) for n in image.shape[1:]]
    # As much from both ends: the middle stays where it is.
    edges = [(n - k) // 2 for n, k in zip(image.shape[1:], kept, strict=True)]
    return image[:, edges[0] : image.shape[1] - edges[0], edges[1] : image.shape[2] - edges[1]]


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 [3, H, W] -> [3, height, width], by antialiased bilinear interpolation."""
    if image.shape[1:] == (height, width):
        return image
    # Rows are resized before columns, so that what lies between is as tall as the image and as wide as the result.
    if image.shape[1] * width > max(_BETWEEN, image.shape[1] * image.shape[2]):
        image = _resized(image, height, image.shape[2])
    return _resized(image, height, width)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    size = [height, width]
    if image.stride(0) == 1:
        # A crop of pixels that lie as [H, W, 3]: packed, it is resized without being taken apart into planes.
        pixels = image.permute(1, 2, 0).contiguous()
        if BYTES_ARE_RESIZED:
            # What torchvision comes to, too, on ways that cost a third of what this does.
            batch = pixels[None].permute(0, 3, 1, 2)
            return functional.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)[0]
        image = pixels.permute(2, 0, 1)
    resized: Tensor = tv.resize(image, size, interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    return resized


def normalize(
    images: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """uint8 [B, 3, S, S] in 0..255 -> dtype [B, 3, S, S] in [-1, 1], on the images' device, in `memory_format`."""
    return images.to(torch.float32, memory_format=memory_format).mul_(1 / 127.5).sub_(1.0).to(dtype)
