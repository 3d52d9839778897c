"""Files and parts of files from web servers: one try at a time, and whether another is worth while. No torch.

A server is believed nothing: what is read has a bound and a least rate, nothing is decompressed on the way, and a
redirect leads to the web and not from https to http.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import urllib3

from vit_dist.core.errors import DataError
from vit_dist.core.small_files import MAX_WHOLE_BYTES
from vit_dist.core.store_errors import BUSY_STATUSES, refuse_web_page, retry_after_s, wait_s, whole_number
from vit_dist.core.urls import redact
from vit_dist.core.versions import Versions

if TYPE_CHECKING:
    import aiohttp

LEAST_BYTES_S = 1024
"""A server that sends less in a second, over `_PATIENCE_S`, is as good as silent."""

_SNIFFED = 200
_PATIENCE_S = 20.0
_MOST_REDIRECTS = 5
_CHUNK = 1 << 18
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


def connections(size: int, *, trusted: ssl.SSLContext | None = None, proxy: str = "") -> urllib3.PoolManager:
    """Connections that are kept, `size` to each server; the head of each answer has a deadline (`ask`).

    Args:
        size: as many as ask at once.
        trusted: certificates; those of the system where left out.
        proxy: URL of what stands between.
    """
    # Redirects are followed, and failures asked again, by whoever asks.
    retries = urllib3.Retry(0, redirect=False, raise_on_status=False, respect_retry_after_header=False)
    options: dict[str, Any] = {"num_pools": 32, "maxsize": size, "retries": retries}
    if trusted is not None:
        options["ssl_context"] = trusted
    pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


def ask(pool: urllib3.PoolManager, url: str, headers: Mapping[str, str], timeout_s: float) -> urllib3.BaseHTTPResponse:
    """The head of an answer to GET, by when `answer_by` says; redirects are not followed."""
    timeout = urllib3.Timeout(connect=min(10.0, timeout_s), read=timeout_s)
    return pool.request("GET", url, headers=headers, preload_content=False, redirect=False, timeout=timeout)


def answer_by(timeout_s: float) -> None:
    """From now on the answer to what this thread asks, redirects and all, has so long to begin, and a little longer."""
    _until.answered = time.monotonic() + timeout_s + _GRACE_S


def read_into(response: urllib3.BaseHTTPResponse, into: memoryview, timeout_s: float) -> int:
    """Read an answer's body straight into memory; returns how many bytes came before it, or the connection, ended.

    Raises:
        Transient: not one came before the connection broke or fell silent, or they came too slowly.
    """
    got, began = 0, time.monotonic()
    # urllib3's own readinto reads into fresh memory, and copies.
    raw = getattr(response, "_fp", None)
    try:
        while got < len(into):
            if isinstance(raw, http.client.HTTPResponse) and not response.chunked:
                count = _received(raw, into[got:])
            else:
                chunk = some(response, len(into) - got, timeout_s)
                count = len(chunk)
                into[got : got + count] = chunk
            if not count:
                break
            got += count
            if _is_slow(got, began, max(timeout_s, _PATIENCE_S)):
                raise Transient(_slowness(got, began), answered=True)
    except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException) as error:
        if not got:
            raise worth_waiting(error) from error
    if not got and len(into):
        raise Transient("the connection ended before a byte of the body came", answered=True)
    return got


def _received(raw: http.client.HTTPResponse, into: memoryview) -> int:
    """What has come by now, straight into memory; 0 at the end. `readinto` of its own would wait until that is full."""
    if raw.fp is None:
        return 0
    count = int(raw.fp.readinto1(into if raw.length is None else into[: raw.length]))
    if raw.length is not None:
        raw.length -= count
    if not count or raw.length == 0:
        # So it learns that it is at its end.
        raw.readinto(bytearray(1))
    return count


def finish(response: urllib3.BaseHTTPResponse, *, complete: bool) -> None:
    """Keep the connection of an answer that was read to its end; what is left of another is not worth reading."""
    raw = getattr(response, "_fp", None)
    read = response.length_remaining == 0 or (isinstance(raw, http.client.HTTPResponse) and raw.isclosed())
    if complete and read:
        response.release_conn()
    else:
        response.close()


def some(response: urllib3.BaseHTTPResponse, most: int, timeout_s: float) -> bytes:
    """Some bytes of an answer's body, at most `most`; b"" at its end."""
    most = min(_CHUNK, most)
    if not response.chunked:
        return response.read1(most, decode_content=False)
    # Between chunks stands what is no content, and need not end.
    until = time.monotonic() + timeout_s + _GRACE_S
    with _ended_by(getattr(response, "connected_by", None), until, "the server's chunks do not end"):
        return response.read1(most, decode_content=False)


def check_range(headers: Mapping[str, str], start: int, count: int) -> int | None:
    """How long a file is, by an answer that brings a part of it; None where it does not say.

    Args:
        headers: of the answer.
        start: of what was asked for.
        count: bytes that were asked for.

    Raises:
        Transient: it is another part.
    """
    said = headers.get("Content-Range", "")
    span, _, total = said.removeprefix("bytes ").partition("/")
    first, last = (whole_number(text) for text in span.partition("-")[::2])
    if first is not None and last is not None and (first != start or not start <= last < start + count):
        raise Transient(f"asked for bytes {start} to {start + count - 1}, it sent {said[:60]!a}", answered=True)
    return whole_number(total)


class WebClient:
    """HTTP and HTTPS with kept connections, redirects and certificates, in threads."""

    def __init__(self, timeout_s: float) -> None:
        self._pool = connections(32)
        self._timeout_s = timeout_s

    def fetch(self, url: str, start: int, into: memoryview, versions: Versions) -> int:
        """Read a file's bytes from `start` on; returns how many came before the range, the file or the connection
        ended; 0 where the file has none there.

        Raises:
            Transient: nothing came, and may the next time.
        """
        try:
            with self._open(url, {"Range": f"bytes={start}-{start + len(into) - 1}"}) as response:
                if response.status == 416:
                    return 0
                kind = response.headers.get("Content-Type", "")
                if response.status != 206 and start:
                    refuse_web_page(url, self._some(response, _SNIFFED), kind)
                    raise no_ranges(url, f"it answered {response.status}")
                if response.status == 206:
                    # Of two servers with one name each may give a tag of its own: the length alone counts.
                    versions.check(url, total=check_range(response.headers, start, len(into)))
                length = whole_number(response.headers.get("Content-Length", ""))
                got = read_into(response, into, self._timeout_s) if length != 0 else 0
                if not start:
                    refuse_web_page(url, bytes(into[: min(got, _SNIFFED)]), kind)
                return got
        except urllib3.exceptions.HTTPError as error:
            raise worth_waiting(error) from error

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
                    return whole_number(response.headers.get("Content-Length", "")), False
                return whole_number(response.headers.get("Content-Range", "").rpartition("/")[2]), True
        except urllib3.exceptions.HTTPError as error:
            raise worth_waiting(error) from error

    def get(self, url: str, max_bytes: int = MAX_WHOLE_BYTES) -> bytes:
        """A whole file.

        Raises:
            Transient: it did not come, and may the next time.
            OSError: it is larger than `max_bytes`, or comes so slowly that it never will.
        """
        content, began = bytearray(), time.monotonic()
        try:
            with self._open(url, {}) as response:
                said = whole_number(response.headers.get("Content-Length", "")) or 0
                while said <= max_bytes and (chunk := self._some(response, _CHUNK)):
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
            raise worth_waiting(error) from error

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
                    f"HTTP {status} {response.reason or ''}".strip(), retry_after_s(response.headers), answered=True
                )
            if status not in {200, 206, 416}:
                raise OSError(f"HTTP {status} {response.reason or ''}".strip())
            coding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if coding not in {"", "identity"}:
                raise OSError(f"the server sends it compressed (Content-Encoding: {coding[:40]}), unasked")
            yield response
            complete = True
        finally:
            finish(response, complete=complete)

    def _follow(self, url: str, headers: dict[str, str]) -> tuple[str, urllib3.BaseHTTPResponse]:
        """The answer at the end of all redirects, and the URL without a password that was asked."""
        parsed = urllib3.util.parse_url(url)
        headers = {"Accept-Encoding": "identity", **headers}
        if parsed.auth:
            headers |= urllib3.make_headers(basic_auth=parsed.auth)
        plain = now = parsed._replace(auth=None, fragment=None).url
        answer_by(self._timeout_s)
        for _ in range(_MOST_REDIRECTS + 1):
            response = ask(self._pool, now, headers, self._timeout_s)
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
        return some(response, most, self._timeout_s)


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


def worth_waiting(error: Exception) -> Exception:
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


def _is_slow(got: int, began: float, patience_s: float) -> bool:
    took = time.monotonic() - began
    return took > patience_s and got < LEAST_BYTES_S * took


def _slowness(got: int, began: float) -> str:
    return f"the server sends too slowly: {got:,} bytes in {time.monotonic() - began:.0f} s"
