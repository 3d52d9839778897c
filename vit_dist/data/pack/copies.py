"""Images that a packing holds more than once, byte for byte: under several labels, or in train and val. No torch.

Whoever packs a shard keeps two digests of each sample in the shard's done marker; whoever writes the manifests compares
them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from vit_dist.core.files import join_url, write_bytes
from vit_dist.core.seeding import I64, U64
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.pack.items import Item

COPIES_LIST = "copies.jsonl"
"""The images of which there are copies with other labels, a line for each file."""
MOST_IMAGES = 5_000_000
"""In a packing whose images are compared: 16 bytes are kept of each."""
_BYTES = 16


@dataclass(frozen=True)
class PackedCopies:
    """What was found in a packing.

    Attributes:
        mixed: files that are there more than once, with labels that differ.
        in_both: images of val whose file is in train too, whatever its labels.
        shown: of the first file of `mixed`: key and labels of its first two samples that differ, as people read them.
    """

    mixed: int = 0
    in_both: int = 0
    shown: tuple[str, ...] = ()


def digest(item: Item, image: bytes) -> tuple[int, int]:
    """What a sample is compared by: of the bytes of its image as they are packed, and of its labels."""
    labels = repr((item.labels, item.weights)).encode()
    return xxhash.xxh3_64_intdigest(image), xxhash.xxh3_64_intdigest(labels)


def encode_digests(digests: Sequence[tuple[int, int]]) -> str:
    """As a text, for a done marker."""
    return base64.b64encode(np.array(digests, np.dtype("<u8")).tobytes()).decode()


def are_digests(value: Any, samples: int) -> bool:
    """Whether a text is what `encode_digests` makes of so many samples; '' where they were not kept."""
    if not isinstance(value, str):
        return False
    try:
        return not value or len(base64.b64decode(value, validate=True)) == _BYTES * samples
    except binascii.Error:
        return False


def find_copies(dest: str, manifests: Sequence[ShardManifest], digests: Sequence[Sequence[str]]) -> PackedCopies | None:
    """Compare the images of a packing, and list in `dest` those that have copies with other labels.

    Args:
        dest: URL of a directory.
        manifests: of the set, or of train and of val.
        digests: for each of them those of its shards, by their done markers.

    Returns:
        None where digests are missing: nothing is known.

    Raises:
        DataError: an index cannot be read, or the list not be written.
    """
    if not all(text for texts in digests for text in texts):
        return None
    pairs = [_decoded(text) for texts in digests for text in texts]
    images, labels = np.concatenate([p[:, 0] for p in pairs]), np.concatenate([p[:, 1] for p in pairs])
    first = np.cumsum([0, *(len(p) for p in pairs)])
    order = np.argsort(images, kind="stable")
    # Where a file's samples begin among those that are sorted.
    begins = np.flatnonzero(np.r_[True, images[order][1:] != images[order][:-1]])
    own_labels, num_train = labels[order], int(first[len(digests[0])])
    in_train = np.add.reduceat(order < num_train, begins)
    counts = np.diff(np.r_[begins, len(order)])
    in_both = int((counts - in_train)[in_train > 0].sum()) if len(manifests) > 1 else 0
    mixed = np.maximum.reduceat(own_labels, begins) != np.minimum.reduceat(own_labels, begins)
    groups = [order[b : b + n] for b, n in zip(begins[mixed].tolist(), counts[mixed].tolist(), strict=True)]
    # In the order of the set, not of their digests.
    groups.sort(key=lambda group: int(group[0]))
    lines = _lines(manifests, [len(texts) for texts in digests], first, groups)
    if lines:
        text = "".join(json.dumps({"images": line}, ensure_ascii=False) + "\n" for line in lines)
        write_bytes(join_url(dest, COPIES_LIST), text.encode("utf-8", "surrogateescape"))
    return PackedCopies(len(groups), in_both, _shown(lines[0], manifests[0].classes) if lines else ())


def _decoded(text: str) -> U64:
    return np.frombuffer(base64.b64decode(text), np.dtype("<u8")).reshape(-1, 2)


def _lines(
    manifests: Sequence[ShardManifest], num_shards: Sequence[int], first: I64, groups: Sequence[I64]
) -> list[list[dict[str, Any]]]:
    """Of each file, set, key and labels of its samples."""
    places = [(manifest, shard) for manifest, n in zip(manifests, num_shards, strict=True) for shard in range(n)]
    found: list[list[dict[str, Any]]] = [[] for _ in groups]
    wanted = sorted((int(sample), number) for number, group in enumerate(groups) for sample in group)
    opened, index = -1, None
    for sample, number in wanted:
        at = int(np.searchsorted(first, sample, side="right")) - 1
        manifest, shard = places[at]
        if at != opened or index is None:
            opened, index = at, manifest.read_index(shard)
        own, weights = index.sample_labels(sample - int(first[at]))
        entry = {"set": manifest.name, "key": index.key(sample - int(first[at])), "labels": own.tolist()}
        found[number].append(entry if (weights == 1).all() else {**entry, "weights": weights.tolist()})
    return found


def _shown(line: Sequence[dict[str, Any]], classes: Sequence[str]) -> tuple[str, ...]:
    def named(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    other = next(
        (e for e in line if (e["labels"], e.get("weights")) != (line[0]["labels"], line[0].get("weights"))), None
    )
    return tuple(f"{e['key']} ({', '.join(map(named, e['labels']))})" for e in (line[0], other) if e)
