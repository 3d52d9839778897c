"""Nested subsets of a dataset, without a copy. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.seeding import GOLDEN_GAMMA, I64, U64, hash64, mix64_array, permutation
from vit_dist.data.index import ShardIndex
from vit_dist.data.manifest import ShardManifest, Slice

_TAG_SUBSET = 0x535542534554  # "SUBSET"
_TAG_SHOTS = 0x53484F5453  # "SHOTS"


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
    """The subset of `num_samples` examples (None: all that are meant), nested in every larger one of the same seed.

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
    if manifest.part is not None:
        assert num_samples is None, "a subset of a slice"
        return _slice(manifest, manifest.part)
    wanted = total if num_samples is None else num_samples
    if not 1 <= wanted <= total:
        raise ConfigError(f"data.subset={wanted} examples cannot be taken from {total} in the set {manifest.name!r}")
    order = _shard_order(manifest, seed)
    if wanted == total:
        return Subset(order, manifest.counts[order], None, int(manifest.sizes.sum()))
    if not manifest.shuffled:
        return _smallest_hashes(manifest, wanted, seed)
    ends = np.cumsum(manifest.counts[order])
    used = int(np.searchsorted(ends, wanted)) + 1
    shards = order[:used]
    counts = manifest.counts[shards].copy()
    counts[-1] -= int(ends[used - 1]) - wanted
    return Subset(shards, counts, None, _num_bytes(manifest, shards, counts))


def _slice(manifest: ShardManifest, part: Slice) -> Subset:
    """The examples of a slice: what the subset of `stop` examples has and the one of `start` has not."""
    if not manifest.shuffled:
        by_hash = np.argsort(_hashes(manifest, part.seed), kind="stable")
        return pick(manifest, by_hash[part.start : part.stop].astype(np.int64))
    order = _shard_order(manifest, part.seed)
    ends = np.cumsum(manifest.counts[order])
    places = np.arange(part.start, part.stop)
    owners = np.searchsorted(ends, places, side="right")
    inside = places - (ends - manifest.counts[order])[owners]
    return pick(manifest, manifest.first_ordinals[order[owners]] + inside)


def _shard_order(manifest: ShardManifest, seed: int) -> I64:
    """Shards of a shuffled set in the order that subsets take them."""
    return permutation(len(manifest.shards), seed, _TAG_SUBSET) if seed else np.arange(len(manifest.shards))


def select_balanced(manifest: ShardManifest, num_samples: int, seed: int = 0) -> Subset:
    """A subset with equally many examples of each class, give or take one; nested as `select`'s are.

    Samples are taken in the subset's order (`select`'s), the first of each class, then the second of each, and so on:
    every subset is a beginning of that one sequence. A sample with several labels counts for its first.

    Raises:
        ConfigError: larger than the set, or a class has too few examples.
        DataError: the set is empty or has samples without labels, or an index cannot be read.
    """
    everything = select(manifest, None, seed)
    classes = manifest.num_classes
    if not 1 <= num_samples <= manifest.num_samples or not classes:
        raise ConfigError(
            f"{num_samples} balanced examples cannot be taken from {manifest.num_samples} of {classes} classes in the "
            f"set {manifest.name!r}"
        )
    each, over = divmod(num_samples, classes)
    needed = each + bool(over)
    seen = np.zeros(classes, np.int64)
    # Columns: shard, sample, rank in its class, place in the subset's order.
    pieces: list[tuple[I64, I64, I64, I64]] = []
    place = 0
    for shards, samples, labels in _in_subset_order(manifest, everything.shards, seed):
        by_class = np.argsort(labels, kind="stable")
        sorted_labels = labels[by_class]
        starts = np.searchsorted(sorted_labels, sorted_labels, side="left")
        ranks = np.empty(len(labels), np.int64)
        ranks[by_class] = seen[sorted_labels] + np.arange(len(labels)) - starts
        seen += np.bincount(labels, minlength=classes)
        kept = np.flatnonzero(ranks < needed)
        pieces.append((shards[kept], samples[kept], ranks[kept], kept + place))
        place += len(labels)
        if seen.min() >= needed:
            break
    if int((seen < each).sum()) or (over and int((seen > each).sum()) < over):
        poorest = int(seen.argmin())
        name = f" ({manifest.classes[poorest]})" if poorest < len(manifest.classes) else ""
        raise ConfigError(
            f"{num_samples} examples cannot be balanced over {classes} classes in the set {manifest.name!r}: class "
            f"{poorest}{name} has only {int(seen[poorest])}; at most {int(seen[poorest]) * classes} can"
        )
    shards, samples, ranks, places = (np.concatenate(column) for column in zip(*pieces, strict=True))
    extra = np.flatnonzero(ranks == each)
    extra = extra[np.argsort(places[extra], kind="stable")][:over]
    picked = np.concatenate((np.flatnonzero(ranks < each), extra))
    return _group(manifest, shards[picked], samples[picked])


def select_shots(manifest: ShardManifest, shots: int, seed: int = 0) -> I64:
    """`shots` examples of each class in a random order of the seed; fewer shots are the first of them.

    A sample with several labels counts for its first. Classes of the label space without any sample are left out.

    Returns:
        Ordinals in the manifest. int64 [classes, shots].

    Raises:
        ConfigError: a class has too few examples.
        DataError: the set is empty or has samples without labels, or an index cannot be read.
    """
    if manifest.num_samples == 0:
        raise DataError(f"the manifest {manifest.name!r} has no samples")
    labels = np.concatenate([_first_labels(manifest, shard) for shard in range(len(manifest.shards))])
    order = permutation(len(labels), seed, _TAG_SHOTS)
    by_class = order[np.argsort(labels[order], kind="stable")]
    classes, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    if counts.min() < shots:
        poorest = int(classes[counts.argmin()])
        name = f" ({manifest.classes[poorest]})" if poorest < len(manifest.classes) else ""
        raise ConfigError(
            f"{shots} shots cannot be taken in the set {manifest.name!r}: class {poorest}{name} has only "
            f"{int(counts.min())} examples"
        )
    ordinals: I64 = by_class[starts[:, None] + np.arange(shots)]
    return ordinals


def pick(manifest: ShardManifest, ordinals: I64) -> Subset:
    """The subset of the samples with these ordinals, in the order of the manifest."""
    ordinals = np.unique(ordinals)
    # Empty shards share the first ordinal of the next one; 'right' lands on the last of them, which holds the sample.
    owners = np.searchsorted(manifest.first_ordinals, ordinals, side="right") - 1
    return _group(manifest, owners, ordinals - manifest.first_ordinals[owners])


def _in_subset_order(manifest: ShardManifest, order: I64, seed: int) -> Iterator[tuple[I64, I64, I64]]:
    """Shards, samples and first labels of all samples, piece by piece, in the order that subsets take them."""
    pieces = ((shard, _first_labels(manifest, shard)) for shard in order.tolist())
    if manifest.shuffled:
        for shard, labels in pieces:
            yield np.full(len(labels), shard, np.int64), np.arange(len(labels)), labels
        return
    labels_of = dict(pieces)
    by_hash = np.argsort(_hashes(manifest, seed), kind="stable")
    shards = np.repeat(np.arange(len(manifest.shards)), manifest.counts)[by_hash]
    labels = np.concatenate([labels_of[s] for s in range(len(manifest.shards))])[by_hash]
    yield shards, by_hash - manifest.first_ordinals[shards], labels


def _first_labels(manifest: ShardManifest, shard: int) -> I64:
    index = manifest.read_index(shard)
    starts = np.concatenate(([0], index.label_ends[:-1])).astype(np.int64)
    bare = np.flatnonzero(index.label_ends == starts)
    if len(bare):
        raise DataError(f"{manifest.shards[shard].url}: sample {index.key(int(bare[0]))!r} has no label to balance by")
    return index.labels[starts]


def _group(manifest: ShardManifest, shards: I64, samples: I64) -> Subset:
    """The subset of these samples, in the order of the manifest."""
    order = np.lexsort((samples, shards))
    shards, samples = shards[order], samples[order]
    owners, starts = np.unique(shards, return_index=True)
    chosen = tuple(np.split(samples, starts[1:]))
    counts = np.array([len(c) for c in chosen], np.int64)
    return Subset(owners.astype(np.int64), counts, chosen, _num_bytes(manifest, owners, counts))


def _num_bytes(manifest: ShardManifest, shards: I64, counts: I64) -> int:
    """Bytes of tar that hold so many samples of each of these shards, about: by the shards' mean sample."""
    return int((manifest.sizes[shards] * counts // np.maximum(manifest.counts[shards], 1)).sum())


def _smallest_hashes(manifest: ShardManifest, wanted: int, seed: int) -> Subset:
    return pick(manifest, np.argsort(_hashes(manifest, seed), kind="stable")[:wanted].astype(np.int64))


def _hashes(manifest: ShardManifest, seed: int) -> U64:
    """hash(seed, shard ordinal, key) of every sample. uint64 [N]."""
    hashes = np.empty(manifest.num_samples, np.uint64)
    for shard, start in enumerate(manifest.first_ordinals.tolist()):
        index = manifest.read_index(shard)
        hashes[start : start + index.num_samples] = key_hashes(index, hash64(seed, _TAG_SUBSET, shard))
    return hashes


def key_hashes(index: ShardIndex, state: int) -> U64:
    """hash64(state, length, words...) of every key, its bytes taken as little-endian 64-bit words. uint64 [n]."""
    lengths = np.diff(index.key_ends, prepend=0)
    num_words = (lengths + 7) // 8
    # End to end, each key on a word's boundary: memory goes with all keys together, not with the longest one.
    firsts = np.cumsum(num_words) - num_words
    padded = np.zeros(int(num_words.sum()) * 8, np.uint8)
    places = np.arange(len(index.key_bytes)) - np.repeat(index.key_ends - lengths, lengths)
    padded[np.repeat(firsts * 8, lengths) + places] = index.key_bytes
    words = padded.view("<u8").astype(np.uint64)
    golden = np.uint64(GOLDEN_GAMMA)
    hashed = mix64_array(lengths.astype(np.uint64) + golden + np.uint64(hash64(state)))
    more, column = np.flatnonzero(num_words), 0
    while len(more):
        hashed[more] = mix64_array(hashed[more] + golden + words[firsts[more] + column])
        column += 1
        more = more[num_words[more] > column]
    return hashed
