"""Files and parts of files from web servers: one try at a time, and whether another is worth while. No torch.

A server is believed nothing: what is read has a bound and a least rate, nothing is decompressed on the way, and a
redirect leads to the web and not from https to http.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import urllib3

from vit_dist.core.errors import DataError
from vit_dist.core.small_files import MAX_WHOLE_BYTES
from vit_dist.core.store_errors import BUSY_STATUSES, refuse_web_page, wait_s
from vit_dist.core.urls import redact

if TYPE_CHECKING:
    import aiohttp

LEAST_BYTES_S = 1024
"""A server that sends less in a second, over `_PATIENCE_S`, is as good as silent."""

_SNIFFED = 200
_PATIENCE_S = 20.0
_MOST_REDIRECTS = 5
_LONGEST_RETRY_AFTER_S = 60.0
# Beyond a socket's own time-out, which each byte begins anew.
_GRACE_S = 10.0


class Transient(Exception):  # noqa: N818 - not an error yet
    """What may go better the next time.

    Args:
        reason: what went wrong.
        wait_s: what the store asked for, if it did.
        answered: whether it was the store that said so; else nobody may be there.
    """

    def __init__(self, reason: str, wait_s: float = 0.0, *, answered: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.answered = wait_s, answered


class _NeverEndsError(OSError):
    """What has no end: no waiting mends it."""


_until = threading.local()
"""`answered`: when the answer to this thread's request must have begun, redirects included; by time.monotonic."""


@contextlib.contextmanager
def _ended_by(connection: socket.socket | None, when: float, what: str) -> Iterator[None]:
    """Cuts a connection off at a time: bytes that come one by one never run into its time-out.

    Raises:
        _NeverEndsError: it was cut off.
    """
    cut = threading.Event()

    def end() -> None:
        cut.set()
        if connection is not None:
            with contextlib.suppress(OSError):
                # Not that of an SSL socket, which takes its state from the thread that reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, when - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError):
        if not cut.is_set():
            raise
    finally:
        timer.cancel()
    if cut.is_set():
        raise _NeverEndsError(what)


class _AnswersInTime:
    """Of a connection: the head of an answer, and all that may stand before it, has one deadline."""

    sock: socket.socket | None

    def getresponse(self) -> Any:
        connection, response = self.sock, None
        try:
            with _ended_by(connection, _until.answered, "the server's headers do not end"):
                response = super().getresponse()  # type: ignore[misc]
        except _NeverEndsError:
            # Headers that were cut off may look whole.
            if response is not None:
                response.close()
            raise
        response.connected_by = connection
        return response


class _Http(_AnswersInTime, urllib3.connection.HTTPConnection):
    """See `_AnswersInTime`."""


class _Https(_AnswersInTime, urllib3.connection.HTTPSConnection):
    """See `_AnswersInTime`."""


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https


class WebClient:
    """HTTP and HTTPS with kept connections, redirects and certificates, in threads."""

    _CHUNK = 1 << 18

    def __init__(self, timeout_s: float) -> None:
        self._pool = urllib3.PoolManager(
            num_pools=32,
            maxsize=32,
            timeout=urllib3.Timeout(connect=min(10.0, timeout_s), read=timeout_s),
            # Redirects are followed here, one by one.
            retries=urllib3.Retry(0, redirect=False, raise_on_status=False, respect_retry_after_header=False),
        )
        self._pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        self._timeout_s = timeout_s

    def fetch(self, url: str, start: int, into: memoryview) -> int:
        """Read a file's bytes from `start` on; returns how many came before the range, the file or the connection
        ended; 0 where the file has none there.

        Raises:
            Transient: nothing came, and may the next time.
        """
        got, began = 0, time.monotonic()
        try:
            with self._open(url, {"Range": f"bytes={start}-{start + len(into) - 1}"}) as response:
                if response.status == 416:
                    return 0
                kind = response.headers.get("Content-Type", "")
                if response.status != 206 and start:
                    refuse_web_page(url, self._some(response, _SNIFFED), kind)
                    raise no_ranges(url, f"it answered {response.status}")
                while got < len(into) and (chunk := self._some(response, len(into) - got)):
                    into[got : got + len(chunk)] = chunk
                    got += len(chunk)
                    if _is_slow(got, began, max(self._timeout_s, _PATIENCE_S)):
                        raise Transient(_slowness(got, began), answered=got > 0)
                if not start:
                    refuse_web_page(url, bytes(into[: min(got, _SNIFFED)]), kind)
        except urllib3.exceptions.HTTPError as error:
            if not got:
                raise _worth_waiting(error) from error
        return got

    def size(self, url: str) -> tuple[int | None, bool]:
        """Bytes of a file, if the server says so, and whether it gives parts of it.

        Raises:
            Transient: no answer came, and may the next time.
        """
        try:
            # Not HEAD: many servers, and whatever signed the URL, allow GET alone.
            with self._open(url, {"Range": "bytes=0-0"}) as response:
                begin = self._some(response, _SNIFFED) if response.status == 200 else b""
                refuse_web_page(url, begin, response.headers.get("Content-Type", ""))
                if response.status == 200:
                    return _count(response.headers.get("Content-Length", "")), False
                return _count(response.headers.get("Content-Range", "").rpartition("/")[2]), True
        except urllib3.exceptions.HTTPError as error:
            raise _worth_waiting(error) from error

    def get(self, url: str, max_bytes: int = MAX_WHOLE_BYTES) -> bytes:
        """A whole file.

        Raises:
            Transient: it did not come, and may the next time.
            OSError: it is larger than `max_bytes`, or comes so slowly that it never will.
        """
        content, began = bytearray(), time.monotonic()
        try:
            with self._open(url, {}) as response:
                said = _count(response.headers.get("Content-Length", "")) or 0
                while said <= max_bytes and (chunk := self._some(response, self._CHUNK)):
                    content += chunk
                    if len(content) > max_bytes:
                        break
                    if _is_slow(len(content), began, _PATIENCE_S):
                        raise OSError(_slowness(len(content), began))
                if said > max_bytes or len(content) > max_bytes:
                    how = f"it has {said:,} bytes, says the server" if said else "the server sends more"
                    raise OSError(f"{how}; such a file may have {max_bytes:,}")
                refuse_web_page(url, bytes(content[:_SNIFFED]), response.headers.get("Content-Type", ""))
                return bytes(content)
        except urllib3.exceptions.HTTPError as error:
            raise _worth_waiting(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    @contextlib.contextmanager
    def _open(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        plain, response = self._follow(url, headers)
        complete = False
        try:
            status = response.status
            if status in {404, 410}:
                raise FileNotFoundError(plain)
            if status in {401, 403}:
                raise PermissionError(f"HTTP {status}")
            if status in BUSY_STATUSES:
                raise Transient(
                    f"HTTP {status} {response.reason or ''}".strip(), _retry_after(response.headers), answered=True
                )
            if status not in {200, 206, 416}:
                raise OSError(f"HTTP {status} {response.reason or ''}".strip())
            coding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if coding not in {"", "identity"}:
                raise OSError(f"the server sends it compressed (Content-Encoding: {coding[:40]}), unasked")
            yield response
            complete = True
        finally:
            if complete and response.length_remaining == 0:
                response.release_conn()
            else:
                # What is left of the answer is not worth reading.
                response.close()

    def _follow(self, url: str, headers: dict[str, str]) -> tuple[str, urllib3.BaseHTTPResponse]:
        """The answer at the end of all redirects, and the URL without a password that was asked."""
        parsed = urllib3.util.parse_url(url)
        headers = {"Accept-Encoding": "identity", **headers}
        if parsed.auth:
            headers |= urllib3.make_headers(basic_auth=parsed.auth)
        plain = now = parsed._replace(auth=None, fragment=None).url
        _until.answered = time.monotonic() + self._timeout_s + _GRACE_S
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._pool.request("GET", now, headers=headers, preload_content=False, redirect=False)
            where = response.get_redirect_location()
            if not where:
                return plain, response
            response.close()
            try:
                before, after = urllib3.util.parse_url(now), urllib3.util.parse_url(urljoin(now, where))
            except ValueError:
                raise OSError(f"the server leads to {where[:200]!a}, which is no address") from None
            if (before.scheme, after.scheme) not in {("http", "http"), ("https", "https"), ("http", "https")}:
                raise OSError(f"the server leads from {before.scheme} to {redact(str(after.url))[:200]!a}")
            if (before.host, before.port) != (after.host, after.port):
                headers.pop("authorization", None)
            now = after._replace(auth=None, fragment=None).url
        raise OSError("too many redirects")

    def _some(self, response: urllib3.BaseHTTPResponse, most: int) -> bytes:
        most = min(self._CHUNK, most)
        if not response.chunked:
            return response.read1(most, decode_content=False)
        # Between chunks stands what is no content, and need not end.
        until = time.monotonic() + self._timeout_s + _GRACE_S
        with _ended_by(getattr(response, "connected_by", None), until, "the server's chunks do not end"):
            return response.read1(most, decode_content=False)


async def bounded_client(**options: Any) -> aiohttp.ClientSession:
    """A session for fsspec, which asks web servers for listings: bounded in bytes and time, decompressing nothing."""
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            content = bytearray()
            async for chunk in self.content.iter_any():
                content += chunk
                if len(content) > MAX_WHOLE_BYTES:
                    self.close()
                    raise aiohttp.ClientPayloadError(f"the server sends more than {MAX_WHOLE_BYTES:,} bytes")
            self._body = bytes(content)
            return self._body

    timeout = aiohttp.ClientTimeout(total=120, connect=10, sock_read=30)
    options = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}, "timeout": timeout, **options}
    return aiohttp.ClientSession(response_class=Bounded, **options)


def no_ranges(url: str, how: str) -> DataError:
    """What to raise for a store that gives whole files alone."""
    return DataError(
        f"{redact(url)}: the server does not serve byte ranges ({how}); copy the files to one that does, or to a disk"
    )


def _worth_waiting(error: urllib3.exceptions.HTTPError) -> Exception:
    """What to raise for a request that failed: something to wait for, or what no waiting mends."""
    told = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None else error
    # urllib3 tells of an error of a connection in one of its own.
    endless = next((cause for cause in told.args if isinstance(cause, _NeverEndsError)), None)
    if endless is not None:
        return endless
    wait = wait_s(error)
    # "_Http(host='h', port=80): ..." is urllib3's word for who was asked, which the URL says.
    text = redact(re.sub(r"^_?\w+\(host='[^']*', port=\d+\): ", "", str(told)))
    return OSError(text) if wait is None else Transient(text, wait)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks a client to stay away, up to a minute; 0 where it does not, or asks for more."""
    text = headers.get("Retry-After", "")
    seconds = _count(text)
    if seconds is not None:
        return _bearable(seconds)
    try:
        wait = parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError, IndexError):
        return 0.0
    return _bearable(wait)


def _bearable(seconds: float) -> float:
    # Whoever asks for hours, or has a clock of his own, is asked again at our own pace.
    return float(seconds) if math.isfinite(seconds) and 0 < seconds <= _LONGEST_RETRY_AFTER_S else 0.0


def _count(text: str) -> int | None:
    """A header's number of bytes or seconds; None where it is none."""
    # str.isdigit is true of digits that int() refuses, such as a raised 2.
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _is_slow(got: int, began: float, patience_s: float) -> bool:
    took = time.monotonic() - began
    return took > patience_s and got < LEAST_BYTES_S * took


def _slowness(got: int, began: float) -> str:
    return f"the server sends too slowly: {got:,} bytes in {time.monotonic() - began:.0f} s"
