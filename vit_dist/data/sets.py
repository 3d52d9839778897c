"""The training examples of a recipe: one set or a mixture, their subsets and their order. No torch, no sample read."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Protocol

import numpy as np

from vit_dist.config.held_out import held_out_count
from vit_dist.config.load import shipped_set
from vit_dist.config.schema import ComponentConfig, DataConfig, Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.urls import is_remote
from vit_dist.data.classes import Classes, lay_out
from vit_dist.data.manifest import ShardManifest, Slice, read_manifest
from vit_dist.data.mixture import MixtureIdentity, MixtureOrder, resolve_mixture
from vit_dist.data.order import SMALL_SET_BYTES, GlobalOrder, OrderIdentity, resolve_lanes
from vit_dist.data.ranges import LEAST_RANGE_BYTES
from vit_dist.data.subset import Subset, select


@dataclass(frozen=True)
class Part:
    """One set among those that an order counts in.

    Attributes:
        manifest: of its shards.
        subset: which of its samples are used.
        name: in the mixture; '' where there is one set only.
        label_offset: added to each label.
        first_shard: the number that the order gives to the subset's first shard.
        first_ordinal: the ordinal, among all parts, of the manifest's first sample.
    """

    manifest: ShardManifest
    subset: Subset
    name: str = ""
    label_offset: int = 0
    first_shard: int = 0
    first_ordinal: int = 0

    def ordinal(self, shard: int, sample: int) -> int:
        """The ordinal, among all parts, of a sample of a shard of the manifest."""
        return self.first_ordinal + int(self.manifest.first_ordinals[shard]) + sample

    def stored(self, ordinal: int) -> tuple[int, int]:
        """The shard of the manifest, and the sample in it, with an ordinal among all parts."""
        inner, first = ordinal - self.first_ordinal, self.manifest.first_ordinals
        # Empty shards share the first ordinal of the next one; 'right' lands on the last of them, which holds it.
        shard = int(np.searchsorted(first, inner, side="right")) - 1
        return shard, inner - int(first[shard])

    def place(self, ordinal: int) -> tuple[int, int] | None:
        """The same as the order counts them; None for a sample that is not in the subset."""
        shard, sample = self.stored(ordinal)
        owns = np.flatnonzero(self.subset.shards == shard)
        if not len(owns):
            return None
        own = int(owns[0])
        if self.subset.chosen is not None:
            sample = int(np.searchsorted(self.subset.chosen[own], stored := sample))
            if sample == len(self.subset.chosen[own]) or self.subset.chosen[own][sample] != stored:
                return None
        return (self.first_shard + own, sample) if sample < self.subset.counts[own] else None


class Parts(tuple[Part, ...]):
    """The parts of an order, found by its shard numbers."""

    def find(self, shard: int) -> tuple[Part, int]:
        """The part of an order's shard, and the shard's number in the part's subset."""
        at = bisect_right(self, shard, key=lambda part: part.first_shard) - 1
        part = self[at]
        return part, shard - part.first_shard

    def of(self, ordinal: int) -> Part:
        """The part of an ordinal."""
        return self[bisect_right(self, ordinal, key=lambda part: part.first_ordinal) - 1]


@dataclass(frozen=True)
class TrainingSet:
    """The examples of a run and their order.

    Attributes:
        parts: the set, or those of a mixture in the order of their names.
        order: of all of them.
        identity: what a position belongs to.
    """

    parts: Parts
    order: GlobalOrder | MixtureOrder
    identity: OrderIdentity | MixtureIdentity

    @property
    def num_samples(self) -> int:
        """Examples of an epoch; of a mixture, of all its subsets together."""
        return self.order.num_samples

    @property
    def num_bytes(self) -> int:
        """Bytes of tar that hold them, about."""
        return sum(part.subset.num_bytes for part in self.parts)

    @property
    def total_samples(self) -> int:
        """Samples of the whole manifests, before subsets."""
        return sum(part.manifest.num_samples for part in self.parts)

    @property
    def name(self) -> str:
        """For people: the manifest's name, or 'web + books' for a mixture."""
        return " + ".join(part.name or part.manifest.name for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the content of the manifests."""
        if len(self.parts) == 1 and not self.parts[0].name:
            return self.parts[0].manifest.fingerprint
        text = "\n".join(f"{part.name} {part.manifest.fingerprint}" for part in self.parts)
        # The same bytes under other numbers teach something else.
        text += "".join(f"\n{p.name} {p.manifest.numbers}" for p in self.parts if p.manifest.numbers is not None)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def class_names(self) -> dict[int, str]:
        """What the sets call each class of the head, as far as they have names."""
        return {i + p.label_offset: name for p in self.parts for i, name in Classes.of(p.manifest).names.items()}

    @property
    def num_classes(self) -> int:
        """The classes that labels of the sets may mean: the highest number and one."""
        return max(part.manifest.num_classes + part.label_offset for part in self.parts)

    @property
    def fits_in_memory(self) -> bool:
        """Whether shards are read whole and kept: the parts are small, and a lane of each is one window."""
        return self.num_bytes < SMALL_SET_BYTES and all(o.window == o.num_samples for o in self._orders)

    @property
    def _orders(self) -> Sequence[GlobalOrder]:
        return self.order.orders if isinstance(self.order, MixtureOrder) else (self.order,)

    def epochs(self, position: int) -> dict[str, float]:
        """How many of its own epochs each set of a mixture has been through at a position; {} for one set."""
        if not isinstance(self.order, MixtureOrder):
            return {}
        given = self.order.consumed(position)
        return {p.name: n / o.num_samples for p, n, o in zip(self.parts, given, self._orders, strict=True)}

    def read_ahead_bytes(self, ranks: int) -> int:
        """Bytes of tar that a rank holds at once, about: two windows of each lane that it reads, and their indexes."""
        if self.fits_in_memory:
            return self.num_bytes
        total, shared = 0, gcd(self.order.lanes, ranks)
        for part, order in zip(self.parts, self._orders, strict=True):
            n, lanes = order.num_samples, -(-order.lanes // shared)
            samples = min(n, 2 * lanes * order.window)
            indexed = min(n, 2 * lanes * int(part.manifest.counts.max()))
            total += part.subset.num_bytes * samples // n + _INDEX_BYTES * indexed
        return total

    def windows_at_once(self, ranks: int, most_bytes: int) -> int:
        """How many neighbouring windows of a lane a rank reads in one range: as many as make a request worth its
        price where the tars lie in a store, as far as `most_bytes` in all allow, and one at the least."""
        if self.fits_in_memory or not any(is_remote(part.manifest.shard_url(0)) for part in self.parts):
            return 1
        window_bytes = max(1, self.num_bytes * max(order.window for order in self._orders) // self.num_samples)
        wanted = -(-LEAST_RANGE_BYTES // window_bytes)
        return max(1, min(wanted, most_bytes // max(1, self.read_ahead_bytes(ranks))))


def idle_outputs(head: int, known: int) -> str:
    """Words for a warning where a head has many more outputs than its set has classes; '' where it has not.

    Args:
        head: data.num_classes.
        known: classes of the training set.
    """
    # One more for a background is common.
    if head <= known + max(1, known // 10):
        return ""
    return (
        f"data.num_classes={head:,}, but the training set has {known:,} classes: {head - known:,} outputs of the head "
        f"are never right, and cost memory and accuracy; meant is data.num_classes={known}, unless the head is to be "
        f"that of other weights"
    )


def too_many_outputs(recipe: Recipe, known: int) -> str:
    """Why a recipe's head has so many more outputs than its set has classes that it must be a mistake; '' where not.

    Not one that says that it is meant (`data.spare_outputs`), nor one that goes on with the head of other weights.

    Args:
        recipe: of a run that is to begin.
        known: classes of the training set.
    """
    begins = recipe.branch or recipe.init
    head, keeps = recipe.data.num_classes, begins is not None and begins.head != "new"
    if recipe.data.spare_outputs or keeps or head <= max(_IDLE_FACTOR * known, known + _IDLE_FEW):
        return ""
    return (
        f"data.num_classes={head:,}, but the training set has {known:,} classes: {head - known:,} outputs of the head "
        f"would never be right, and cost memory and accuracy; give data.num_classes={known}, or, where so large a head "
        f"is meant, data.spare_outputs=true"
    )


_IDLE_FACTOR, _IDLE_FEW = 10, 100
"""Heads are refused that have more than so many outputs for each class, unless they are a few more."""


def whole_set(manifest: ShardManifest | None) -> Parts | None:
    """All samples of a set, as parts; None where there is none."""
    return None if manifest is None or not manifest.num_samples else Parts([Part(manifest, select(manifest, None))])


def how_to_pack(recipe: Recipe) -> str:
    """What to do where the images of a shipped recipe lie beside it, and were not packed yet; '' of any other."""
    shipped = shipped_set(recipe)
    if shipped is None or not shipped.with_suffix("").is_dir():
        return ""
    images = f"configs/data/{shipped.stem}"
    return (
        f". The images of data.dataset={shipped.stem} are not packed yet: `make demo` does it, or `vit-dist data pack "
        f"{images} runs/data/{shipped.stem}/train --split-name train` and `... /val --split-name test`"
    )


_INDEX_BYTES = 64
"""Of one sample in an index in memory: offsets, lengths, a label, a key of some ten letters."""


class Wanted(Protocol):
    """What says which examples are read, in which order and batches: a recipe, or a stream without one."""

    @property
    def data(self) -> DataConfig:
        """The sets, and how they are read."""

    @property
    def seed(self) -> int:
        """Of order and augmentation."""

    @property
    def global_batch(self) -> int:
        """Examples of one step, on all ranks."""


def open_training_set(
    recipe: Wanted, *, read: Callable[[str], ShardManifest] = read_manifest, labelled: bool = True
) -> TrainingSet:
    """Read the manifests, choose the subsets and fix the order.

    Args:
        recipe: of the run, or of the stream.
        read: from a manifest's URL to it.
        labelled: refuse a set without labels.

    Raises:
        ConfigError: no set is named, a subset larger than its set, more lanes than examples, labels that the head does
            not know, sets of a mixture whose classes do not fit together.
        DataError: a manifest that cannot be read.
    """
    config = recipe.data
    if config.mixture:
        return _open_mixture(recipe, config, read, labelled=labelled)
    if not config.train:
        raise ConfigError("data.train is empty: give the URL of a manifest, made by `vit-dist data pack`")
    whole = ComponentConfig(train=config.train, subset=config.subset, subset_seed=config.subset_seed)
    part = _open_part("", whole, config, read(config.train), labelled=labelled)
    lanes, window = resolve_lanes(part.subset.num_samples, part.subset.num_bytes, config.lanes, config.window)
    order = GlobalOrder(part.subset.counts, seed=recipe.seed, lanes=lanes, window=window)
    return TrainingSet(Parts([part]), order, _identity(part, order, config.subset_seed))


def _open_mixture(
    recipe: Wanted, config: DataConfig, read: Callable[[str], ShardManifest], *, labelled: bool
) -> TrainingSet:
    parts: list[Part] = []
    shards = ordinals = 0
    for name, component in sorted(config.mixture.items()):
        part = _open_part(name, component, config, read(component.train), labelled=labelled)
        part = replace(part, first_shard=shards, first_ordinal=ordinals)
        parts.append(part)
        shards, ordinals = shards + len(part.subset.counts), ordinals + part.manifest.num_samples
    placed, _ = lay_out({part.name: (part.manifest, part.label_offset) for part in parts}, config.num_classes)
    parts = [replace(part, manifest=placed[part.name]) for part in parts]
    shapes = resolve_mixture(
        {name: component.weight for name, component in config.mixture.items()},
        {part.name: part.subset.num_samples for part in parts},
        sum(part.subset.num_bytes for part in parts),
        config.lanes,
        config.window,
    )
    orders = [
        GlobalOrder(part.subset.counts, seed=recipe.seed, lanes=shapes[part.name][0], window=shapes[part.name][1])
        for part in parts
    ]
    identities = {
        part.name: _identity(part, order, config.mixture[part.name].subset_seed)
        for part, order in zip(parts, orders, strict=True)
    }
    return TrainingSet(Parts(parts), MixtureOrder(orders), MixtureIdentity(identities))


def _open_part(
    name: str, component: ComponentConfig, config: DataConfig, manifest: ShardManifest, *, labelled: bool
) -> Part:
    where, offset = f"data.mixture.{name}: " if name else "", component.label_offset
    if labelled and not manifest.num_classes:
        raise ConfigError(
            f"{where}the set {manifest.name!r} has no labels to train on; index its tars by `vit-dist data index "
            f"--labels EXT`"
        )
    needed = manifest.num_classes + offset
    if needed > config.num_classes:
        moved = f" and label_offset={offset}" if offset else ""
        raise ConfigError(
            f"{where}data.num_classes={config.num_classes}, but the set {manifest.name!r} has {manifest.num_classes} "
            f"classes{moved}; set data.num_classes={needed}"
        )
    # Of a mixture nothing is held out.
    held_out = "" if name else config.held_out
    try:
        subset = select(manifest, component.subset, component.subset_seed)
        if held_out:
            kept = held_out_slice(config, manifest).start
            subset = select(manifest, kept, component.subset_seed)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    return Part(manifest, subset, name, offset)


def held_out_slice(config: DataConfig, manifest: ShardManifest) -> Slice:
    """What `data.held_out` takes out of the training set: the end of its nested order, as far as `data.subset` goes.

    So what is trained on is the subset of so many examples less, and the two have no example in common.

    Raises:
        ConfigError: it would be empty, or all there is.
    """
    total = manifest.num_samples if config.subset is None else config.subset
    try:
        count = held_out_count(config.held_out, total)
    except ValueError as error:
        raise ConfigError(f"data.held_out: {error} (the set {manifest.name!r})") from None
    return Slice(total - count, total, config.subset_seed)


def _identity(part: Part, order: GlobalOrder, subset_seed: int) -> OrderIdentity:
    fingerprint, n = part.manifest.fingerprint, order.num_samples
    return OrderIdentity(fingerprint, n, subset_seed, order.lanes, order.window, order.seed)
