"""Whether a file is the one that it was: a shard that is written again in mid-run is told, and not mixed. No torch."""

from __future__ import annotations

import threading
from collections import OrderedDict

from vit_dist.core.errors import DataError
from vit_dist.core.urls import redact

_MOST_FILES = 1 << 14


class Versions:
    """What a store said of each file when it was first read; of those that were asked for last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[str, int | None]] = OrderedDict()
        self._lock = threading.Lock()

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
            self._seen[url] = (known or tag, length if length is not None else total)
            if len(self._seen) > _MOST_FILES:
                self._seen.popitem(last=False)
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
