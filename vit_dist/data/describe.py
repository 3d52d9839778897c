"""What is in a dataset: counts, classes, bytes, resolutions, and a look at some of its images. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.core.seeding import I64, permutation
from vit_dist.data.images import DecodeError, load
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.ranges import RangeReader

_TAG_LOOK = 0x4C4F4F4B  # "LOOK"
_CELL = 96  # pixels of a picture in the grid
_TEXT = 12
_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Counts:
    """What the indexes tell.

    Attributes:
        per_class: examples that have the class among their labels. int64 [classes].
        num_labels: labels in all.
        image_bytes: (smallest, mean, largest) image.
    """

    per_class: I64
    num_labels: int
    image_bytes: tuple[int, float, int]


@dataclass(frozen=True)
class Picture:
    """One image that was looked at."""

    key: str
    labels: tuple[int, ...]
    content: bytes


def count(manifest: ShardManifest) -> Counts:
    """Read every index once.

    Raises:
        DataError: an index is missing or damaged, or a label is outside the classes.
    """
    per_class = np.zeros(max(manifest.num_classes, 1), np.int64)
    num_labels, smallest, largest, total = 0, 1 << 62, 0, 0
    for shard, entry in enumerate(manifest.shards):
        index = manifest.read_index(shard)
        num_labels += len(index.labels)
        if len(index.labels) and not 0 <= int(index.labels.min()) <= int(index.labels.max()) < manifest.num_classes:
            wrong = int(np.argmax((index.labels < 0) | (index.labels >= manifest.num_classes)))
            owner = int(np.searchsorted(index.label_ends, wrong, side="right"))
            raise DataError(
                f"{entry.url}: sample {index.key(owner)!r} has label {int(index.labels[wrong])}, but the manifest says "
                f"{manifest.num_classes} classes; index the tars again by `vit-dist data index --num-classes N`"
            )
        per_class += np.bincount(index.labels, minlength=len(per_class))
        if index.num_samples:
            smallest = min(smallest, int(index.image_bytes.min()))
            largest = max(largest, int(index.image_bytes.max()))
            total += int(index.image_bytes.sum())
    mean = total / manifest.num_samples if manifest.num_samples else 0.0
    return Counts(per_class, num_labels, (min(smallest, largest), mean, largest))


def random_pictures(manifest: ShardManifest, wanted: int, seed: int = 0) -> Iterator[Picture]:
    """Images drawn without replacement from the whole set, in a random order of at most 64 shards.

    Raises:
        DataError: a tar or an index cannot be read.
    """
    filled = np.flatnonzero(manifest.counts)
    shards = filled[permutation(len(filled), seed, _TAG_LOOK)][:64]
    wanted = min(wanted, int(manifest.counts[shards].sum()))
    ends = np.cumsum(manifest.counts[shards])
    picked = permutation(int(ends[-1]), seed, _TAG_LOOK, 1)[:wanted]
    owners = np.searchsorted(ends, picked, side="right")
    reader = RangeReader()
    try:
        for slot in dict.fromkeys(owners.tolist()):
            shard = int(shards[slot])
            index = manifest.read_index(shard)
            for place in picked[owners == slot].tolist():
                sample = place - (int(ends[slot - 1]) if slot else 0)
                begin = int(index.image_offsets[sample])
                content = reader.read(manifest.shard_url(shard), begin, begin + int(index.image_bytes[sample]))
                yield Picture(index.key(sample), tuple(index.sample_labels(sample)[0].tolist()), bytes(content))
    finally:
        reader.close()


def stored_images(manifest: ShardManifest, shard: int) -> Iterator[tuple[int, bytes]]:
    """Every sample of a shard, by its number in the index, with its image's bytes; some megabytes are read at once.

    Raises:
        DataError: the tar or its index cannot be read.
    """
    index = manifest.read_index(shard)
    begins, sizes = index.image_offsets.tolist(), index.image_bytes.tolist()
    reader = RangeReader()
    first = 0
    try:
        while first < len(begins):
            # As many images as fit into one read.
            last = first + 1
            while last < len(begins) and begins[last] + sizes[last] - begins[first] <= _READ_BYTES:
                last += 1
            start = begins[first]
            content = reader.read(manifest.shard_url(shard), start, begins[last - 1] + sizes[last - 1])
            for i in range(first, last):
                yield i, bytes(content[begins[i] - start : begins[i] - start + sizes[i]])
            first = last
    finally:
        reader.close()


def undecodable(manifest: ShardManifest, shard: int) -> Iterator[tuple[str, str]]:
    """The images of a shard that training would replace: key and reason. Each is decoded.

    Raises:
        DataError: the tar or its index cannot be read.
    """
    index = manifest.read_index(shard)
    for i, content in stored_images(manifest, shard):
        try:
            load(content)
        except DecodeError as error:
            yield index.key(i), str(error)


def size_of(content: bytes) -> tuple[int, int, str] | None:
    """Width, height and format of an image; None where it cannot be decoded."""
    try:
        loaded = load(content)
    except DecodeError:
        return None
    return loaded.image.width, loaded.image.height, loaded.form


def picture_grid(pictures: list[Picture], columns: int, classes: tuple[str, ...]) -> bytes:
    """A PNG of pictures side by side, each with its class below."""
    from PIL import Image, ImageDraw

    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (_CELL + 4) + 4, rows * (_CELL + _TEXT + 6) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = 4 + i % columns * (_CELL + 4), 4 + i // columns * (_CELL + _TEXT + 6)
        small = _thumbnail(picture.content)
        sheet.paste(small, (x + (_CELL - small.width) // 2, y + (_CELL - small.height) // 2))
        names = [classes[n] if n < len(classes) else str(n) for n in picture.labels]
        draw.text((x, y + _CELL), _fitting(draw, ", ".join(names)), fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _thumbnail(content: bytes) -> Any:
    from PIL import Image

    try:
        image = load(content).image.convert("RGB")
    except DecodeError:
        # A red square says so.
        return Image.new("RGB", (_CELL, _CELL), "red")
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _fitting(draw: Any, text: str) -> str:
    while text and draw.textlength(text) > _CELL:
        text = text[:-1]
    return text
