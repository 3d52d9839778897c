"""Byte ranges of shards, local or remote, resumed from the byte where they broke when the store stumbles. No torch."""

from __future__ import annotations

import contextlib
import io
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import Any, TypeVar

import urllib3

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
from vit_dist.core.store_errors import BUSY_STATUSES, wait_s

_MAX_OPEN_FILES = 256
# Of a store that hands over ranges whole: what a broken connection costs at most.
_PART_BYTES = 8 << 20
_SNIFFED = 200
_PAST_THE_END = ("InvalidRange", "not satisfiable")
_MAX_WAIT_S = 60.0

T = TypeVar("T")


class _Transient(Exception):  # noqa: N818 - not an error yet
    """What may go better the next time; `wait_s` is what the store asked for, if it did."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RangeReader:
    """Reads bytes [start, end) of files by URL; safe to use from many threads.

    Remote ranges are tried again from the byte where they broke. The wait doubles from try to try, with jitter, so
    that the ranks of a cluster do not come back all at once; a store that says how long to wait (Retry-After) or to
    slow down is obeyed. A range is given up after `tries` tries in a row that brought not one byte.

    Args:
        tries: in a row, without a byte.
        first_wait_s: before the second try; doubled each time.
        timeout_s: without a byte from the store, after which a try counts as broken.
    """

    def __init__(self, *, tries: int = 9, first_wait_s: float = 0.2, timeout_s: float = 30.0) -> None:
        self._tries, self._first_wait_s, self._timeout_s = tries, first_wait_s, timeout_s
        self._files: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._jitter = random.Random()

    def read(self, url: str, start: int, end: int) -> bytes | memoryview:
        """Bytes [start, end) of a file.

        Raises:
            DataError: missing, forbidden, shorter than `end`, or still failing after several tries.
        """
        with explained(url, "read"):
            get: Callable[[str, int, int], bytes | memoryview] = (
                self._read_remote if is_remote(url) else self._read_local
            )
            content = get(url, start, end)
        if len(content) != end - start:
            raise DataError(
                f"{redact(url)}: ends at byte {start + len(content)}, but its index reaches byte {end}: the shard is "
                f"cut off or is not the one that was indexed; restore it, or index it again"
            )
        return content

    def read_all(self, url: str) -> bytes:
        """All bytes of a small file, such as an index; as patient as `read`.

        Raises:
            DataError: as `read`.
        """
        if not is_remote(url):
            return read_bytes(url)
        with explained(url, "read"):
            if is_web(url):
                return self._insist(partial(self._http.get, url))
            return self._insist(partial(_ask_fsspec, url, None, None))

    def web_size(self, url: str) -> int:
        """Bytes of a file on a web server.

        Raises:
            OSError: as `read`, or the server does not say.
        """
        size, _ = self._insist(partial(self._http.size, url))
        if size is None:
            raise OSError("the server does not say how long the file is (no Content-Length)")
        return size

    def serves_ranges(self, url: str) -> bool:
        """Whether a web server gives parts of a file, and says how long it is.

        Raises:
            DataError: as `read`.
        """
        with explained(url, "read"):
            size, ranges = self._insist(partial(self._http.size, url))
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
        if "_http" in vars(self):
            self._http.close()

    @cached_property
    def _http(self) -> _Http:
        return _Http(self._timeout_s)

    def _read_local(self, url: str, start: int, end: int) -> bytes:
        with self._lock:
            handle = self._files.pop(url, None)
            if handle is None:
                handle = os.open(local_path(url), os.O_RDONLY)
            self._files[url] = handle
            while len(self._files) > _MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            # Another thread may close `handle` while this one reads.
            duplicate = os.dup(handle)
        try:
            parts, position = [], start
            while position < end:
                part = os.pread(duplicate, end - position, position)
                if not part:
                    break
                parts.append(part)
                position += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(duplicate)

    def _read_remote(self, url: str, start: int, end: int) -> memoryview:
        """The bytes of a range; fewer where the file ends before."""
        content, got = memoryview(bytearray(end - start)), 0
        fetch = self._http.fetch if is_web(url) else _fetch_with_fsspec
        while got < len(content):
            taken = self._insist(partial(fetch, url, start + got, content[got:]))
            if not taken:
                break
            got += taken
        return content[:got]

    def _insist(self, attempt: Callable[[], T]) -> T:
        """Call until it succeeds, fails for good, or has failed too often."""
        failures = 0
        while True:
            try:
                return attempt()
            except _Transient as error:
                failures += 1
                if failures >= self._tries or self._stopped.is_set():
                    raise OSError(f"{error}, after {failures} tries") from error
                wait = self._first_wait_s * 2 ** (failures - 1) * (0.5 + self._jitter.random())
                self._stopped.wait(min(_MAX_WAIT_S, max(wait, error.wait_s)))


class _Http:
    """HTTP and HTTPS with kept connections, redirects and certificates, in threads."""

    _CHUNK = 1 << 18

    def __init__(self, timeout_s: float) -> None:
        self._pool = urllib3.PoolManager(
            num_pools=32,
            maxsize=32,
            timeout=urllib3.Timeout(connect=min(10.0, timeout_s), read=timeout_s),
            retries=urllib3.Retry(connect=0, read=0, status=0, other=0, redirect=5, respect_retry_after_header=False),
        )

    def fetch(self, url: str, start: int, into: memoryview) -> int:
        """Read a file's bytes from `start` on; returns how many came before the range, the file or the connection
        ended; 0 where the file has none there.

        Raises:
            _Transient: nothing came, and may the next time.
        """
        got = 0
        try:
            with self._open(url, {"Range": f"bytes={start}-{start + len(into) - 1}"}) as response:
                if response.status == 416:
                    return 0
                kind = response.headers.get("Content-Type", "")
                if response.status != 206 and start:
                    refuse_web_page(url, response.read1(_SNIFFED), kind)
                    raise _no_ranges(url, f"it answered {response.status}")
                while got < len(into) and (chunk := response.read1(min(self._CHUNK, len(into) - got))):
                    into[got : got + len(chunk)] = chunk
                    got += len(chunk)
                if not start:
                    refuse_web_page(url, bytes(into[: min(got, _SNIFFED)]), kind)
        except urllib3.exceptions.HTTPError as error:
            if not got:
                raise _worth_waiting(error) from error
        return got

    def size(self, url: str) -> tuple[int | None, bool]:
        """Bytes of a file, if the server says so, and whether it gives parts of it.

        Raises:
            _Transient: no answer came, and may the next time.
        """
        try:
            # Not HEAD: many servers, and whatever signed the URL, allow GET alone.
            with self._open(url, {"Range": "bytes=0-0"}) as response:
                begin = response.read1(_SNIFFED) if response.status == 200 else b""
                refuse_web_page(url, begin, response.headers.get("Content-Type", ""))
                if response.status == 200:
                    length = response.headers.get("Content-Length", "")
                    return (int(length) if length.isdigit() else None), False
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                return (int(total) if total.isdigit() else None), True
        except urllib3.exceptions.HTTPError as error:
            raise _worth_waiting(error) from error

    def get(self, url: str) -> bytes:
        """A whole file.

        Raises:
            _Transient: it did not come, and may the next time.
        """
        try:
            with self._open(url, {}) as response:
                content = response.read()
                refuse_web_page(url, content, response.headers.get("Content-Type", ""))
                return content
        except urllib3.exceptions.HTTPError as error:
            raise _worth_waiting(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    @contextlib.contextmanager
    def _open(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        parsed = urllib3.util.parse_url(url)
        if parsed.auth:
            headers = {**headers, **urllib3.make_headers(basic_auth=parsed.auth)}
        plain = parsed._replace(auth=None, fragment=None).url
        response = self._pool.request(
            "GET", plain, headers={"Accept-Encoding": "identity", **headers}, preload_content=False
        )
        complete = False
        try:
            status = response.status
            if status in {404, 410}:
                raise FileNotFoundError(plain)
            if status in {401, 403}:
                raise PermissionError(f"HTTP {status}")
            if status in BUSY_STATUSES:
                raise _Transient(f"HTTP {status} {response.reason or ''}".strip(), _retry_after(response.headers))
            if status not in {200, 206, 416}:
                raise OSError(f"HTTP {status} {response.reason or ''}".strip())
            yield response
            complete = True
        finally:
            if complete and response.length_remaining == 0:
                response.release_conn()
            else:
                # What is left of the answer is not worth reading.
                response.close()


def _worth_waiting(error: urllib3.exceptions.HTTPError) -> Exception:
    """What to raise for a request that failed: something to wait for, or what no waiting mends."""
    told = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None else error
    wait = wait_s(error)
    text = redact(str(told))
    return OSError(text) if wait is None else _Transient(text, wait)


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
                return io.BufferedReader(io.BytesIO(reader.read_all(url)))
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


def _no_ranges(url: str, how: str) -> DataError:
    return DataError(
        f"{redact(url)}: the server does not serve byte ranges ({how}); copy the files to one that does, or to a disk"
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks a client to stay away; 0 where it does not."""
    text = headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _fetch_with_fsspec(url: str, start: int, into: memoryview) -> int:
    """As `_Http.fetch`, for every other scheme; at most 8 MiB at once, which is what a broken connection costs."""
    size = min(len(into), _PART_BYTES)
    content = _ask_fsspec(url, start, start + size)
    if len(content) > size:
        # The whole file, so that its first bytes are those that were asked for.
        if start:
            raise _no_ranges(url, f"asked for {size:,} bytes, it gave {len(content):,}")
        content = content[:size]
    elif len(content) < size:
        # The file's end, unless somebody on the way shows a login.
        refuse_web_page(url, content)
    into[: len(content)] = content
    return len(content)


def _ask_fsspec(url: str, start: int | None, end: int | None) -> bytes:
    system, path = file_system(url)
    try:
        return system.cat_file(path, start=start, end=end)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if any(sign in text for sign in _PAST_THE_END):
            return b""
        wait = wait_s(error)
        if wait is None:
            raise
        raise _Transient(redact(text), wait) from error
