"""Answers of web servers: connections that are kept, bytes within bounds, and what is worth another try. No torch.

What is asked has a deadline that no trickle of bytes puts off, and what is read a least rate.
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
from typing import Any

import urllib3

from vit_dist.core.connections import CONNECTIONS
from vit_dist.core.errors import DataError
from vit_dist.core.store_errors import wait_s, whole_number
from vit_dist.core.urls import redact

LEAST_BYTES_S = 1024
"""A server that sends less in a second, over `PATIENCE_S`, is as good as silent."""

PATIENCE_S = 20.0

CHUNK = 1 << 18
"""Bytes that are read at once."""

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


def connections(*, trusted: ssl.SSLContext | None = None, proxy: str = "", bounded: bool = True) -> urllib3.PoolManager:
    """Connections that are kept, to each server as many as may ask at once.

    Args:
        trusted: certificates; those of the system where left out.
        proxy: URL of what stands between.
        bounded: the head of each answer has a deadline (`answer_by`), at the price of a thread; else each byte of it.
    """
    # Redirects are followed, and failures asked again, by whoever asks.
    retries = urllib3.Retry(0, redirect=False, raise_on_status=False, respect_retry_after_header=False)
    options: dict[str, Any] = {"num_pools": 32, "maxsize": CONNECTIONS, "retries": retries}
    if trusted is not None:
        options["ssl_context"] = trusted
    pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    if bounded:
        pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


def ask(pool: urllib3.PoolManager, url: str, headers: Mapping[str, str], timeout_s: float) -> urllib3.BaseHTTPResponse:
    """The head of an answer to GET; redirects are not followed."""
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
            if is_slow(got, began, max(timeout_s, PATIENCE_S)):
                raise Transient(slowness(got, began), answered=True)
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
    most = min(CHUNK, most)
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


def is_slow(got: int, began: float, patience_s: float) -> bool:
    """Whether so few bytes have come since `began` (by time.monotonic) that the rest is not worth waiting for."""
    took = time.monotonic() - began
    return took > patience_s and got < LEAST_BYTES_S * took


def slowness(got: int, began: float) -> str:
    """The same in words, for an error."""
    return f"the server sends too slowly: {got:,} bytes in {time.monotonic() - began:.0f} s"
