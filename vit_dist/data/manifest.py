"""The manifest of a dataset: its shards, their sizes and checksums, and what the labels mean. No torch.

The file is JSON that webdataset's `wids` reads as its own; what others do not know stands under the key "vit_dist".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import xxhash

from vit_dist.core.errors import DataError, MissingError
from vit_dist.core.files import exists, join_url, parent_url, read_bytes, redact, url_name, write_bytes
from vit_dist.core.seeding import I64
from vit_dist.core.small_files import (
    DamagedError,
    NotJsonError,
    is_count,
    is_digest,
    is_flag,
    is_mapping,
    is_name,
    is_text,
    is_texts,
    or_none,
    parse_json,
    required,
)
from vit_dist.data.grammar import MAX_CLASSES, shown
from vit_dist.data.index import ShardIndex, decode_index
from vit_dist.data.not_a_set import MANIFEST, NotASetError, one_level_up, refuse_other_files, what_is_there
from vit_dist.data.ranges import RangeReader
from vit_dist.data.tarheader import BLOCK

_KIND = "wids-shard-index-v1"
_VERSION = 1
_MAX_TOTAL_BYTES = 2**60
_FIELDS = {
    "url": "url",
    "nsamples": "num_samples",
    "filesize": "num_bytes",
    "xxh128": "checksum",
    "index": "index_url",
    "index_xxh128": "index_checksum",
}
_SHARD_FIELDS = {
    "url": (is_name, "the URL of a tar"),
    "num_samples": (is_count, "a whole number from 0"),
    "num_bytes": (is_count, "a whole number from 0"),
    "checksum": (is_digest(32), "32 hexadecimal digits"),
    "index_url": (is_name, "the URL of an index"),
    "index_checksum": (is_digest(32), "32 hexadecimal digits"),
}


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


class Slice(NamedTuple):
    """Examples [start, stop) of a set's nested order, whose first n are the subset of n examples of that seed."""

    start: int
    stop: int
    seed: int

    def __str__(self) -> str:
        return f"{self.start} to {self.stop} of the nested order{f' {self.seed}' if self.seed else ''}"


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
        part: where no more than a slice of the set is meant, as what a run holds out of it; never in the file.
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
    part: Slice | None = None

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

    @property
    def num_chosen(self) -> int:
        """Samples that are meant: those of its part, or all."""
        return self.num_samples if self.part is None else self.part.stop - self.part.start

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

    def sliced(self, part: Slice) -> ShardManifest:
        """The same set, of which a slice is meant. Only for reading: it cannot be written."""
        assert self.part is None
        return replace(self, part=part)

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
        index = decode_index(content, redact(url), entry.num_bytes)
        if index.num_samples != entry.num_samples:
            raise DataError(
                f"{redact(url)}: the index holds {index.num_samples} samples, the manifest says {entry.num_samples} "
                f"for {entry.url}; index the shard again"
            )
        self._check_labels(index, redact(url), entry.url)
        if self.numbers is None:
            return index
        return replace(index, labels=np.array(self.numbers, np.int64)[index.labels])

    def _check_labels(self, index: ShardIndex, where: str, url: str) -> None:
        known = self.num_classes if self.numbers is None else len(self.numbers)
        outside = index.labels >= known
        if outside.any():
            wrong = int(outside.argmax())
            raise DataError(
                f"{where}: damaged index: labels: sample {index.key(index.owner(wrong))!r} of {redact(url)} has label "
                f"{int(index.labels[wrong])}, but the set {self.name!r} has {known} classes; index the tars again by "
                f"`vit-dist data index --num-classes N`"
            )
        counts = np.diff(index.label_ends, prepend=0)
        if len(counts) and int(counts.max()) > self.max_labels:
            most = int(counts.argmax())
            raise DataError(
                f"{where}: damaged index: label_ends: sample {index.key(most)!r} of {redact(url)} has "
                f"{int(counts[most])} labels, the manifest says at most {self.max_labels}; index the tars again"
            )


def checksum(content: bytes | memoryview) -> str:
    """XXH128 as 32 hexadecimal digits: against damage, not against malice; it keeps up with any disk."""
    return xxhash.xxh3_128_hexdigest(content)


def encode_manifest(manifest: ShardManifest) -> bytes:
    """The JSON text of a manifest, a shard a line; equal manifests give equal bytes."""
    assert manifest.numbers is None, "its labels are read as another set counts them"
    assert manifest.part is None, "a slice of it is meant"
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


def write_index(base: str, name: str, content: bytes, *, replaces: bool) -> str:
    """Write a sample index, before the manifest that names it.

    Where a manifest is replaced, an index of this name with another content is left to it, under which it is whole
    until the new manifest takes its place: whatever ends the writer before.

    Args:
        base: URL of the manifest's folder.
        name: of the index, seen from there.
        content: of the index.
        replaces: whether a manifest lies where the new one is going to.

    Returns:
        The name that it got: another one where an index was left.
    """
    url = join_url(base, name)
    if replaces and exists(url) and read_bytes(url) != content:
        name = f"{name.removesuffix('.idx.npz')}-{checksum(content)[:8]}.idx.npz"
        url = join_url(base, name)
    write_bytes(url, content)
    return name


def read_manifest(url: str) -> ShardManifest:
    """Read a manifest by the URL of its JSON file, or of the directory that holds manifest.json.

    A store that stumbles is asked again, as patiently as for shards: a whole job starts with this file.

    Raises:
        NotASetError: something else is there; the message says what, and how a set is made of it.
        DataError: missing, not a manifest, or edited by hand.
    """
    refuse_other_files(url)
    folder = "" if url_name(url).endswith(".json") else url
    url = join_url(folder, MANIFEST) if folder else url
    try:
        with contextlib.closing(RangeReader()) as reader:
            content = reader.read_all(url)
    except MissingError as error:
        there, above = what_is_there(folder) if folder else "", one_level_up(parent_url(url))
        one_there = f"there is one in {redact(above)}" if above else ""
        if not there and above:
            raise MissingError(f"{error}; {one_there}") from None
        if not there:
            raise
        there = f"{one_there}; {there}" if above else there
        raise NotASetError(f"{redact(folder)}: no {MANIFEST} in it; {there}") from None
    where = redact(url)
    try:
        raw = parse_json(content)
    except NotJsonError as error:
        raise DataError(f"{where}: not a manifest: {error}") from None
    except DamagedError as error:
        raise DataError(f"{where}: damaged manifest: {error}; make it anew with `vit-dist data index`") from None
    kind = raw.get("__kind__") if isinstance(raw, dict) else None
    if kind != _KIND:
        raise DataError(f"{where}: not a manifest: __kind__ is {shown(kind)}, expected {_KIND!r}")
    section = raw.get("vit_dist")
    if not isinstance(section, dict):
        raise DataError(
            f"{where}: a shard list of wids without sample indexes; make a manifest of these tars with "
            f"`vit-dist data index`"
        )
    if section.get("version") != _VERSION:
        raise DataError(
            f"{where}: manifest version {shown(section.get('version'))}; this vit_dist reads version {_VERSION}"
        )
    try:
        manifest = _decode(raw, section, parent_url(url))
        fingerprint, counted = manifest.fingerprint, manifest.num_samples
        said = required(section, "fingerprint", is_text, "16 hexadecimal digits")
        said_samples = required(section, "num_samples", is_count, "a whole number from 0")
    except DamagedError as error:
        raise DataError(f"{where}: damaged manifest: {error}; make it anew with `vit-dist data index`") from None
    if fingerprint != said or counted != said_samples:
        raise DataError(
            f"{where}: the manifest was edited by hand: its content has fingerprint {fingerprint} and "
            f"{counted} samples, it says {shown(said)} and {said_samples}; make it anew with `vit-dist data index`"
        )
    return manifest


def _decode(raw: dict[str, Any], section: dict[str, Any], base: str) -> ShardManifest:
    name = required(raw, "name", is_text, "a text")
    listed = required(raw, "shardlist", lambda v: isinstance(v, list) and bool(v), "a list of at least one shard")
    shards = []
    for number, record in enumerate(listed):
        try:
            shards.append(decode_shard(record, _FIELDS))
        except DamagedError as error:
            raise DamagedError(f"shardlist[{number}].{error}") from None
    if sum(shard.num_bytes for shard in shards) > _MAX_TOTAL_BYTES:
        raise DamagedError(f"filesize: the shards have more than {_MAX_TOTAL_BYTES:,} bytes together")
    num_classes = required(
        section, "num_classes", lambda v: is_count(v) and v <= MAX_CLASSES, f"a whole number from 0 to {MAX_CLASSES:,}"
    )
    most = max(1, num_classes)
    return ShardManifest(
        base=base,
        name=name,
        shards=tuple(shards),
        shuffled=required(section, "shuffled", is_flag, "true or false"),
        num_classes=num_classes,
        classes=tuple(
            required(
                section,
                "classes",
                lambda v: is_texts(v) and len(v) <= num_classes,
                f"a list of at most {num_classes:,} names, as many as there are classes",
            )
        ),
        max_labels=required(
            section, "max_labels", lambda v: is_count(v) and 0 < v <= most, f"a whole number from 1 to {most:,}"
        ),
        excluded=required(section, "excluded", or_none(is_mapping), "null or an object"),
    )


def decode_shard(record: Any, fields: Mapping[str, str] | None = None) -> Shard:
    """A shard out of JSON, each of its fields what it should be.

    Args:
        record: out of JSON.
        fields: of `Shard`, by the names that they have in the record; None: their own.

    Raises:
        DamagedError: it is not; the message begins with the field's name.
    """
    fields = fields or {field: field for field in _SHARD_FIELDS}
    values = {field: required(record, name, *_SHARD_FIELDS[field]) for name, field in fields.items()}
    shard = Shard(**values)
    # A sample has a header of one block at the least.
    if shard.num_samples > shard.num_bytes // BLOCK:
        name = next(name for name, field in fields.items() if field == "num_samples")
        raise DamagedError(f"{name}: {shard.num_samples:,} samples, which no tar of {shard.num_bytes:,} bytes holds")
    return shard
