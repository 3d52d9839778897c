"""The manifest of a dataset: its shards, their sizes and checksums, and what the labels mean. No torch.

The file is JSON that webdataset's `wids` reads as its own; what others do not know stands under the key "vit_dist".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from vit_dist.core.errors import DataError
from vit_dist.core.files import join_url, parent_url, read_bytes, redact, url_name, write_bytes
from vit_dist.core.seeding import I64
from vit_dist.data.index import ShardIndex, decode_index
from vit_dist.data.ranges import RangeReader

_KIND = "wids-shard-index-v1"
_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One tar and its sample index.

    Attributes:
        url: of the tar; relative ones are relative to the manifest.
        num_samples: samples in it.
        num_bytes: its size.
        checksum: XXH128 of its bytes, 32 hexadecimal digits.
        index_url: of the sample index; relative as above.
        index_checksum: XXH128 of the index's bytes.
    """

    url: str
    num_samples: int
    num_bytes: int
    checksum: str
    index_url: str
    index_checksum: str


@dataclass(frozen=True)
class ShardManifest:
    """The shards of a dataset, in their order.

    Attributes:
        base: URL of the directory that relative shard URLs start from.
        name: for people.
        shards: in the manifest's order, which subsets and shard ordinals refer to.
        shuffled: True where the samples lie in random order, so that any run of them is a random sample.
        num_classes: of the label space.
        classes: their names, or () where there are none.
        max_labels: the most labels that one sample has.
        excluded: where this manifest is another one less an exclusion list: {"fingerprint", "num_samples", ...}.
        numbers: where labels are read as another set counts them, its number of each class; never in the file.
    """

    base: str
    name: str
    shards: tuple[Shard, ...]
    shuffled: bool
    num_classes: int
    classes: tuple[str, ...] = ()
    max_labels: int = 1
    excluded: dict[str, Any] | None = None
    numbers: tuple[int, ...] | None = None

    @cached_property
    def counts(self) -> I64:
        """Samples in each shard. int64 [S]."""
        return np.array([s.num_samples for s in self.shards], np.int64)

    @cached_property
    def sizes(self) -> I64:
        """Bytes of each shard. int64 [S]."""
        return np.array([s.num_bytes for s in self.shards], np.int64)

    @cached_property
    def first_ordinals(self) -> I64:
        """The ordinal, in the whole manifest, of each shard's first sample. int64 [S]."""
        return np.concatenate(([0], np.cumsum(self.counts)[:-1])).astype(np.int64)

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.counts.sum())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the content: bytes and indexes of the shards in order, never their URLs."""
        digest = hashlib.sha256()
        for s in self.shards:
            digest.update(f"{s.num_samples} {s.num_bytes} {s.checksum} {s.index_checksum}\n".encode())
        num_classes = self.num_classes if self.numbers is None else len(self.numbers)
        tail = {"shuffled": self.shuffled, "num_classes": num_classes, "excluded": self.excluded}
        digest.update(json.dumps(tail, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def shard_url(self, shard: int) -> str:
        """The full URL of a shard's tar."""
        return join_url(self.base, self.shards[shard].url)

    def renumbered(self, numbers: tuple[int, ...], num_classes: int, classes: tuple[str, ...]) -> ShardManifest:
        """The same set, its labels read as another one counts them. Only for reading: it cannot be written.

        Args:
            numbers: the other's number of each class.
            num_classes: of the other.
            classes: the other's names.
        """
        assert self.numbers is None
        return replace(self, numbers=numbers, num_classes=num_classes, classes=classes)

    def read_index(self, shard: int, read: Callable[[str], bytes] = read_bytes) -> ShardIndex:
        """The sample index of a shard, checked against the manifest.

        Args:
            shard: its ordinal.
            read: from a URL to its bytes.

        Raises:
            DataError: missing, damaged, or not the one that the manifest was made with.
        """
        entry = self.shards[shard]
        url = join_url(self.base, entry.index_url)
        content = read(url)
        actual = checksum(content)
        if actual != entry.index_checksum:
            raise DataError(
                f"{redact(url)}: the index has checksum {actual}, the manifest says {entry.index_checksum}: one of "
                f"them was changed after the other; index the shard {entry.url} again"
            )
        index = decode_index(content, redact(url))
        if index.num_samples != entry.num_samples:
            raise DataError(
                f"{redact(url)}: the index holds {index.num_samples} samples, the manifest says {entry.num_samples} "
                f"for {entry.url}; index the shard again"
            )
        return index if self.numbers is None else self._counted(index, self.numbers, entry.url)

    def _counted(self, index: ShardIndex, numbers: tuple[int, ...], url: str) -> ShardIndex:
        known = len(numbers)
        if len(index.labels) and not 0 <= int(index.labels.min()) <= int(index.labels.max()) < known:
            wrong = int(np.argmax((index.labels < 0) | (index.labels >= known)))
            owner = int(np.searchsorted(index.label_ends, wrong, side="right"))
            raise DataError(
                f"{redact(url)}: sample {index.key(owner)!r} has label {int(index.labels[wrong])}, but the set "
                f"{self.name!r} has {known} classes; index the tars again with --num-classes"
            )
        return replace(index, labels=np.array(numbers, np.int64)[index.labels])


def checksum(content: bytes | memoryview) -> str:
    """XXH128 as 32 hexadecimal digits: against damage, not against malice; it keeps up with any disk."""
    return xxhash.xxh3_128_hexdigest(content)


def encode_manifest(manifest: ShardManifest) -> bytes:
    """The JSON text of a manifest, a shard a line; equal manifests give equal bytes."""
    assert manifest.numbers is None, "its labels are read as another set counts them"
    shards = ",\n".join(
        "  "
        + json.dumps(
            {
                "url": s.url,
                "nsamples": s.num_samples,
                "filesize": s.num_bytes,
                "xxh128": s.checksum,
                "index": s.index_url,
                "index_xxh128": s.index_checksum,
            }
        )
        for s in manifest.shards
    )
    section = {
        "version": _VERSION,
        "fingerprint": manifest.fingerprint,
        "num_samples": manifest.num_samples,
        "shuffled": manifest.shuffled,
        "num_classes": manifest.num_classes,
        "max_labels": manifest.max_labels,
        "excluded": manifest.excluded,
        "classes": list(manifest.classes),
    }
    return (
        f'{{\n"__kind__": "{_KIND}",\n"wids_version": 1,\n"name": {json.dumps(manifest.name)},\n'
        f'"vit_dist": {json.dumps(section)},\n"shardlist": [\n{shards}\n]\n}}\n'
    ).encode()


def write_manifest(manifest: ShardManifest, url: str) -> None:
    """Write a manifest; last of all files of a dataset, so that where it is, the dataset is complete."""
    write_bytes(url, encode_manifest(manifest))


def read_manifest(url: str) -> ShardManifest:
    """Read a manifest by the URL of its JSON file, or of the directory that holds manifest.json.

    A store that stumbles is asked again, as patiently as for shards: a whole job starts with this file.

    Raises:
        DataError: missing, not a manifest, or edited by hand.
    """
    if not url_name(url).endswith(".json"):
        url = join_url(url, "manifest.json")
    with contextlib.closing(RangeReader()) as reader:
        content = reader.read_all(url)
    where = redact(url)
    try:
        raw = json.loads(content)
        kind = raw.get("__kind__")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{where}: not a manifest: {error}") from None
    if kind != _KIND:
        raise DataError(f"{where}: not a manifest: __kind__ is {kind!r}, expected {_KIND!r}")
    section = raw.get("vit_dist")
    if not isinstance(section, dict):
        raise DataError(
            f"{where}: a shard list of wids without sample indexes; make a manifest of these tars with "
            f"`vit-dist data index`"
        )
    if section.get("version") != _VERSION:
        raise DataError(f"{where}: manifest version {section.get('version')!r}; this vit_dist reads version {_VERSION}")
    try:
        manifest = ShardManifest(
            base=parent_url(url),
            name=str(raw["name"]),
            shards=tuple(
                Shard(s["url"], s["nsamples"], s["filesize"], s["xxh128"], s["index"], s["index_xxh128"])
                for s in raw["shardlist"]
            ),
            shuffled=section["shuffled"],
            num_classes=section["num_classes"],
            classes=tuple(section["classes"]),
            max_labels=section["max_labels"],
            excluded=section["excluded"],
        )
        fingerprint, counted = manifest.fingerprint, manifest.num_samples
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: damaged manifest: {type(error).__name__}: {error}") from None
    if fingerprint != section.get("fingerprint") or counted != section.get("num_samples"):
        raise DataError(
            f"{where}: the manifest was edited by hand: its content has fingerprint {fingerprint} and "
            f"{counted} samples, it says {section.get('fingerprint')} and {section.get('num_samples')}; make it "
            f"anew with `vit-dist data index`"
        )
    return manifest
