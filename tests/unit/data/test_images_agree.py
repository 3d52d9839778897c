"""Packing, verifying, de-duplicating, describing and training take the same images: 500 of all forms, many damaged."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.shards import write_tar
from vit_dist.data.decode import decode
from vit_dist.data.dedup import hash_image
from vit_dist.data.describe import size_of, undecodable
from vit_dist.data.images import DecodeError
from vit_dist.data.indexing import index_tars
from vit_dist.data.manifest import read_manifest
from vit_dist.data.pack.shards import BadImageError, ImageOptions, check_image

Rng = np.random.Generator
# Forms as training meets them, and some that are not read.
FORMATS = ("JPEG", "JPEG", "JPEG", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "ICO", "TGA", "JPEG2000")
DEPTHS = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}
MODES = ("RGB", "RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", *DEPTHS)


def picture(rng: Rng) -> Image.Image:
    mode = str(rng.choice(MODES))
    height, width = (int(n) for n in rng.integers(1, 60, 2))
    if rng.random() < 0.2:
        height, width = (1, 20 * width) if rng.random() < 0.5 else (20 * height, 1)
    pixels: NDArray[np.uint8] = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in DEPTHS:
        return Image.fromarray((pixels[:, :, 0] * 257.0).astype(DEPTHS[mode]))
    return Image.fromarray(pixels).convert("LA" if mode == "PA" else mode).convert(mode)


def options(rng: Rng, form: str, image: Image.Image) -> dict[str, object]:
    if form == "TIFF":
        return {"compression": str(rng.choice(["raw", "tiff_lzw", "tiff_deflate", "packbits"]))}
    if form in {"GIF", "WEBP", "PNG", "MPO"} and rng.random() < 0.5:
        return {"save_all": True, "append_images": [image.copy()]}
    if form != "JPEG":
        return {}
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    chosen = {"progressive": True, "optimize": True, "restart_marker_blocks": 2, "exif": exif, "comment": b"a comment"}
    return {name: value for name, value in chosen.items() if rng.random() < 0.4}


def whole_file(rng: Rng) -> bytes:
    while True:
        form, image = str(rng.choice(FORMATS)), picture(rng)
        buffer = io.BytesIO()
        try:
            image.save(buffer, form, **options(rng, form, image))
        except (OSError, ValueError, KeyError):
            # A mode that the format does not have.
            continue
        return buffer.getvalue()


def damaged(rng: Rng, content: bytes) -> bytes:
    """Bits that flipped, mostly in the header; bytes that were lost, added, appended; an end that is missing."""
    broken = bytearray(content)
    reach = len(broken) if rng.random() < 0.5 else min(len(broken), 300)
    for _ in range(rng.integers(0, 4)):
        broken[int(rng.integers(reach))] = int(rng.integers(256))
    place = int(rng.integers(reach))
    if rng.random() < 0.2:
        broken[place:place] = rng.bytes(int(rng.integers(1, 30)))
    if rng.random() < 0.2:
        del broken[place : place + int(rng.integers(1, 30))]
    if rng.random() < 0.3:
        del broken[int(rng.integers(len(broken) + 1)) :]
    if rng.random() < 0.4:
        tails = (bytes(100), rng.bytes(100), b"text\xff\xd9text", whole_file(rng))
        broken += tails[int(rng.integers(len(tails)))]
    return bytes(broken)


def files() -> list[bytes]:
    rng = np.random.default_rng(2026)
    whole = [whole_file(rng) for _ in range(500)]
    return [damaged(rng, content) if rng.random() < 0.6 else content for content in whole]


def takes(use: Callable[[bytes], object], content: bytes) -> bool:
    try:
        return use(content) is not None
    except (DecodeError, BadImageError):
        return False


def test_every_verb_takes_the_same_images_as_training(tmp_path: Path) -> None:
    contents = [content or b"x" for content in files()]
    members = [(f"{i:03d}.jpg", content) for i, content in enumerate(contents)]
    write_tar(
        tmp_path / "a.tar", [m for name, content in members for m in ((name, content), (f"{name[:3]}.cls", b"0"))]
    )
    index_tars([str(tmp_path / "a.tar")], str(tmp_path / "a.json"), quiet=True)
    named_by_verify = {key for key, _ in undecodable(read_manifest(str(tmp_path / "a.json")), 0)}
    assert named_by_verify <= {name[:3] for name, _ in members}
    ways: dict[str, Callable[[bytes], object]] = {
        "pack": lambda content: check_image(content, ImageOptions()),
        "pack --upright": lambda content: check_image(content, ImageOptions(upright=True)),
        "pack --resize-shorter": lambda content: check_image(content, ImageOptions(resize_shorter=8, quality=80)),
        "dedup": hash_image,
        "info": size_of,
    }
    count = 0
    for (name, content), trained in ((m, takes(decode, m[1])) for m in members):
        verdicts = {way: takes(use, content) for way, use in ways.items()}
        assert verdicts == dict.fromkeys(ways, trained), name
        assert (name[:3] not in named_by_verify) == trained, name
        count += trained
    assert 100 < count < 400
