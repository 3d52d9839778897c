"""What this machine's memory holds of files that were read before: asked, and emptied. No torch.

A file that lies there is read at the speed of memory, which says nothing of the disk.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence

from vit_dist.core.errors import DataError
from vit_dist.core.urls import local_path, redact

_PAGE = 4096
_LARGEST_FOLIO = 2 << 20
"""The kernel keeps pages in blocks of up to so many bytes, and forgets none of which it is asked to forget a part."""


def empty(url: str, start: int, end: int) -> None:
    """Let the page cache forget a range of a file on this machine, and what shares a block with it, where it can."""
    if hasattr(os, "posix_fadvise"):
        first, last = start // _LARGEST_FOLIO * _LARGEST_FOLIO, -(-end // _LARGEST_FOLIO) * _LARGEST_FOLIO
        with _opened(url) as handle:
            os.posix_fadvise(handle, first, last - first, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[int]:
    try:
        handle = os.open(local_path(url), os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{redact(url)}: cannot be read: {error.strerror}") from None
    try:
        yield handle
    finally:
        os.close(handle)


def _is_cached(handle: int, at: int) -> bool | None:
    """Whether the page cache has a page of a file; None where the system does not say."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        os.preadv(handle, [bytearray(1)], at, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def cached_fraction(files: Sequence[tuple[str, int]], choose: random.Random) -> float | None:
    """The fraction of some random pages that the page cache has; None where the system does not say."""
    found = []
    for url, size in files:
        with _opened(url) as handle:
            found += [_is_cached(handle, choose.randrange(size)) for _ in range(8)]
    known = [one for one in found if one is not None]
    return sum(known) / len(known) if known else None


def can_be_emptied(url: str) -> bool:
    """Whether the page cache forgets a file when it is asked to: memory that is a file system has nowhere else."""
    with _opened(url) as handle:
        # What is not on the disk yet is not forgotten.
        with contextlib.suppress(OSError):
            os.fsync(handle)
        os.pread(handle, 1, 0)
        empty(url, 0, _PAGE)
        return _is_cached(handle, 0) is False
