"""The sample index of one shard: where each sample lies in the tar, its key and its labels. No torch.

A sidecar file beside the tar, an uncompressed .npz without pickles. Samples are in the order of the tar.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import DataError
from vit_dist.core.seeding import I64

F32 = NDArray[np.float32]
_FORMAT = 1
# numpy parses the headers of arrays with Python's `ast`, which in Python 3.11 now and then fails when two threads do so
# at once ("AST constructor recursion depth mismatch").
_ONE_AT_A_TIME = threading.Lock()


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


def decode_index(content: bytes, where: str) -> ShardIndex:
    """Read the bytes of an index file.

    Raises:
        DataError: not an index, of a newer format, or damaged.
    """
    try:
        with _ONE_AT_A_TIME, np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            version = int(arrays["format"])
            if version != _FORMAT:
                raise DataError(
                    f"{where}: index of format {version}; this version reads {_FORMAT}; index the tar again"
                )
            index = ShardIndex(**{name: arrays[name] for name in ShardIndex.__dataclass_fields__})
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: not a sample index, or damaged ({error}); make it anew from the tar") from None
    n = index.num_samples
    fits = len(index.offsets) == n + 1 and len(index.image_bytes) == len(index.label_ends) == len(index.key_ends) == n
    if not fits or (n and int(index.label_ends[-1]) != len(index.labels)):
        raise DataError(f"{where}: the arrays of the index do not fit together; make it anew from the tar")
    return index
