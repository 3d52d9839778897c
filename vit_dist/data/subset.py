"""Nested subsets of a dataset, without a copy. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.seeding import hash64, permutation
from vit_dist.data.manifest import ShardManifest

I64 = NDArray[np.int64]
_TAG_SUBSET = 0x535542534554  # "SUBSET"


@dataclass(frozen=True)
class Subset:
    """A selection of a manifest's samples.

    Attributes:
        shards: manifest ordinals of the shards that hold some of it, in the subset's order. int64 [K].
        counts: samples taken from each. int64 [K].
        chosen: for a set whose samples are not in random order, which samples of each shard, ascending; else None:
            then the first `counts[k]` of each.
        num_bytes: bytes of tar that hold it, about.
    """

    shards: I64
    counts: I64
    chosen: tuple[I64, ...] | None
    num_bytes: int

    @property
    def num_samples(self) -> int:
        """Samples in the subset."""
        return int(self.counts.sum())

    def sample(self, shard: int, sample: int) -> tuple[int, int]:
        """From the subset's own (shard, sample) to the manifest's."""
        inner = sample if self.chosen is None else int(self.chosen[shard][sample])
        return int(self.shards[shard]), inner


def select(manifest: ShardManifest, num_samples: int | None, seed: int = 0) -> Subset:
    """The subset of `num_samples` examples (None: all), nested in every larger one of the same seed.

    A set in random order: the first n samples of its shards, the shards permuted by the subset seed (0: in the
    manifest's order), the last one cut short. A set in its own order: the n samples with the smallest
    hash(seed, shard ordinal, key), which reads every index once.

    Raises:
        ConfigError: larger than the set.
        DataError: the set is empty, or an index cannot be read.
    """
    total = manifest.num_samples
    if total == 0:
        raise DataError(f"the manifest {manifest.name!r} has no samples")
    wanted = total if num_samples is None else num_samples
    if not 1 <= wanted <= total:
        raise ConfigError(f"data.subset={wanted} examples cannot be taken from {total} in the set {manifest.name!r}")
    order = permutation(len(manifest.shards), seed, _TAG_SUBSET) if seed else np.arange(len(manifest.shards))
    if wanted == total:
        return Subset(order, manifest.counts[order], None, int(manifest.sizes.sum()))
    if not manifest.shuffled:
        return _smallest_hashes(manifest, wanted, seed)
    ends = np.cumsum(manifest.counts[order])
    used = int(np.searchsorted(ends, wanted)) + 1
    shards = order[:used]
    counts = manifest.counts[shards].copy()
    counts[-1] -= int(ends[used - 1]) - wanted
    share = manifest.sizes[shards] * counts // np.maximum(manifest.counts[shards], 1)
    return Subset(shards, counts, None, int(share.sum()))


def _smallest_hashes(manifest: ShardManifest, wanted: int, seed: int) -> Subset:
    hashes = np.empty(manifest.num_samples, np.uint64)
    for shard, start in enumerate(manifest.first_ordinals.tolist()):
        index = manifest.read_index(shard)
        state = hash64(seed, _TAG_SUBSET, shard)
        for i, key in enumerate(index.keys()):
            hashes[start + i] = hash64(state, *_words(key))
    picked = np.sort(np.argsort(hashes, kind="stable")[:wanted])
    owner = np.searchsorted(manifest.first_ordinals, picked, side="right") - 1
    # Empty shards share the first ordinal of the next one; 'right' lands on the last of them, which holds the sample.
    shards, starts = np.unique(owner, return_index=True)
    chosen = tuple(
        part - manifest.first_ordinals[s] for s, part in zip(shards, np.split(picked, starts[1:]), strict=True)
    )
    counts = np.array([len(c) for c in chosen], np.int64)
    share = manifest.sizes[shards] * counts // np.maximum(manifest.counts[shards], 1)
    return Subset(shards.astype(np.int64), counts, chosen, int(share.sum()))


def _words(key: str) -> list[int]:
    raw = key.encode("utf-8")
    return [len(raw), *(int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8))]
