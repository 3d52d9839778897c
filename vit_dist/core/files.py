"""Files by URL, read and written whole: local paths, s3://, https://, gs://. Errors say what to do and hide secrets."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vit_dist.core.errors import DataError
from vit_dist.core.small_files import MAX_WHOLE_BYTES, DamagedError, read_small
from vit_dist.core.store_errors import disk_problem, explained, refuse_web_page
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
    "append_whole",
    "copy_here",
    "destination",
    "disk_problem",
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
    "make_folder",
    "parent_url",
    "read_bytes",
    "redact",
    "refuse_web_page",
    "replacing",
    "replacing_folder",
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
            from vit_dist.core.web import WebClient
            from vit_dist.core.web_answers import Transient

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


def write_bytes(url: str, content: bytes, *, sync: bool = True) -> None:
    """Write a whole file; on a local disk atomically, so that a reader sees the old file, the new one, or none.

    What is no regular file, such as a pipe or /dev/stdout, is written to as it is.

    Args:
        url: of the file.
        content: all of it.
        sync: wait until it is on the disk; without, a power loss may take it, which is right for what is made again.

    Raises:
        DataError: forbidden, disk full, or the store refused.
    """
    with explained(url, "written"):
        if is_remote(url):
            system, path = file_system(url)
            system.pipe_file(path, content)
            return
        target = local_path(url)
        if _is_stream(target):
            # Appended: /dev/stdout may be a file that has lines already.
            with target.open("ab") as stream:
                stream.write(content)
            return
        with replacing(target, sync=sync) as temporary:
            temporary.write_bytes(content)


def _is_stream(path: Path) -> bool:
    """Whether a path leads to a device, a pipe, or what another process has open: nothing takes the place of these."""
    if str(path.absolute()).startswith(("/dev/", "/proc/")):
        return True
    # What cannot be asked is no stream: writing says why.
    with contextlib.suppress(OSError):
        return path.exists() and not path.is_file() and not path.is_dir()
    return False


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, ending: str = "") -> Iterator[Path]:
    """A new local file beside `path`, to write to: takes its place once it is complete, and is gone if it never is.

    The one way in which a file of ours comes to be: whatever kills the writer, a reader sees the old file, the new
    one, or none. What a kill leaves is hidden, ends with .tmp and `ending`, and is read by nobody.

    Args:
        path: of the file; its folder is made.
        sync: the bytes are on the disk before the name points at them.
        ending: of the new file's name, for writers that go by it.

    Raises:
        OSError: it cannot be written.
    """
    # Of a long name a part: with what is put around it, it must be a name still.
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            # Only then the name: it must never point at bytes that a power loss could still take.
            sync_path(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_path(path: Path) -> None:
    """Write a file, or the entries of a folder, through to the disk.

    Raises:
        OSError: the disk does not take it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, to fill: takes its place once it is complete, and is gone if it never is.

    Between two renames, a moment, there may be none; a reader never sees part of one and part of the other.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    fresh = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if not (path.exists() or path.is_symlink()):
            fresh.rename(path)
            return
        old = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.old")
        path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            old.rename(path)
            raise
        remove_tree(old)
    finally:
        remove_tree(fresh)


def make_folder(path: Path) -> None:
    """Make a local folder, with those above it, unless it is there.

    Raises:
        DataError: it cannot be made.
    """
    with explained(str(path), "made"):
        path.mkdir(parents=True, exist_ok=True)


def copy_here(url: str, to: Path) -> None:
    """Copy one file of a store to a local one.

    Raises:
        DataError: the store cannot be read, or the disk takes no more; it names the one that is to blame.
    """
    system, path = file_system(url)
    with explained(url, "read"):
        try:
            system.get_file(path, str(to))
        except OSError as error:
            if problem := disk_problem(error):
                raise DataError(f"{to}: cannot be written: {problem}") from None
            raise


def append_json(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a line of JSON to a local file, through to the disk; see `append_whole`.

    Raises:
        OSError: it cannot be written.
    """
    append_whole(path, (json.dumps(entry) + "\n").encode(), sync=True)


def append_whole(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Append lines to a local file, all of them or none; after a line that a crash cut short, on a new one.

    Where another writes at the same moment, its line may look cut short: then an empty line comes between.

    Args:
        path: of the file; made where it is not there.
        content: lines.
        sync: wait until they are on the disk.

    Raises:
        OSError: they cannot be written; the file is as it was.
    """
    with open_append(path) as file:
        handle, end = file.fileno(), file.seek(0, os.SEEK_END)
        cut = end > 0 and os.pread(handle, 1, end - 1) != b"\n"
        content, done = b"\n" * cut + content, 0
        try:
            while done < len(content):
                done += os.write(handle, content[done:])
            if sync:
                os.fsync(handle)
        except OSError:
            # Not where another has appended meanwhile: what is left of ours is a line cut short then.
            with contextlib.suppress(OSError):
                if os.fstat(handle).st_size == end + done:
                    os.ftruncate(handle, end)
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


def open_output(path: Path) -> IO[bytes]:
    """Where what a child process prints is appended; nowhere, where that cannot be: it is worth no run."""
    try:
        return open_append(path)
    except OSError:
        return Path(os.devnull).open("ab")


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
