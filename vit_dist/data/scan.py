"""Read a tar at a URL once, as fast as it comes, and index it on the way. No torch."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from vit_dist.core.files import explained, is_remote, local_path, redact
from vit_dist.data.labels import LabelRule
from vit_dist.data.ranges import RangeReader, file_size
from vit_dist.data.tarheader import BLOCK
from vit_dist.data.tarindex import Places, TarScan, TarScanner

_CHUNK_BYTES = 8 << 20
_LOCAL_CHUNK_BYTES = 4 << 20
_REMOTE_IN_FLIGHT = 6


def scan_tar(
    url: str, rule: LabelRule | None = None, *, leave_out: bool = False, places: Places | None = None
) -> TarScan:
    """Index and checksum a tar, reading each byte once.

    Args:
        url: of the tar.
        rule: where labels stand.
        leave_out: list samples without an image or a label instead of refusing the tar.
        places: filled with those of all samples; None: not wanted.

    Raises:
        DataError: missing, not a tar, damaged, or with samples that cannot be used.
    """
    size = file_size(url)
    scanner = TarScanner(redact(url), rule, size=size, leave_out=leave_out, places=places)
    for chunk in _remote_chunks(url, size) if is_remote(url) else _local_chunks(url, size):
        scanner.feed(chunk)
    return scanner.finish()


def scan_file(file: io.BufferedIOBase, scanner: TarScanner, chunk_bytes: int = _CHUNK_BYTES) -> TarScan:
    """Scan an open tar from its start, reading whole chunks into one buffer."""
    buffer = memoryview(bytearray(chunk_bytes))
    while True:
        filled = _fill(file, buffer)
        if filled:
            scanner.feed(buffer[:filled])
        if filled < chunk_bytes:
            return scanner.finish()


def _fill(file: io.FileIO | io.BufferedIOBase, buffer: memoryview) -> int:
    """Fill a buffer from a file, as far as the file goes; how many bytes that are."""
    filled = 0
    while filled < len(buffer):
        num_read = file.readinto(buffer[filled:])
        if not num_read:
            break
        filled += num_read
    return filled


def _local_chunks(url: str, size: int) -> Iterator[memoryview]:
    """Whole chunks of a file; while one is parsed, a thread reads the next into the other buffer."""
    length = min(_LOCAL_CHUNK_BYTES, size + BLOCK - size % BLOCK)
    buffers = [memoryview(bytearray(length)) for _ in range(2)]
    with (
        explained(url, "read"),
        local_path(url).open("rb", buffering=0) as file,
        ThreadPoolExecutor(1, thread_name_prefix="scan") as pool,
    ):
        coming = pool.submit(_fill, file, buffers[0])
        while True:
            filled = coming.result()
            if filled == length:
                coming = pool.submit(_fill, file, buffers[1])
            if filled:
                yield buffers[0][:filled]
            if filled < length:
                return
            buffers.reverse()


def _remote_chunks(url: str, size: int) -> Iterator[memoryview]:
    reader = RangeReader()
    with ThreadPoolExecutor(_REMOTE_IN_FLIGHT, thread_name_prefix="scan") as pool:
        coming: deque[Future[bytes | memoryview]] = deque()
        try:
            for start in range(0, size, _CHUNK_BYTES):
                coming.append(pool.submit(reader.read, url, start, min(start + _CHUNK_BYTES, size)))
                if len(coming) >= _REMOTE_IN_FLIGHT:
                    yield memoryview(coming.popleft().result())
            while coming:
                yield memoryview(coming.popleft().result())
        finally:
            for future in coming:
                future.cancel()
            reader.close()
