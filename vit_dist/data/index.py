"""The sample index of one shard: where each sample lies in the tar, its key and its labels. No torch.

A sidecar file beside the tar, an uncompressed .npz without pickles. Samples are in the order of the tar.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import DataError
from vit_dist.core.npz import Arrays, NotAnArchiveError, open_arrays
from vit_dist.core.seeding import I64
from vit_dist.core.small_files import DamagedError

F32 = NDArray[np.float32]
_FORMAT = 1
_BLOCK = 512
MOST_SAMPLE_BYTES = 2 << 30
"""From a sample's first header to the end of its image, which is what is read of it: the largest image that is taken
has 1.5 GB, without any compression."""
_TYPES = {"label_weights": np.dtype(np.float32), "key_bytes": np.dtype(np.uint8)}


@dataclass(frozen=True)
class ShardIndex:
    """Samples of one shard. n samples, m labels in all.

    Attributes:
        offsets: int64 [n + 1]; sample i's tar members lie at the start of bytes [offsets[i], offsets[i + 1]). What
            may follow them there belongs to samples that this index leaves out (an exclusion, a subset).
        image_offsets: int64 [n]; first byte of the image's own bytes in the tar.
        image_bytes: int64 [n]; length of the image's own bytes.
        label_ends: int64 [n]; sample i's labels are labels[label_ends[i - 1]:label_ends[i]].
        labels: int64 [m].
        label_weights: float32 [m]; 1 except for soft labels.
        key_ends: int64 [n]; as label_ends, for key_bytes.
        key_bytes: uint8 [...]; the keys in UTF-8, end to end.
    """

    offsets: I64
    image_offsets: I64
    image_bytes: I64
    label_ends: I64
    labels: I64
    label_weights: F32
    key_ends: I64
    key_bytes: NDArray[np.uint8]

    @property
    def num_samples(self) -> int:
        """n."""
        return len(self.image_offsets)

    def key(self, sample: int) -> str:
        """The key of a sample: its path in the tar up to the first dot of the file name."""
        start = int(self.key_ends[sample - 1]) if sample else 0
        return self.key_bytes[start : int(self.key_ends[sample])].tobytes().decode("utf-8")

    def keys(self) -> list[str]:
        """All keys, in the order of the tar."""
        text, start, keys = self.key_bytes.tobytes(), 0, []
        for end in self.key_ends.tolist():
            keys.append(text[start:end].decode("utf-8"))
            start = end
        return keys

    def owner(self, place: int) -> int:
        """The sample whose label stands at a place of `labels`."""
        return int(np.searchsorted(self.label_ends, place, side="right"))

    def sample_labels(self, sample: int) -> tuple[I64, F32]:
        """Labels and weights of a sample: int64 [k], float32 [k]."""
        start = int(self.label_ends[sample - 1]) if sample else 0
        end = int(self.label_ends[sample])
        return self.labels[start:end], self.label_weights[start:end]


@dataclass(frozen=True)
class IndexedSample:
    """One row of an index while it is being made."""

    key: str
    offset: int
    image_offset: int
    image_bytes: int
    labels: Sequence[int]
    weights: Sequence[float] | None = None


def build_index(samples: Sequence[IndexedSample], end: int) -> ShardIndex:
    """An index from its rows.

    Args:
        samples: in the order of the tar.
        end: the byte after the last sample's last member, padding included.
    """
    keys = [s.key.encode("utf-8") for s in samples]
    weights: list[float] = []
    for sample in samples:
        weights += sample.weights if sample.weights is not None else [1.0] * len(sample.labels)
    return ShardIndex(
        offsets=np.array([*(s.offset for s in samples), end], np.int64),
        image_offsets=np.array([s.image_offset for s in samples], np.int64),
        image_bytes=np.array([s.image_bytes for s in samples], np.int64),
        label_ends=np.cumsum([len(s.labels) for s in samples], dtype=np.int64),
        labels=np.array([label for s in samples for label in s.labels], np.int64),
        label_weights=np.array(weights, np.float32),
        key_ends=np.cumsum([len(k) for k in keys], dtype=np.int64),
        key_bytes=np.frombuffer(b"".join(keys), np.uint8),
    )


def select_samples(index: ShardIndex, kept: I64) -> ShardIndex:
    """The index of some of a shard's samples; the tar stays as it is.

    Args:
        index: of n samples.
        kept: which of them, ascending. int64 [k].
    """
    n = index.num_samples
    mask = np.zeros(n, bool)
    mask[kept] = True
    label_counts = np.diff(index.label_ends, prepend=0)
    key_lengths = np.diff(index.key_ends, prepend=0)
    end = index.offsets[kept[-1] + 1 : kept[-1] + 2] if len(kept) else index.offsets[:1]
    return ShardIndex(
        offsets=np.concatenate((index.offsets[:n][kept], end)),
        image_offsets=index.image_offsets[kept],
        image_bytes=index.image_bytes[kept],
        label_ends=np.cumsum(label_counts[kept], dtype=np.int64),
        labels=index.labels[np.repeat(mask, label_counts)],
        label_weights=index.label_weights[np.repeat(mask, label_counts)],
        key_ends=np.cumsum(key_lengths[kept], dtype=np.int64),
        key_bytes=index.key_bytes[np.repeat(mask, key_lengths)],
    )


def encode_index(index: ShardIndex) -> bytes:
    """The bytes of an index file; the same index gives the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, format=np.int64(_FORMAT), **vars(index))
    return buffer.getvalue()


def decode_index(content: bytes, where: str, num_bytes: int | None = None) -> ShardIndex:
    """Read the bytes of an index file; what comes back fits together, and within the tar.

    Args:
        content: of the file.
        where: its name, for errors.
        num_bytes: of the tar; None: not known.

    Raises:
        DataError: not an index, of a newer format, or damaged: the message names the array.
    """
    try:
        with open_arrays(io.BytesIO(content)) as arrays:
            index = _unfold(arrays, len(content))
        _check_lengths(index)
        _check_places(index, num_bytes)
        _check_labels(index)
        _check_keys(index)
    except NotAnArchiveError as error:
        raise DataError(f"{where}: not a sample index, or damaged ({error}); make it anew from the tar") from None
    except DamagedError as error:
        raise DataError(f"{where}: damaged index: {error}; make it anew from the tar") from None
    return index


def _unfold(arrays: Arrays, num_bytes: int) -> ShardIndex:
    wanted = {name: (_TYPES.get(name, np.dtype(np.int64)), 1) for name in ShardIndex.__dataclass_fields__}
    for name, (dtype, dimensions) in {"format": (np.dtype(np.int64), 0), **wanted}.items():
        there = arrays.described.get(name)
        if there is None:
            raise DamagedError(f"{name}: missing")
        if there.dtype != dtype or len(there.shape) != dimensions:
            raise DamagedError(
                f"{name}: {there.dtype} of {len(there.shape)} dimensions, where {dtype} of {dimensions} is wanted"
            )
        # Indexes are written as they are: what is larger than its file was compressed by somebody else.
        if there.num_bytes > num_bytes:
            raise DamagedError(f"{name}: {there.num_bytes:,} bytes in a file of {num_bytes:,}")
    version = int(arrays.read("format"))
    if version != _FORMAT:
        raise DamagedError(f"format: {version}; this version reads {_FORMAT}")
    return ShardIndex(**{name: arrays.read(name) for name in wanted})


def _check_lengths(index: ShardIndex) -> None:
    n = index.num_samples
    lengths = {"offsets": n + 1, "image_bytes": n, "label_ends": n, "key_ends": n, "label_weights": len(index.labels)}
    for name, wanted in lengths.items():
        there = len(getattr(index, name))
        if there != wanted:
            raise DamagedError(f"{name}: {there:,} values, where the other arrays call for {wanted:,}")
    for ends, whole in (("label_ends", "labels"), ("key_ends", "key_bytes")):
        values, total = getattr(index, ends), len(getattr(index, whole))
        # Differences of numbers this large may wrap around, so that order alone does not bound them.
        _refuse(index, ends, (values < 0) | (values > total), f"is not within the {total:,} {whole}")
        _refuse(index, ends, np.diff(values, prepend=0) < 0, "is below the one before it")
        last = int(values[-1]) if n else 0
        if last != total:
            raise DamagedError(f"{ends}: the last is {last:,}, but there are {total:,} {whole}")


def _check_places(index: ShardIndex, num_bytes: int | None) -> None:
    begins, ends = index.offsets[:-1], index.offsets[1:]
    limit = np.iinfo(np.int64).max if num_bytes is None else num_bytes
    _refuse(index, "offsets", (begins < 0) | (begins % _BLOCK != 0), "is no multiple of 512, as places in a tar are")
    _refuse(index, "offsets", (ends < 0) | (ends > limit), f"leads beyond the tar, which has {limit:,} bytes", ends)
    _refuse(index, "offsets", ends <= begins, "is not below the next")
    images, sizes = index.image_offsets, index.image_bytes
    _refuse(index, "image_offsets", (images < begins) | (images > ends), "does not lie in its sample")
    _refuse(index, "image_bytes", (sizes < 0) | (sizes > ends - images), "leads beyond its sample")
    far = images - begins + sizes > MOST_SAMPLE_BYTES
    _refuse(index, "image_bytes", far, f"ends more than {MOST_SAMPLE_BYTES:,} bytes behind the begin of its sample")


def _check_labels(index: ShardIndex) -> None:
    for name, wrong, why in (
        ("labels", index.labels < 0, "is below 0"),
        # A NaN is in no order with anything.
        ("label_weights", ~((index.label_weights >= 0) & (index.label_weights <= 1)), "is no number from 0 to 1"),
    ):
        if wrong.any():
            place = int(wrong.argmax())
            raise DamagedError(f"{name}: {getattr(index, name)[place]} of sample {index.owner(place)} {why}")


def _check_keys(index: ShardIndex) -> None:
    try:
        index.key_bytes.tobytes().decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"key_bytes: not UTF-8 at byte {error.start}") from None
    # Where a key begins, and the whole is UTF-8, stands no byte that goes on with a letter.
    begins = index.key_ends[index.key_ends < len(index.key_bytes)]
    if len(begins) and bool(((index.key_bytes[begins] & 0xC0) == 0x80).any()):
        raise DamagedError("key_ends: one lies in the middle of a letter")


def _refuse(index: ShardIndex, name: str, wrong: NDArray[np.bool_], why: str, values: I64 | None = None) -> None:
    if wrong.any():
        sample = int(wrong.argmax())
        values = getattr(index, name) if values is None else values
        raise DamagedError(f"{name}: {int(values[sample]):,} of sample {sample} {why}")
