"""Whether a file is the one that it was: a shard that is written again, in mid-run or before, is told. No torch."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TypeVar

from vit_dist.core.errors import DataError
from vit_dist.core.urls import redact

_MOST_FILES = 1 << 14
_AGAIN_S = 60.0
"""So often it is asked of a store whose ranges come without a word about the file."""

T = TypeVar("T")


class Versions:
    """What a store said of each file when it was first read; of those that were asked for last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[str, int | None]] = OrderedDict()
        self._expected: OrderedDict[str, int] = OrderedDict()
        self._looked: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def expect(self, url: str, total: int) -> None:
        """From now on a file has so many bytes, which is what its manifest says, or is another one."""
        with self._lock:
            _put(self._expected, url, total)

    def expects(self, url: str) -> bool:
        """Whether it is known how long a file has to be."""
        with self._lock:
            return url in self._expected

    def is_due(self, url: str) -> bool:
        """Whether a file that is expected has not been looked at for a while; whoever asks looks now."""
        now = time.monotonic()
        with self._lock:
            if url not in self._expected or now < self._looked.get(url, -_AGAIN_S) + _AGAIN_S:
                return False
            _put(self._looked, url, now)
            return True

    def ends(self, url: str, at: int) -> bool:
        """Whether a file is known to have no byte there."""
        with self._lock:
            length = self._seen.get(url, ("", None))[1]
        return length is not None and at >= length

    def check(self, url: str, *, tag: str = "", total: int | None = None) -> None:
        """Note what an answer says of a file.

        Args:
            url: of the file.
            tag: its ETag; '' where none counts.
            total: its bytes; None where the store does not say.

        Raises:
            DataError: it is another file than before.
        """
        with self._lock:
            known, length = self._seen.pop(url, ("", None))
            _put(self._seen, url, (known or tag, length if length is not None else total))
            expected = self._expected.get(url)
        changes = []
        if total is not None and length is not None and total != length:
            changes.append(f"it had {length:,} bytes, and has {total:,}")
        if tag and known and tag != known:
            changes.append(f"its ETag was {known[:80]!a}, and is {tag[:80]!a}")
        if changes:
            raise DataError(
                f"{redact(url)}: was written again while it was read: {'; '.join(changes)}; what was read of it does "
                f"not go with the rest: bring back the shard that was indexed, or index it again"
            )
        if total is not None and expected is not None and total != expected:
            raise DataError(
                f"{redact(url)}: has {total:,} bytes, and its manifest says {expected:,}: it was written again, or cut "
                f"off, after it was indexed; bring back the shard that was indexed, or index it again"
            )


def _put(known: OrderedDict[str, T], url: str, value: T) -> None:
    known[url] = value
    known.move_to_end(url)
    if len(known) > _MOST_FILES:
        known.popitem(last=False)
