"""Files and parts of files from web servers: one try at a time, and whether another is worth while. No torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime

import urllib3

from vit_dist.core.errors import DataError
from vit_dist.core.files import redact, refuse_web_page
from vit_dist.core.store_errors import BUSY_STATUSES, wait_s

_SNIFFED = 200


class Transient(Exception):  # noqa: N818 - not an error yet
    """What may go better the next time; `wait_s` is what the store asked for, if it did."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class WebClient:
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
            Transient: nothing came, and may the next time.
        """
        got = 0
        try:
            with self._open(url, {"Range": f"bytes={start}-{start + len(into) - 1}"}) as response:
                if response.status == 416:
                    return 0
                kind = response.headers.get("Content-Type", "")
                if response.status != 206 and start:
                    refuse_web_page(url, response.read1(_SNIFFED), kind)
                    raise no_ranges(url, f"it answered {response.status}")
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
            Transient: no answer came, and may the next time.
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
            Transient: it did not come, and may the next time.
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
                raise Transient(f"HTTP {status} {response.reason or ''}".strip(), _retry_after(response.headers))
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


def no_ranges(url: str, how: str) -> DataError:
    """What to raise for a store that gives whole files alone."""
    return DataError(
        f"{redact(url)}: the server does not serve byte ranges ({how}); copy the files to one that does, or to a disk"
    )


def _worth_waiting(error: urllib3.exceptions.HTTPError) -> Exception:
    """What to raise for a request that failed: something to wait for, or what no waiting mends."""
    told = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None else error
    wait = wait_s(error)
    text = redact(str(told))
    return OSError(text) if wait is None else Transient(text, wait)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks a client to stay away; 0 where it does not."""
    text = headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
