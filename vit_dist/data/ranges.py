"""Byte ranges of shards, local or remote, resumed from the byte where they broke when the store stumbles. No torch."""

from __future__ import annotations

import contextlib
import io
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from vit_dist.core.errors import DataError
from vit_dist.core.files import (
    explained,
    file_system,
    is_remote,
    is_web,
    local_path,
    read_bytes,
    redact,
    refuse_web_page,
)
from vit_dist.core.log import log
from vit_dist.core.s3_reads import reads as read_by_s3
from vit_dist.core.s3_reads import s3_reads
from vit_dist.core.small_files import MAX_WHOLE_BYTES
from vit_dist.core.store_errors import is_answer, is_past_the_end, told, wait_s
from vit_dist.core.store_patience import NoAnswerError, answer, failed, has_answered
from vit_dist.core.versions import Versions
from vit_dist.core.web import WebClient
from vit_dist.core.web_answers import Transient, no_ranges
from vit_dist.data.pace import Pace

LEAST_RANGE_BYTES, MOST_RANGE_BYTES = 8 << 20, 16 << 20
"""Of one request: a smaller one spends much of its time on waiting for the first byte, and of a longer one the parts
come at once over several connections."""
_MAX_OPEN_FILES = 256
# Of a store that hands over ranges whole: what a broken connection costs at most.
_PART_BYTES = 8 << 20
# Of a file that is read whole: most indexes are no longer.
_FIRST_BYTES = 1 << 20
_MAX_WAIT_S = 60.0
# Beyond what a store asks for: else all ranks would be back at the same instant.
_LATER = 0.25
# A wait of so long is said, and one of the many threads that wait for a store says it.
_TOLD_S = 2.0
# Of a file on a server that gives no parts of it: tables and tars, not small ones.
_MOST_IN_MEMORY = 16 << 30

T = TypeVar("T")


class RangeReader:
    """Reads bytes [start, end) of files by URL; safe to use from many threads.

    Remote ranges are tried again from the byte where they broke. The wait doubles from try to try, with jitter, so
    that the ranks of a cluster do not come back all at once; a store that says how long to wait (Retry-After) or to
    slow down is obeyed. A range is given up after `tries` tries in a row that brought not one byte.

    Args:
        tries: in a row, without a byte.
        first_wait_s: before the second try; doubled each time.
        timeout_s: without a byte from the store, after which a try counts as broken.

    Attributes:
        pace: where reads are counted.
    """

    def __init__(self, *, tries: int = 9, first_wait_s: float = 0.2, timeout_s: float = 30.0) -> None:
        self.pace = Pace()
        self._tries, self._first_wait_s, self._timeout_s = tries, first_wait_s, timeout_s
        self._http = WebClient(timeout_s)
        self._told = -_TOLD_S
        self._files: OrderedDict[str, int] = OrderedDict()
        self._versions = Versions()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._jitter = random.Random()

    def read(self, url: str, start: int, end: int) -> memoryview:
        """Bytes [start, end) of a file, in memory of their own.

        Raises:
            DataError: missing, forbidden, shorter than `end`, or still failing after several tries.
        """
        content = memoryview(bytearray(end - start))
        self.read_into(url, start, content)
        return content

    def read_into(self, url: str, start: int, into: memoryview) -> None:
        """Bytes of a file from `start` on, straight into memory until that is full. Every byte of a shard that is
        trained on comes through here.

        Raises:
            DataError: as `read`.
        """
        with explained(url, "read"), self.pace.reading(url, len(into)):
            got = (
                self._remote_into(url, start, into, self._versions)
                if is_remote(url)
                else self._local_into(url, start, into)
            )
        if got != len(into):
            raise DataError(
                f"{redact(url)}: ends at byte {start + got}, but its index reaches byte {start + len(into)}: the shard "
                f"is cut off or is not the one that was indexed; restore it, or index it again"
            )

    def expect(self, url: str, num_bytes: int) -> None:
        """Take a file for another one than was indexed, which is an error where it is read, if it is not so long."""
        self._versions.expect(url, num_bytes)

    def read_all(self, url: str, max_bytes: int = MAX_WHOLE_BYTES) -> bytes:
        """All bytes of a small file, such as an index; as patient as `read`.

        Raises:
            DataError: as `read`, or the file is larger than `max_bytes`.
        """
        if not is_remote(url):
            return read_bytes(url, max_bytes)
        with explained(url, "read"):
            if is_web(url):
                return self._insist(url, partial(self._http.get, url, max_bytes))
            if read_by_s3(url):
                content = self._all_in_parts(url, max_bytes + 1)
            else:
                content = self._insist(url, partial(_ask_fsspec, url, 0, max_bytes + 1))
            if len(content) > max_bytes:
                raise OSError(f"larger than the {max_bytes:,} bytes that such a file may have")
            return content

    def web_size(self, url: str) -> int:
        """Bytes of a file on a web server.

        Raises:
            OSError: as `read`, or the server does not say.
        """
        size, _ = self._insist(url, partial(self._http.size, url))
        if size is None:
            raise OSError("the server does not say how long the file is (no Content-Length)")
        return size

    def serves_ranges(self, url: str) -> bool:
        """Whether a web server gives parts of a file, and says how long it is.

        Raises:
            DataError: as `read`.
        """
        with explained(url, "read"):
            size, ranges = self._insist(url, partial(self._http.size, url))
            return ranges and size is not None

    def stop(self) -> None:
        """Give up at once whatever waits to be tried again."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, and close files and connections."""
        self.stop()
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])
        self._http.close()

    def _local_into(self, url: str, start: int, into: memoryview) -> int:
        with self._lock:
            handle = self._files.pop(url, None)
            if handle is None:
                handle = os.open(local_path(url), os.O_RDONLY)
            self._files[url] = handle
            while len(self._files) > _MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            # Another thread may close `handle` while this one reads.
            duplicate = os.dup(handle)
        self.pace.mine.requests += 1
        try:
            if self._versions.expects(url):
                self._versions.check(url, total=os.fstat(duplicate).st_size)
            got = 0
            while got < len(into) and (count := os.preadv(duplicate, [into[got:]], start + got)):
                got += count
            return got
        finally:
            os.close(duplicate)

    def _all_in_parts(self, url: str, most: int) -> bytes:
        """The first `most` bytes of a file; all, where it has fewer. What was read of it before does not count."""
        content, size, versions = bytearray(), _FIRST_BYTES, Versions()
        while len(content) < most and not versions.ends(url, len(content)):
            part = memoryview(bytearray(min(size, most - len(content))))
            got = self._remote_into(url, len(content), part, versions)
            content += part[:got]
            if got < len(part):
                break
            size = _PART_BYTES
        return bytes(content)

    def _remote_into(self, url: str, start: int, into: memoryview, versions: Versions) -> int:
        """How many bytes of a range there are: fewer where the file ends before."""
        got, fetch = 0, self._fetch_of(url, versions)
        while got < len(into) and not versions.ends(url, start + got):
            where = f"bytes {start + got} to {start + len(into) - 1}"
            taken = self._insist(url, partial(fetch, url, start + got, into[got:]), where)
            if not taken:
                break
            got += taken
            # These give all that they are asked for, unless the connection breaks.
            self.pace.mine.retries += got < len(into) and (is_web(url) or read_by_s3(url))
        return got

    def _fetch_of(self, url: str, versions: Versions) -> Callable[[str, int, memoryview], int]:
        """Who reads ranges of such a URL: (URL, first byte, memory) -> bytes read, fewer where they break off."""
        if is_web(url):
            return partial(self._http.fetch, versions=versions)
        if read_by_s3(url):
            return partial(self._fetch_from_s3, versions=versions)
        return partial(_fetch_with_fsspec, versions=versions)

    def _fetch_from_s3(self, url: str, start: int, into: memoryview, versions: Versions) -> int:
        def ask() -> int:
            return s3_reads().fetch(url, start, into, versions, self._timeout_s)

        try:
            return answer(url, ask)
        except NoAnswerError as error:
            raise Transient(str(error)) from error

    def _insist(self, url: str, attempt: Callable[[], T], where: str = "") -> T:
        """Call until it succeeds, fails for good, or has failed too often.

        Of a server that has never answered that is soon: the address may be wrong (core/store_patience.py).
        """
        failures, problem = 0, ""
        while True:
            self.pace.mine.requests += 1
            try:
                result = attempt()
                has_answered(url)
                return result
            except Transient as error:
                failures += 1
                if error.answered:
                    has_answered(url)
                # That there was no time left for a later try says less than what went wrong before.
                problem = problem if problem and isinstance(error.__cause__, NoAnswerError) else str(error)
                left = failed(url, problem, f"up to {self._tries} times")
                if failures >= self._tries or self._stopped.is_set() or left <= 0:
                    # Stores other than web servers were asked again below this, if they were.
                    tries = f", after {failures} {'try' if failures == 1 else 'tries'}"
                    tries = tries if is_web(url) or failures > 1 else ""
                    raise OSError(f"{problem}{tries}{f' at {where}' if where else ''}") from error
                wait = self._first_wait_s * 2 ** (failures - 1) * (0.5 + self._jitter.random())
                wait = min(max(min(_MAX_WAIT_S, wait), error.wait_s * (1 + _LATER * self._jitter.random())), left)
                if wait >= _TOLD_S and time.monotonic() >= self._told + _TOLD_S:
                    self._told = time.monotonic()
                    log(f"  {redact(url)}: {error}; asked again in {wait:.0f} s, try {failures + 1} of {self._tries}")
                self._stopped.wait(wait)
                self.pace.mine.retries += 1
            except Exception as error:
                if is_answer(error):
                    has_answered(url)
                raise


def file_size(url: str) -> int:
    """Bytes of a file.

    Raises:
        DataError: missing or not readable, or the store does not say.
    """
    with explained(url, "read"):
        if not is_remote(url):
            return local_path(url).stat().st_size
        if is_web(url):
            with contextlib.closing(RangeReader()) as reader:
                return reader.web_size(url)
        system, path = file_system(url)
        return system.size(path)


def open_file(url: str) -> io.BufferedReader:
    """A file at a URL, open for reading; what lies in a store is read as patiently as by `RangeReader`.

    From a web server that serves no ranges it is read whole, into memory.

    Raises:
        DataError: missing or not readable.
    """
    with explained(url, "read"):
        if not is_remote(url):
            return local_path(url).open("rb")
    if is_web(url):
        with contextlib.closing(RangeReader()) as reader:
            if not reader.serves_ranges(url):
                return io.BufferedReader(io.BytesIO(reader.read_all(url, _MOST_IN_MEMORY)))
    return io.BufferedReader(_RemoteFile(url), _PART_BYTES)


class _RemoteFile(io.RawIOBase):
    """The bytes of a file at a URL, as a file that can be read from anywhere."""

    def __init__(self, url: str) -> None:
        self._url, self._size, self._at = url, file_size(url), 0
        self._reader = RangeReader()

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        into = memoryview(buffer).cast("B")
        count = max(0, min(len(into), self._size - self._at))
        if count:
            into[:count] = self._reader.read(self._url, self._at, self._at + count)
        self._at += count
        return count

    def close(self) -> None:
        """See io.RawIOBase."""
        if not self.closed:
            self._reader.close()
        super().close()


def _fetch_with_fsspec(url: str, start: int, into: memoryview, versions: Versions) -> int:
    """As `WebClient.fetch`, for every other scheme; at most 8 MiB at once, which is what a broken connection costs."""
    if versions.is_due(url):
        info = _patiently(lambda: _info(url))
        versions.check(url, tag=str(info.get("ETag") or info.get("etag") or ""), total=info.get("size"))
    size = min(len(into), _PART_BYTES)
    content = _ask_fsspec(url, start, start + size)
    if len(content) > size:
        # The whole file, so that its first bytes are those that were asked for.
        if start:
            raise no_ranges(url, f"asked for {size:,} bytes, it gave {len(content):,}")
        content = content[:size]
    elif len(content) < size:
        # The file's end, unless somebody on the way shows a login.
        refuse_web_page(url, content)
    into[: len(content)] = content
    return len(content)


def _info(url: str) -> dict[str, Any]:
    system, path = file_system(url)
    # A listing may be older than what is there now.
    system.invalidate_cache()
    return system.info(path)


def _ask_fsspec(url: str, start: int | None, end: int | None) -> bytes:
    system, path = file_system(url)
    try:
        return _patiently(lambda: system.cat_file(path, start=start, end=end))
    except Exception as error:
        if is_past_the_end(error):
            return b""
        raise


def _patiently(question: Callable[[], T]) -> T:
    """What a question to fsspec gives.

    Raises:
        Transient: what it raises may go better the next time.
    """
    try:
        return question()
    except Exception as error:
        if is_past_the_end(error):
            raise
        wait = wait_s(error)
        if wait is None:
            raise
        raise Transient(told(error), wait, answered=is_answer(error)) from error
