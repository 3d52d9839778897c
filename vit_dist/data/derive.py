"""Manifests made of others: a selection of their samples, over the same tars, with indexes of its own. No torch.

The indexes have holes then: they name the samples that are kept, where they lie. Readers that go by the tar alone
(`wids`, webdataset) still see all of them; only readers of the indexes see the selection.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import (
    destination,
    exists,
    is_remote,
    join_url,
    local_path,
    parent_url,
    read_bytes,
    redact,
    url_name,
)
from vit_dist.core.seeding import I64
from vit_dist.data.index import encode_index, select_samples
from vit_dist.data.manifest import ShardManifest, checksum, write_index, write_manifest
from vit_dist.data.subset import Subset


def write_selection(
    manifest: ShardManifest,
    out: str,
    kept: Sequence[tuple[int, I64]],
    *,
    shuffled: bool,
    excluded: dict[str, Any] | None,
    name: str,
) -> ShardManifest:
    """Write the manifest of some of another's samples. The tars are shared; changed indexes go beside the new manifest.

    Args:
        manifest: the other.
        out: URL of the new manifest.
        kept: shards in their new order, and which of their samples, ascending; shards without any are left out.
        shuffled: the kept samples lie in random order.
        excluded: what the new manifest says of how it was made.
        name: of the new dataset.

    Raises:
        ConfigError: `out` is the other manifest.
        DataError: nothing is kept, or a file cannot be read or written.
    """
    out = destination(out, "--out")
    if not out.endswith(".json"):
        out = join_url(out, "manifest.json")
    base, stem = parent_url(out), url_name(out).removesuffix(".json")
    # The other's manifest may stand under another name or link: its fingerprint tells.
    replaces = exists(out)
    if replaces and f'"fingerprint": "{manifest.fingerprint}"'.encode() in read_bytes(out).partition(b'"excluded"')[0]:
        raise ConfigError(f"{redact(out)}: would overwrite the manifest that it is made from; choose another name")
    shards = []
    for ordinal, samples in kept:
        entry = manifest.shards[ordinal]
        if not len(samples):
            continue
        changes: dict[str, Any] = {"url": _seen_from(base, manifest.base, entry.url)}
        if len(samples) == entry.num_samples:
            changes["index_url"] = _seen_from(base, manifest.base, entry.index_url)
            shards.append(dataclasses.replace(entry, **changes))
            continue
        content = encode_index(select_samples(manifest.read_index(ordinal), samples))
        name_of_index = f"{stem}.index/{ordinal:06d}.idx.npz"
        changes["index_url"] = write_index(base, name_of_index, content, replaces=replaces)
        changes["index_checksum"] = checksum(content)
        shards.append(dataclasses.replace(entry, num_samples=len(samples), **changes))
    if not shards:
        raise DataError(f"{redact(out)}: no sample is left of {manifest.name!r}")
    made = dataclasses.replace(
        manifest, base=base, name=name, shards=tuple(shards), shuffled=shuffled, excluded=excluded
    )
    write_manifest(made, out)
    return made


def write_subset(manifest: ShardManifest, subset: Subset, out: str, *, balanced: bool) -> ShardManifest:
    """Write a subset as a manifest of its own; where it is a prefix of a shuffled set, it is shuffled too.

    Raises:
        ConfigError, DataError: as `write_selection`.
    """
    kept = [
        (int(shard), np.arange(count) if subset.chosen is None else subset.chosen[i])
        for i, (shard, count) in enumerate(zip(subset.shards.tolist(), subset.counts.tolist(), strict=True))
    ]
    # Balancing takes rare classes from further on: the end of a balanced subset is no random sample of it.
    shuffled = manifest.shuffled and not balanced
    name = f"{manifest.name}-{subset.num_samples}{'-balanced' if balanced else ''}"
    return write_selection(manifest, out, kept, shuffled=shuffled, excluded=manifest.excluded, name=name)


def write_exclusion(
    manifest: ShardManifest, left_out: Mapping[int, Sequence[int]], out: str, *, reason: str
) -> ShardManifest:
    """Write a manifest without some samples.

    Args:
        manifest: the other.
        left_out: samples to leave out, by shard.
        out: URL of the new manifest.
        reason: why, in a word; it stands in the new manifest with the fingerprint of the other.

    Raises:
        ConfigError, DataError: as `write_selection`.
    """
    kept = []
    digest = hashlib.sha256()
    for ordinal, count in enumerate(manifest.counts.tolist()):
        excluded_here = sorted(left_out.get(ordinal, ()))
        digest.update(f"{ordinal} {excluded_here}\n".encode())
        kept.append((ordinal, np.setdiff1d(np.arange(count), np.array(excluded_here, np.int64))))
    excluded = {
        "fingerprint": manifest.fingerprint,
        "num_samples": sum(len(set(s)) for s in left_out.values()),
        "digest": digest.hexdigest()[:16],
        "reason": reason,
        **({"before": manifest.excluded} if manifest.excluded else {}),
    }
    return write_selection(
        manifest, out, kept, shuffled=manifest.shuffled, excluded=excluded, name=f"{manifest.name}-{reason}"
    )


def _absolute(url: str) -> str:
    return url if is_remote(url) else str(local_path(url or ".").absolute())


def _seen_from(base: str, old_base: str, url: str) -> str:
    """The URL of a file of the old manifest, as the new manifest says it."""
    full = join_url(old_base, url)
    if not is_remote(full):
        full = str(local_path(full).absolute())
    here = _absolute(base)
    return full[len(here) + 1 :] if full.startswith(f"{here}/") else full
