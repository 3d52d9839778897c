"""Files and parts of files from web servers: one try at a time, and whether another is worth while. No torch.

A server is believed nothing: what is read has a bound and a least rate, nothing is decompressed on the way, and a
redirect leads to the web and not from https to http.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import urllib3

from vit_dist.core.small_files import MAX_WHOLE_BYTES
from vit_dist.core.store_errors import BUSY_STATUSES, refuse_web_page, retry_after_s, whole_number
from vit_dist.core.urls import redact
from vit_dist.core.versions import Versions
from vit_dist.core.web_answers import (
    CHUNK,
    PATIENCE_S,
    Transient,
    answer_by,
    ask,
    check_range,
    connections,
    finish,
    is_slow,
    no_ranges,
    read_into,
    slowness,
    some,
    worth_waiting,
)

if TYPE_CHECKING:
    import aiohttp

_SNIFFED = 200
_MOST_REDIRECTS = 5


class WebClient:
    """HTTP and HTTPS with kept connections, redirects and certificates, in threads."""

    def __init__(self, timeout_s: float) -> None:
        self._pool = connections()
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
                while said <= max_bytes and (chunk := self._some(response, CHUNK)):
                    content += chunk
                    if len(content) > max_bytes:
                        break
                    if is_slow(len(content), began, PATIENCE_S):
                        raise OSError(slowness(len(content), began))
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
