"""Near-duplicates between a training set and evaluation sets, by perceptual hash. No torch.

As the ViT paper removes from its pretraining data what is in the test sets. The hash is the 64-bit pHash of the
library ImageHash (discrete cosine transform of a 32 x 32 grey image, low frequencies against their median); two
images count as the same where at most `distance` of the 64 bits differ.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import ConfigError
from vit_dist.core.seeding import I64, U64
from vit_dist.data import workers
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.ranges import RangeReader

MAX_DISTANCE = 15
_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Match:
    """A training sample that is also, nearly, evaluation sample number `other` (across all evaluation sets)."""

    shard: int
    sample: int
    other: int
    distance: int


def require_imagehash() -> None:
    """Fail early, and say how to install what is needed.

    Raises:
        ConfigError: ImageHash is not installed.
    """
    try:
        import imagehash  # noqa: F401
    except ImportError:
        raise ConfigError(
            "finding near-duplicates needs ImageHash, which is not installed; install the extra: "
            "pip install 'vit_dist[data]'"
        ) from None


def hash_image(content: bytes) -> int | None:
    """The 64-bit perceptual hash of an image; None where it cannot be decoded."""
    import imagehash
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                # JPEG: decode at a fraction of the size; the hash looks at 32 x 32.
                image.draft("L", (128, 128))
                bits = imagehash.phash(image).hash
    except Exception:
        # Pillow's plug-ins raise whatever damaged bytes lead to.
        return None
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def hash_shard(manifest: ShardManifest, shard: int) -> tuple[U64, NDArray[np.bool_]]:
    """Hashes of a shard's images, and which of them could be decoded. uint64 [n], bool [n].

    Raises:
        DataError: the tar or its index cannot be read.
    """
    index = manifest.read_index(shard)
    hashes = np.zeros(index.num_samples, np.uint64)
    readable = np.zeros(index.num_samples, bool)
    reader = RangeReader()
    begins, sizes = index.image_offsets.tolist(), index.image_bytes.tolist()
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
                image_hash = hash_image(bytes(content[begins[i] - start : begins[i] - start + sizes[i]]))
                if image_hash is not None:
                    hashes[i], readable[i] = image_hash, True
            first = last
    finally:
        reader.close()
    return hashes, readable


def hash_all(manifest: ShardManifest, num_workers: int = 1) -> Iterator[tuple[int, U64, NDArray[np.bool_]]]:
    """Every shard with its hashes, as they are done.

    Raises:
        DataError: a tar or an index cannot be read.
    """
    shards = range(len(manifest.shards))
    processes = workers.num_processes(num_workers, len(shards), images=manifest.num_samples)
    if processes == 1:
        for shard in shards:
            yield shard, *hash_shard(manifest, shard)
        return
    values = {"manifest": manifest}
    for shard, hashed in workers.run(_hash_task, shards, processes, values=values, preload=("imagehash",)):
        yield shard, *hashed


def _hash_task(shard: int) -> tuple[U64, NDArray[np.bool_]]:
    return hash_shard(workers.shared("manifest"), shard)


class NearHashes:
    """Finds hashes within a distance of given ones.

    Two 64-bit words that differ in at most d bits agree in at least one of d + 1 bands of their bits (the pigeonhole
    principle), so only those that agree in a band are compared.
    """

    def __init__(self, hashes: U64, distance: int) -> None:
        if not 0 <= distance <= MAX_DISTANCE:
            raise ConfigError(f"--distance {distance}: expected 0 to {MAX_DISTANCE} of the 64 bits")
        self.hashes, self.distance = hashes, distance
        cuts = np.linspace(0, 64, distance + 2).astype(int).tolist()
        self._bands = []
        for low, high in pairwise(cuts):
            band = self._band(hashes, low, high)
            order = np.argsort(band, kind="stable")
            self._bands.append((low, high, order, band[order]))

    @staticmethod
    def _band(hashes: U64, low: int, high: int) -> U64:
        mask = np.uint64((1 << (high - low)) - 1)
        return (hashes >> np.uint64(low)) & mask

    def find(self, asked: U64) -> tuple[I64, I64, I64]:
        """For each asked hash with any near one, the nearest: places in `asked`, in `hashes`, and the distances."""
        rows: list[I64] = []
        others: list[I64] = []
        for low, high, order, band in self._bands:
            asked_band = self._band(asked, low, high)
            first, last = (np.searchsorted(band, asked_band, side=side) for side in ("left", "right"))
            lengths = last - first
            places = np.repeat(np.arange(len(asked)), lengths)
            within = np.arange(len(places)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            candidates = order[np.repeat(first, lengths) + within]
            near = np.bitwise_count(asked[places] ^ self.hashes[candidates]) <= self.distance
            rows.append(places[near])
            others.append(candidates[near])
        row, other = np.concatenate(rows), np.concatenate(others)
        distance = np.bitwise_count(asked[row] ^ self.hashes[other]).astype(np.int64)
        best = np.lexsort((other, distance, row))
        row, other, distance = row[best], other[best], distance[best]
        _, unique = np.unique(row, return_index=True)
        return row[unique], other[unique], distance[unique]
