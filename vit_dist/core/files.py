"""Files by URL, read and written whole: local paths, s3://, https://, gs://. Errors say what to do and hide secrets."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from vit_dist.core.errors import DataError
from vit_dist.core.small_files import MAX_WHOLE_BYTES, DamagedError, read_small
from vit_dist.core.store_errors import explained, refuse_web_page
from vit_dist.core.stores import file_system
from vit_dist.core.urls import (
    destination,
    folder_url,
    holds_secret,
    identity,
    is_remote,
    is_s3,
    is_web,
    join_url,
    lies_in,
    local_path,
    parent_url,
    redact,
    split_url,
    url_name,
)

__all__ = [
    "append_json",
    "destination",
    "exists",
    "explained",
    "file_system",
    "folder_url",
    "holds_secret",
    "identity",
    "is_remote",
    "is_s3",
    "is_web",
    "join_url",
    "lies_in",
    "local_path",
    "parent_url",
    "read_bytes",
    "redact",
    "refuse_web_page",
    "split_url",
    "url_name",
    "write_bytes",
]

_WEB_TIMEOUT_S = 30.0


def read_bytes(url: str, max_bytes: int | None = None, *, pipes: bool = False) -> bytes:
    """All bytes of a small file.

    Args:
        url: of the file.
        max_bytes: that it may have; None: 256 MiB.
        pipes: take what another process writes, too, as `<(command)` of a shell; else it is waited for by nobody.

    Raises:
        DataError: missing, forbidden, unreadable, too large, or no regular file.
    """
    most = MAX_WHOLE_BYTES if max_bytes is None else max_bytes
    with explained(url, "read"):
        if is_web(url):
            from vit_dist.core.web import Transient, WebClient

            client = WebClient(_WEB_TIMEOUT_S)
            try:
                return client.get(url, most)
            except Transient as error:
                raise OSError(str(error)) from error
            finally:
                client.close()
        if not is_remote(url):
            return _read_local(url, most, pipes=pipes)
        system, path = file_system(url)
        content = system.head(path, most + 1)
        if len(content) > most:
            raise OSError(f"larger than the {most:,} bytes that such a file may have")
    return content


def _read_local(url: str, max_bytes: int, *, pipes: bool) -> bytes:
    try:
        if not pipes:
            return read_small(local_path(url), max_bytes)
        with local_path(url).open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise DamagedError(f"larger than the {max_bytes:,} bytes that such a file may have")
    except DamagedError as error:
        raise DataError(f"{redact(url)}: cannot be read: {error}; give a file") from None
    return content


def write_bytes(url: str, content: bytes) -> None:
    """Write a whole file; on a local disk atomically, so that a reader sees the old file, the new one, or none.

    Raises:
        DataError: forbidden, disk full, or the store refused.
    """
    with explained(url, "written"):
        if is_remote(url):
            system, path = file_system(url)
            system.pipe_file(path, content)
        else:
            target = local_path(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                # Only now: the name must never point at bytes that a power loss could still take.
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)


def append_json(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a line of JSON to a local file, through to the disk; after a line that a crash cut short, on a new one.

    Where another writes at the same moment, its line may look cut short: then an empty line comes between. What cannot
    be written whole is taken back.

    Raises:
        OSError: it cannot be written.
    """
    line = (json.dumps(entry) + "\n").encode()
    with open_append(path) as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        handle, begun = file.fileno(), os.fstat(file.fileno()).st_size
        try:
            # By its own: a buffer would be written once more when the file is closed.
            written = os.write(handle, line)
            if written < len(line):
                os.write(handle, line[written:])
            os.fsync(handle)
        except OSError:
            # A line that lacks its end alone would count, though its writer was told that it is not there.
            with contextlib.suppress(OSError):
                if os.fstat(handle).st_size <= begun + len(line):
                    os.ftruncate(handle, begun)
            raise


def open_append(path: Path) -> IO[bytes]:
    """A local file to read and to append to, made where it is not there; never through a symbolic link.

    What a link leads to may be the record of another run.

    Raises:
        OSError: it is a link, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.fdopen(os.open(path, flags, 0o666), "a+b")
    except OSError as error:
        if error.errno == errno.ELOOP:
            text = "a symbolic link, through which nothing is written; remove it"
            raise OSError(errno.ELOOP, text, str(path)) from None
        raise


def remove_tree(path: Path) -> None:
    """Remove a local folder with all that is in it, as far as it can be; of a symbolic link the link alone."""
    if path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)


def exists(url: str) -> bool:
    """True where a file is there.

    Raises:
        DataError: the store cannot be asked.
    """
    with explained(url, "looked for"):
        if not is_remote(url):
            return local_path(url).exists()
        system, path = file_system(url)
        return system.exists(path)
