"""Near-duplicates between a training set and evaluation sets, by perceptual hash. No torch.

As the ViT paper removes from its pretraining data what is in the test sets. The hash is the 64-bit pHash of the
library ImageHash (discrete cosine transform of a 32 x 32 grey image, low frequencies against their median); two
images count as the same where at most `distance` of the 64 bits differ. Plain images, whose hashes say nothing, are the
same where all their pixels are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

from vit_dist.core.errors import ConfigError
from vit_dist.core.seeding import I64, U64
from vit_dist.data import workers
from vit_dist.data.describe import stored_images
from vit_dist.data.images import DecodeError, load
from vit_dist.data.manifest import ShardManifest

MAX_DISTANCE = 15
_HASHED = 32
# Of a picture of one grey and noise, rounded to 8 bits, a coefficient has a standard deviation of 18.5.
_NOISE = 75.0
_FEATURES = 16


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


@dataclass(frozen=True)
class Hashes:
    """What images are compared by, n of them.

    Attributes:
        values: the perceptual hash; of plain images a digest of their pixels; 0 of those that cannot be decoded.
            uint64 [n].
        plain: images without the features that a perceptual hash is made of. bool [n].
        readable: images that can be decoded. bool [n].
    """

    values: U64
    plain: NDArray[np.bool_]
    readable: NDArray[np.bool_]

    @classmethod
    def join(cls, parts: Sequence[Hashes]) -> Hashes:
        """Those of several sets, one after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def hash_image(content: bytes) -> tuple[int, bool] | None:
    """An image's perceptual hash, and that it is not plain; or a digest of its pixels, and that it is.

    None where it cannot be decoded.
    """
    import imagehash
    from PIL.Image import Resampling

    try:
        # As the hash does it itself: it looks at 32 x 32.
        grey = load(content, grey_from=128).image.convert("L").resize((_HASHED, _HASHED), Resampling.LANCZOS)
        if _is_plain(np.asarray(grey)):
            image = load(content).image.convert("RGB")
            return xxhash.xxh3_64_intdigest(image.tobytes(), seed=image.width), True
    except DecodeError:
        return None
    return int.from_bytes(np.packbits(imagehash.phash(grey).hash.ravel()).tobytes(), "big"), False


def _is_plain(grey: NDArray[np.uint8]) -> bool:
    """Few of the hash's 64 coefficients are more than what rounding to 8 bits makes of nothing.

    So it is with one colour, with gradients and with halves, whose other coefficients are nought: they all share
    their bits (https://github.com/JohannesBuchner/imagehash/issues/134).
    """
    from scipy.fft import dctn

    low = dctn(grey.astype(np.float64))[:8, :8]
    return int((np.abs(low - np.median(low)) > _NOISE).sum()) < _FEATURES


def hash_shard(manifest: ShardManifest, shard: int) -> Hashes:
    """The hashes of a shard's images, n of them.

    Raises:
        DataError: the tar or its index cannot be read.
    """
    n = manifest.read_index(shard).num_samples
    hashes = Hashes(np.zeros(n, np.uint64), np.zeros(n, bool), np.zeros(n, bool))
    for i, content in stored_images(manifest, shard):
        hashed = hash_image(content)
        if hashed is not None:
            hashes.values[i], hashes.plain[i] = hashed
            hashes.readable[i] = True
    return hashes


def hash_all(manifest: ShardManifest, num_workers: int = 1) -> Iterator[tuple[int, Hashes]]:
    """Every shard with its hashes, as they are done.

    Raises:
        DataError: a tar or an index cannot be read.
    """
    shards = range(len(manifest.shards))
    processes = workers.num_processes(num_workers, len(shards), images=manifest.num_samples)
    if processes == 1:
        for shard in shards:
            yield shard, hash_shard(manifest, shard)
        return
    values = {"manifest": manifest}
    yield from workers.run(_hash_task, shards, processes, values=values, preload=("imagehash",))


def _hash_task(shard: int) -> Hashes:
    return hash_shard(workers.shared("manifest"), shard)


@dataclass(frozen=True)
class Copies:
    """Images of one set that are the same file, byte for byte.

    Attributes:
        groups: of each file that is there more than once, its samples: (shard, place in it), in the set's order.
        num_labels: of each group, how many different labels (or lists of labels) its samples have.
    """

    groups: tuple[tuple[tuple[int, int], ...], ...]
    num_labels: tuple[int, ...]

    @property
    def num_surplus(self) -> int:
        """Samples that are there once more than needed."""
        return sum(len(group) - 1 for group in self.groups)


def digest_shard(manifest: ShardManifest, shard: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """XXH128 of each image's bytes in a shard, and its labels.

    Raises:
        DataError: the tar or its index cannot be read.
    """
    index = manifest.read_index(shard)
    digests = [xxhash.xxh3_128_intdigest(content) for _, content in stored_images(manifest, shard)]
    ends = index.label_ends.tolist()
    labels = [tuple(index.labels[a:b].tolist()) for a, b in zip([0, *ends], ends, strict=False)]
    return digests, labels


def copies_within(
    manifest: ShardManifest, num_workers: int = 1, tick: Callable[[int], None] = lambda _: None
) -> Copies:
    """The images that are in a set more than once.

    Args:
        manifest: of the set.
        num_workers: processes.
        tick: called with the number of images of each shard that was read.

    Raises:
        DataError: a tar or an index cannot be read.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    labels: dict[int, set[tuple[int, ...]]] = {}
    shards = range(len(manifest.shards))
    processes = workers.num_processes(num_workers, len(shards), images=manifest.num_samples)
    read: Iterable[tuple[int, tuple[list[int], list[tuple[int, ...]]]]]
    if processes == 1:
        read = ((shard, digest_shard(manifest, shard)) for shard in shards)
    else:
        read = workers.run(_digest_task, shards, processes, values={"manifest": manifest})
    for shard, (digests, of_shard) in read:
        for place, (digest, label) in enumerate(zip(digests, of_shard, strict=True)):
            found.setdefault(digest, []).append((shard, place))
            labels.setdefault(digest, set()).add(label)
        tick(len(digests))
    twice = sorted((sorted(places), digest) for digest, places in found.items() if len(places) > 1)
    return Copies(tuple(tuple(places) for places, _ in twice), tuple(len(labels[digest]) for _, digest in twice))


def _digest_task(shard: int) -> tuple[list[int], list[tuple[int, ...]]]:
    return digest_shard(workers.shared("manifest"), shard)


class Known:
    """Images that others are compared with: by perceptual hashes, and plain ones by their pixels.

    Args:
        hashes: of the images.
        distance: of 64 bits, how many may differ.
    """

    def __init__(self, hashes: Hashes, distance: int) -> None:
        self._featured = np.flatnonzero(hashes.readable & ~hashes.plain)
        self._near = NearHashes(hashes.values[self._featured], distance)
        plain = np.flatnonzero(hashes.readable & hashes.plain)
        self._digests, first = np.unique(hashes.values[plain], return_index=True)
        self._plain = plain[first]

    def find(self, asked: Hashes) -> tuple[I64, I64, I64]:
        """For each asked image with any like it, the nearest: places in `asked`, in the known, and the distances."""
        featured = np.flatnonzero(asked.readable & ~asked.plain)
        rows, others, distances = self._near.find(asked.values[featured])
        plain = np.flatnonzero(asked.readable & asked.plain)
        plain = plain[np.isin(asked.values[plain], self._digests)]
        same = self._plain[np.searchsorted(self._digests, asked.values[plain])]
        found = np.concatenate([featured[rows], plain])
        others = np.concatenate([self._featured[others], same])
        distances = np.concatenate([distances, np.zeros(len(plain), np.int64)])
        order = np.argsort(found)
        return found[order], others[order], distances[order]


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
