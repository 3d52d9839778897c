"""Files of the cache of shards: its folder, and chunks of shards in cells that each have a checksum. No torch.

A chunk is a sparse file: a header, and 256 cells of 64 KiB of one shard, each at its place. A cell counts once its
checksum stands in the header, which is written after its bytes: whatever kills the writer, on whatever disk, a reader
finds a whole cell or none. Two who write one cell write the same bytes. Nothing is synced to the disk: what a power
loss leaves of a cell does not fit its checksum.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import xxhash

from vit_dist.core.errors import ConfigError, MissingError
from vit_dist.core.files import identity, replacing
from vit_dist.core.folders import visible
from vit_dist.core.small_files import DamagedError, read_small

CELL = 64 << 10
CHUNK_CELLS = 256
CHUNK = CELL * CHUNK_CELLS
CHUNK_OVERHEAD = 16 << 10
"""Bytes of disk that a chunk takes at most beside its cells: header, where its cells lie, its name."""
LOCKS, WRITING = "locks", "writing"
LEDGER, LEDGER_LOCK = "ledger", "ledger.lock"
DRAWERS = tuple("0123456789abcdef")
_HEADER, _TABLE = 4096, 2048
_FORMAT, _SAYS = "FORMAT", b"vit_dist shard cache 1\n"


@dataclass(frozen=True)
class CachedShard:
    """A shard as the cache knows it.

    Attributes:
        key: 32 hexadecimal digits of its URL, its size and its checksum.
        size: in bytes.
    """

    key: str
    size: int

    @classmethod
    def of(cls, url: str, size: int, checksum: str) -> CachedShard:
        """A shard by its URL, without what signs it, and by size and checksum as its manifest has them."""
        return cls(xxhash.xxh3_128_hexdigest(f"{identity(url)}\n{size}\n{checksum}".encode()), size)


def folder_of(place: Path) -> Path:
    """The folder of this user's cache in a directory that may be everybody's."""
    return place / f"vit_dist-shards-{os.getuid()}"


def open_folder(place: Path, setting: str) -> Path:
    """The folder of this user's cache, made where it is missing, for nobody else to read.

    Args:
        place: the directory it lies in.
        setting: what says so, for errors.

    Raises:
        ConfigError: the directory is not there, the folder is another user's, or holds something else.
        OSError: the disk does not take it.
    """
    if not place.is_dir():
        raise ConfigError(
            f"{setting}: {place} is no directory on {socket.gethostname()}; give a local one that every node has (in a "
            f"container it is to be mounted), or make it"
        )
    folder = folder_of(place)
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        check_owner(folder, setting)
        folder.chmod(0o700)
    except PermissionError:
        raise ConfigError(f"{setting}: {place} may not be written to by this user; give another directory") from None
    if not has_format(folder):
        # Or whoever cleans up after others has taken the oldest file of it.
        own = (*DRAWERS, LOCKS, WRITING, LEDGER, LEDGER_LOCK)
        others = [path.name for path in visible(folder) if path.name not in own]
        # Another process may have made it meanwhile.
        if others and not has_format(folder):
            raise ConfigError(
                f"{setting}: {folder} holds something else than shards, or is another version's: "
                f"{', '.join(others[:3])}. Nothing was written there; remove it, or give another directory"
            )
        with replacing(folder / _FORMAT) as new:
            new.write_bytes(_SAYS)
    for name in (*DRAWERS, LOCKS, WRITING):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    return folder


def find_folder(place: Path, setting: str) -> Path:
    """The folder of this user's cache in a directory, where there is one.

    Raises:
        MissingError: there is none.
        ConfigError: it is not this user's own, or of another version.
    """
    folder = folder_of(place)
    try:
        check_owner(folder, setting)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            f"{setting}: {place} has no cache of shards of this user on {socket.gethostname()}; one is made by the "
            f"first job that uses it"
        ) from None
    if not has_format(folder):
        raise ConfigError(f"{setting}: {folder} is no cache of shards of this version; nothing was done there")
    return folder


def check_owner(folder: Path, setting: str) -> None:
    """Nothing, where a folder is this user's own.

    Raises:
        ConfigError: it is another user's, a link, or no folder.
        OSError: it is not there.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{setting}: {folder} is no folder but a file or a link, which is not followed; remove it")
    if status.st_uid != os.getuid():
        raise ConfigError(
            f"{setting}: {folder} belongs to {_user(status.st_uid)}, who could put other images there; give another "
            f"directory, or have it removed"
        )


def has_format(folder: Path) -> bool:
    """Whether a folder is a cache as this version writes it."""
    try:
        return read_small(folder / _FORMAT, 100) == _SAYS
    except (FileNotFoundError, DamagedError):
        return False


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (user {uid})"
    except KeyError:
        return f"user {uid}"


@dataclass(frozen=True)
class Chunk:
    """One file: up to 256 cells of a shard.

    Attributes:
        folder: of the cache.
        shard: whose bytes they are.
        number: of the chunk in the shard, from 0.
    """

    folder: Path
    shard: CachedShard
    number: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.shard.key}-{self.number:06d}"

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.folder / self.shard.key[0] / self.name

    def read(self, cells: range, into: memoryview) -> tuple[list[int], int]:
        """Read what is there of some cells that follow each other.

        Args:
            cells: as the shard counts them.
            into: their bytes; those of a missing cell are anything afterwards.

        Returns:
            the cells that are not there, and how many of them are damaged: what is written does not fit its checksum.

        Raises:
            OSError: the disk cannot be read.
        """
        try:
            # A pipe in its place is none of ours, and would be waited for.
            handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return list(cells), 0
        try:
            head = os.pread(handle, _HEADER, 0)
            if not self._is_own(head):
                # All zeros: its writer has just made it, or died there.
                return list(cells), int(any(head))
            table = np.frombuffer(head, "<u8", CHUNK_CELLS, _TABLE)
            there = [cell for cell in cells if table[cell % CHUNK_CELLS]]
            for first, last in runs(there):
                _read_fully(handle, into[_span(self.shard, first, last, cells.start)], self._at(first))
        finally:
            os.close(handle)
        damaged = {
            cell
            for cell in there
            if _checksum(into[_span(self.shard, cell, cell, cells.start)], cell) != table[cell % CHUNK_CELLS]
        }
        found = set(there) - damaged
        return [cell for cell in cells if cell not in found], len(damaged)

    def write(self, cells: Sequence[int], content: memoryview, first: int) -> None:
        """Write cells.

        Args:
            cells: ascending, as the shard counts them.
            content: the bytes of the shard from cell `first` on.
            first: see `content`.

        Raises:
            OSError: the disk does not take them; no cell counts then that is not whole.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = _HEADER + min(CHUNK, self.shard.size - self.number * CHUNK)
            if os.fstat(handle).st_size != size:
                os.ftruncate(handle, size)
            if not self._is_own(os.pread(handle, _HEADER, 0)):
                _write_fully(handle, self._says.ljust(_HEADER, b"\0"), 0)
            for begin, last in runs(cells):
                _write_fully(handle, content[_span(self.shard, begin, last, first)], self._at(begin))
                sums = [_checksum(content[_span(self.shard, c, c, first)], c) for c in range(begin, last + 1)]
                _write_fully(handle, np.array(sums, "<u8").tobytes(), _TABLE + 8 * (begin % CHUNK_CELLS))
        finally:
            os.close(handle)

    def note_use(self) -> None:
        """Note that it is used, by which the cache knows what was used the longest ago."""
        with contextlib.suppress(OSError):
            os.utime(self.path, follow_symlinks=False)

    def remove(self) -> None:
        """Take it out of the cache, as far as it can be."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    @property
    def _says(self) -> bytes:
        return _SAYS + f"{self.name} of {self.shard.size}\n".encode()

    def _is_own(self, head: bytes) -> bool:
        return len(head) == _HEADER and head.startswith(self._says)

    def _at(self, cell: int) -> int:
        return _HEADER + cell % CHUNK_CELLS * CELL


def chunks_of(folder: Path, shard: CachedShard, cells: Iterable[int]) -> Iterator[tuple[Chunk, list[int]]]:
    """Ascending cells of a shard, by the chunks in which they lie."""
    for number, inside in groupby(cells, lambda cell: cell // CHUNK_CELLS):
        yield Chunk(folder, shard, number), list(inside)


def runs(cells: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of ascending numbers that follow each other."""
    found: list[tuple[int, int]] = []
    for cell in cells:
        if found and found[-1][1] == cell - 1:
            found[-1] = (found[-1][0], cell)
        else:
            found.append((cell, cell))
    return found


def _span(shard: CachedShard, first: int, last: int, origin: int) -> slice:
    """Cells `first` to `last` in what begins with cell `origin`."""
    return slice((first - origin) * CELL, min((last + 1) * CELL, shard.size) - origin * CELL)


def _checksum(content: memoryview, cell: int) -> int:
    # 0 stands for a cell that is not there.
    return xxhash.xxh3_64_intdigest(content, cell) or 1


def _read_fully(handle: int, into: memoryview, at: int) -> None:
    """As much as the file has; what it lacks stays as it is in `into`, and fits no checksum."""
    while into:
        got = os.preadv(handle, [into], at)
        if not got:
            return
        into, at = into[got:], at + got


def _write_fully(handle: int, content: memoryview | bytes, at: int) -> None:
    content = memoryview(content)
    while content:
        done = os.pwrite(handle, content, at)
        content, at = content[done:], at + done
