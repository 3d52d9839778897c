"""What a source says about one image, the listing that keeps it on disk, and keys safe in a tar. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.core.files import disk_problem
from vit_dist.core.seeding import I64, hash64
from vit_dist.core.urls import redact
from vit_dist.data.grammar import MAX_CLASSES, LabelError, check_labels
from vit_dist.data.order import permute_array
from vit_dist.data.pack.keys import key_hash, repeated_hashes

_KEYS = "listing.keys"
_TAG_PACK = 0x5041434B  # "PACK"
# With its extension below the 100 bytes of a tar header's name, which is all that `wids` reads.
MAX_KEY_BYTES = 80
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/+=@,")


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes:
        key: of the sample; unique in the source, safe in a tar.
        url: of the file that holds it, relative to the source's base.
        offset: of its bytes in that file; -1: the whole file.
        num_bytes: their number, or -1 where the source does not say.
        labels: class numbers.
        weights: one a label for soft labels, else None.
        meta: whatever else is kept, as JSON, else None.
        where: for people: which file, line or row; '' for the url itself.
    """

    key: str
    url: str
    offset: int
    num_bytes: int
    labels: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    meta: dict[str, Any] | None = None
    where: str = ""

    def encode(self) -> bytes:
        """As one record of a listing."""
        row: list[Any] = [self.key, self.url, self.offset, self.num_bytes, self.labels]
        if self.weights is not None or self.meta is not None or self.where:
            row += [self.weights, self.meta, self.where]
        return json.dumps(row, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, record: bytes) -> Item:
        """From a record of a listing."""
        key, url, offset, num_bytes, labels, *rest = json.loads(record)
        weights, meta, where = rest or (None, None, "")
        return cls(key, url, offset, num_bytes, tuple(labels), None if weights is None else tuple(weights), meta, where)

    @property
    def place(self) -> str:
        """Where it comes from, for messages; a signed URL without what signs it."""
        place = self.where or self.url
        return redact(place) if ":/" in place else place


def safe_key(text: str) -> str:
    """`text` as a key: ASCII without dots or blanks. Injective: what is not plain is written %XX, as in URLs.

    Keys longer than 80 bytes are cut and end in '~' and a hash of the whole; `urllib.parse.unquote` gives the others
    back.
    """
    raw = text.encode("utf-8", "surrogateescape")
    key = text if all(b in _PLAIN for b in raw) else "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in raw)
    # webdataset takes such names for its own.
    if key.startswith("__"):
        key = "%5F" + key[1:]
    if len(key) > MAX_KEY_BYTES:
        head = key[: MAX_KEY_BYTES - 17]
        # Not in the middle of a %XX.
        cut = head.rfind("%", len(head) - 2)
        head = head[:cut] if cut >= 0 else head
        key = f"{head}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return key


class Listing:
    """The items of a source on disk: two files, records end to end and where each ends.

    Attributes:
        digest: 16 hexadecimal digits of what the items are, but not of where their files lie.
        num_bytes: bytes of all images, as far as the source says.
    """

    def __init__(self, folder: Path, *, count: int, digest: str, num_bytes: int) -> None:
        self.folder, self.count, self.digest, self.num_bytes = folder, count, digest, num_bytes
        self._records = os.open(folder / "listing.bin", os.O_RDONLY)
        self._ends = os.open(folder / "listing.ends", os.O_RDONLY)

    @classmethod
    def write(cls, folder: Path, items: Iterable[Item]) -> Self:
        """List all items into `folder`.

        Raises:
            DataError: two items have one key, the disk is full, or the source fails.
        """
        digest, count, end, num_bytes = hashlib.sha256(), 0, 0, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (
                (folder / "listing.bin").open("wb") as records,
                (folder / "listing.ends").open("wb") as ends,
                (folder / _KEYS).open("wb") as keys,
            ):
                for item in items:
                    keys.write(key_hash(item.key).to_bytes(8, "little"))
                    record = item.encode()
                    records.write(record)
                    end += len(record)
                    ends.write(end.to_bytes(8, "little"))
                    fields = [item.key, item.num_bytes, item.labels, item.weights, item.meta]
                    digest.update(json.dumps(fields, sort_keys=True).encode())
                    count += 1
                    num_bytes += max(item.num_bytes, 0)
        except OSError as error:
            raise DataError(
                f"{folder}: the list of images cannot be written: {disk_problem(error) or error}. Another folder is "
                f"--work-dir"
            ) from None
        listing = cls(folder, count=count, digest=digest.hexdigest()[:16], num_bytes=num_bytes)
        try:
            listing._refuse_repeated_keys()
        except BaseException:
            listing.close()
            raise
        return listing

    def _refuse_repeated_keys(self) -> None:
        """Keys name samples in lists and messages: they are unique in the whole set, into however many shards it goes.

        Raises:
            DataError: two items have the same.
        """
        hashes = repeated_hashes(self.folder / _KEYS, self.count)
        (self.folder / _KEYS).unlink()
        if not hashes:
            return
        seen: dict[str, str] = {}
        for i in range(self.count):
            item = self[i]
            if key_hash(item.key) not in hashes:
                continue
            if item.key in seen:
                raise DataError(
                    f"{item.place}: its key {item.key!r} is that of {seen[item.key]} too; keys must be unique in the "
                    f"whole set: mend one of them, name another field (--key-field), or leave that option out"
                )
            seen[item.key] = item.place

    def describe(self) -> tuple[Path, int, str, int]:
        """What `reopen` needs in another process."""
        return self.folder, self.count, self.digest, self.num_bytes

    @classmethod
    def reopen(cls, described: tuple[Path, int, str, int]) -> Self:
        """The same listing in another process."""
        folder, count, digest, num_bytes = described
        return cls(folder, count=count, digest=digest, num_bytes=num_bytes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, ordinal: int) -> Item:
        ends = os.pread(self._ends, 16, (ordinal - 1) * 8) if ordinal else bytes(8) + os.pread(self._ends, 8, 0)
        begin, end = int.from_bytes(ends[:8], "little"), int.from_bytes(ends[8:], "little")
        return Item.decode(os.pread(self._records, end - begin, begin))

    def close(self) -> None:
        """Close its files."""
        os.close(self._records)
        os.close(self._ends)


def shuffled_ordinals(first: int, count: int, total: int, seed: int) -> I64:
    """The ordinals at places [first, first + count) of the packed set: a slice of a permutation of range(total)."""
    places = np.arange(first, first + count, dtype=np.int64)
    key = np.full(count, hash64(seed, _TAG_PACK), np.uint64)
    return permute_array(places, np.full(count, total, np.int64), key)


def check_item(item: Item, num_classes: int | None) -> None:
    """Refuse labels that cannot be trained on, whatever kind of source they come from.

    Raises:
        DataError: naming the image and the label.
    """
    try:
        check_labels(item.labels, item.weights, num_classes or MAX_CLASSES)
    except LabelError as error:
        raise DataError(f"{item.place}: this image {error}") from None


def finite(value: Any) -> Any:
    """Metadata as JSON can say it: numbers that are not finite, which JSON has not, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
