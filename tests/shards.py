"""Sets of real image files for tests, written by webdataset and indexed by Python's tarfile: a reference for ours."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from vit_dist.data.index import IndexedSample, build_index, encode_index
from vit_dist.data.manifest import Shard, ShardManifest, checksum, write_manifest


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of files by name, and of directories, whose names end in '/'."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if name.endswith("/"):
                entry.type = tarfile.DIRTYPE
            tar.addfile(entry, io.BytesIO(content))
    return path


def noise_bytes(number: int, kind: str = "PNG", size: tuple[int, int] = (8, 9)) -> bytes:
    """An image of `size` (width, height) unlike any other number's."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return _encoded(pixels, kind)


def image_bytes(number: int, label: int, size: int = 28, form: str = "PNG") -> bytes:
    """An image that a model can learn: noise, with a bright quarter that names the class."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    half = size // 2
    row, column = divmod(label % 4, 2)
    pixels[row * half : (row + 1) * half, column * half : (column + 1) * half] += 120
    return _encoded(pixels, form)


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_set(
    folder: Path,
    *,
    num_samples: int,
    samples_per_shard: int,
    num_classes: int,
    first: int = 0,
    broken: frozenset[int] = frozenset(),
    shuffled: bool = True,
    sizes: list[int] | None = None,
    classes: tuple[str, ...] = (),
) -> str:
    """Write shards, indexes and a manifest; return the manifest's path.

    `broken` samples hold no image. `sizes` gives the samples of each shard in place of `samples_per_shard`. `classes`
    are the names of the classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, num_samples, samples_per_shard))
    counts = sizes if sizes is not None else [min(samples_per_shard, num_samples - s) for s in starts]
    assert sum(counts) == num_samples
    shards, number = [], 0
    for shard, count in enumerate(counts):
        tar = folder / f"shard-{shard:06d}.tar"
        labels = {}
        with webdataset.TarWriter(str(tar), mtime=0) as writer:
            for i in range(number, number + count):
                label = (i * 7 + i // 3) % num_classes
                content = b"not an image" if i in broken else image_bytes(first + i, label)
                labels[f"k{first + i:06d}"] = label
                writer.write({"__key__": f"k{first + i:06d}", "png": content, "cls": str(label)})
        shards.append(_index(tar, labels))
        number += count
    manifest = ShardManifest(str(folder), folder.name, tuple(shards), shuffled, num_classes, classes)
    write_manifest(manifest, str(folder / "manifest.json"))
    return str(folder / "manifest.json")


def _index(tar: Path, labels: dict[str, int]) -> Shard:
    rows, end = [], 0
    offsets: dict[str, int] = {}
    images: dict[str, tuple[int, int]] = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            key, _, extension = member.name.partition(".")
            offsets.setdefault(key, member.offset)
            if extension == "png":
                images[key] = (member.offset_data, member.size)
            end = member.offset_data + -(-member.size // 512) * 512
    for key, offset in offsets.items():
        rows.append(IndexedSample(key, offset, *images[key], [labels[key]]))
    content = encode_index(build_index(rows, end))
    index = tar.with_suffix(".idx.npz")
    index.write_bytes(content)
    raw = tar.read_bytes()
    return Shard(tar.name, len(rows), len(raw), checksum(raw), index.name, checksum(content))
