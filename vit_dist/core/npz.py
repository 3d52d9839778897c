"""Archives of arrays (.npz): what they say they hold is looked at before a byte of it is unfolded. No torch.

A header of a few bytes can promise more than any memory holds, and compressed zeros are a thousandth of what they
unfold to. So names, types and shapes come first, held against the bytes that are there; then arrays, one at a time.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vit_dist.core.small_files import DamagedError

_PIECE_BYTES = 1 << 20
# Of the list of an archive's members: some 30,000 names. Python's objects of it take ten times as much.
_MAX_DIRECTORY_BYTES = 4 << 20
# Of an array's header; numpy itself writes less, and would take one of 4 GB into memory before it looks.
_MAX_HEADER_BYTES = 10_000
# Weights and labels become a tenth smaller. What shrinks to less than this is a bomb, or so small that it matters not.
_MAX_RATIO = 64
_ALWAYS_UNFOLDED_BYTES = 256 << 20
_MAX_DIMENSIONS = 32
_MOST_NAME = 80
# Booleans, whole and real numbers, and bytes: what JAX stores a bfloat16 as.
_KINDS = "?biufV"
# numpy parses the headers of arrays with Python's `ast`, which in Python 3.11 now and then fails when two threads do so
# at once ("AST constructor recursion depth mismatch").
_ONE_AT_A_TIME = threading.Lock()


class NotAnArchiveError(DamagedError):
    """Something else, or cut short."""


class NoNumbersError(DamagedError):
    """An array of something other than plain numbers: whole, and of no use."""


@dataclass(frozen=True)
class Described:
    """What an archive says of one of its arrays."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    in_columns: bool
    begin: int

    @property
    def num_bytes(self) -> int:
        """Of the array, unfolded."""
        return self.dtype.itemsize * math.prod(self.shape)


class Arrays:
    """An open archive. `described` has what it says of each array, by name."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._members = _members(archive)
        self.described: dict[str, Described] = {}
        with _ONE_AT_A_TIME:
            for name, info in self._members.items():
                self.described[name] = _described(archive, name, info)

    def read(self, name: str) -> NDArray[Any]:
        """Unfold one array.

        Raises:
            DamagedError: its bytes are not those that were written.
        """
        described = self.described[name]
        content = read_member(self._archive, self._members[name], name, described.begin, described.num_bytes)
        return content.view(described.dtype).reshape(described.shape, order="F" if described.in_columns else "C")


@contextlib.contextmanager
def open_arrays(file: IO[bytes]) -> Iterator[Arrays]:
    """An archive whose directory and headers have been looked at.

    Raises:
        NotAnArchiveError: no .npz at all.
        DamagedError: a name that stands twice, Python objects, a shape that its bytes do not hold.
    """
    with open_archive(file) as archive:
        yield Arrays(archive)


class _Bounded:
    """A file of which no more is read at once than a list of members may have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY_BYTES:
            raise DamagedError(f"its list of members says that it has {size:,} bytes")
        # Without a size zipfile asks for what stands behind the list: 64 KiB at most.
        return self._file.read(_MAX_DIRECTORY_BYTES if size < 0 else size)


def open_archive(file: IO[bytes]) -> zipfile.ZipFile:
    """A zip archive whose list of members is of bounded size.

    Raises:
        NotAnArchiveError: something else, or cut short.
        DamagedError: a member lies beyond the end.
    """
    try:
        size = file.seek(0, io.SEEK_END)
        archive = zipfile.ZipFile(cast(IO[bytes], _Bounded(file)))
    except MemoryError:
        raise
    except Exception as error:
        # zipfile says of damage whatever struct, codecs and seek say.
        raise NotAnArchiveError(f"no archive of arrays: {error}") from None
    for info in archive.infolist():
        if not 0 <= info.header_offset <= size - info.compress_size:
            raise DamagedError(f"{shown_name(info.filename)}: {info.compress_size:,} bytes in a file of {size:,}")
    return archive


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, begin: int, count: int) -> NDArray[Any]:
    """Bytes [begin, begin + count) of a member; where these are its last, its checksum is held against them.

    Args:
        archive: open.
        info: the member.
        name: what the member is called in errors.
        begin: the first byte.
        count: of bytes; the memory that this takes.

    Raises:
        DamagedError: its bytes are not those that were written.
    """
    content = np.empty(count, np.uint8)
    try:
        with archive.open(info) as member:
            member.read(begin)
            at = 0
            # In pieces: a damaged size must not unfold the whole at once.
            while at < count:
                piece = member.read(min(count - at, _PIECE_BYTES))
                if not piece:
                    raise DamagedError(f"{shown_name(name)}: ends early")
                content[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
    except (DamagedError, MemoryError):
        # Want of memory is the machine's trouble, not the file's.
        raise
    except Exception as error:
        raise DamagedError(f"{shown_name(name)}: {error}") from None
    return content


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise DamagedError(f"{shown_name(name)}: stands twice in the archive")
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or info.flag_bits & 1:
            raise DamagedError(f"{shown_name(name)}: packed in a way that numpy does not write")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise DamagedError(
                f"{shown_name(name)}: has {info.compress_size:,} bytes in the archive, which says {info.file_size:,}"
            )
        if info.file_size > max(_ALWAYS_UNFOLDED_BYTES, _MAX_RATIO * info.compress_size):
            raise DamagedError(
                f"{shown_name(name)}: would unfold from {info.compress_size:,} bytes to {info.file_size:,}; arrays are "
                f"read that shrank to no less than 1/{_MAX_RATIO}"
            )
        members[name] = info
    return members


def _described(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Described:
    try:
        with archive.open(info) as member:
            head = io.BytesIO(member.read(_MAX_HEADER_BYTES))
        version = npy.read_magic(head)
        if version not in {(1, 0), (2, 0)}:
            raise DamagedError(f"{shown_name(name)}: of version {version} of numpy's format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, in_columns, dtype = read(head)
        begin = head.tell()
    except (DamagedError, MemoryError):
        raise
    except Exception as error:
        # Of a damaged header numpy, ast and tokenize raise all sorts of errors, and warn of none that matters.
        text = str(error).split("\n")[0][:_MOST_NAME]
        raise DamagedError(f"{shown_name(name)}: no array of numpy: {text or type(error).__name__}") from None
    if dtype.hasobject or dtype.fields or dtype.subdtype or dtype.kind not in _KINDS or not dtype.itemsize:
        kind = (
            "Python objects, which are never read" if dtype.hasobject else f"values of type {str(dtype)[:_MOST_NAME]}"
        )
        raise NoNumbersError(f"{shown_name(name)}: holds {kind}; plain numbers are wanted")
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise DamagedError(f"{shown_name(name)}: has the shape {str(shape)[:_MOST_NAME]}, which is none")
    described = Described(dtype, shape, bool(in_columns), begin)
    if described.num_bytes + begin != info.file_size:
        raise DamagedError(
            f"{shown_name(name)}: its shape {str(shape)[:_MOST_NAME]} of {dtype} takes {described.num_bytes:,} bytes, "
            f"it has {info.file_size - begin:,}"
        )
    return described


def shown_name(name: str) -> str:
    """A name out of an archive, as it is where that is plain, else quoted; cut short."""
    return name[:_MOST_NAME] if re.fullmatch(r"[\w./:-]+", name, re.ASCII) else ascii(name[:_MOST_NAME])
