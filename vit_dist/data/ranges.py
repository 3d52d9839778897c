"""Byte ranges of shards, local or remote, tried again when the store stumbles. No torch."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict

from vit_dist.core.errors import DataError
from vit_dist.core.files import explained, file_system, is_remote, local_path, redact

_TRIES = 6
_MAX_OPEN_FILES = 256
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class RangeReader:
    """Reads bytes [start, end) of files by URL; safe to use from many threads."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, url: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file.

        Raises:
            DataError: missing, forbidden, shorter than `end`, or still failing after several tries.
        """
        with explained(url, "read"):
            content = self._read_remote(url, start, end) if is_remote(url) else self._read_local(url, start, end)
        if len(content) != end - start:
            raise DataError(
                f"{redact(url)}: ends at byte {start + len(content)}, but its index reaches byte {end}: the shard is "
                f"cut off or is not the one that was indexed; restore it, or index it again"
            )
        return content

    def close(self) -> None:
        """Close the local files."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _read_local(self, url: str, start: int, end: int) -> bytes:
        with self._lock:
            handle = self._files.pop(url, None)
            if handle is None:
                handle = os.open(local_path(url), os.O_RDONLY)
            self._files[url] = handle
            while len(self._files) > _MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            duplicate = os.dup(handle)  # another thread may close `handle` while this one reads
        try:
            parts, at = [], start
            while at < end:
                part = os.pread(duplicate, end - at, at)
                if not part:
                    break
                parts.append(part)
                at += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(duplicate)

    def _read_remote(self, url: str, start: int, end: int) -> bytes:
        system, path = file_system(url)
        for attempt in range(_TRIES):
            try:
                return bytes(system.cat_file(path, start=start, end=end))
            except _FINAL:
                raise
            except Exception:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")
