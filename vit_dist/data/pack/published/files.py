"""The files of a published set by their paths, in folders and in the archives that lie there. No torch.

An archive is not unpacked: its members are read where they lie. One that is compressed becomes a plain tar first, in
the scratch folder.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.core.files import explained, folder_url, is_remote, join_url, parent_url, redact, url_name
from vit_dist.core.text import decode_text
from vit_dist.data.names import is_directory
from vit_dist.data.pack.directories import list_directory
from vit_dist.data.ranges import RangeReader, file_size, open_file
from vit_dist.data.tarheader import BLOCK, HeaderParser, Member, TarFormatError

_DEPTH = 3
_COMPRESSED = (".tgz", ".tar.gz")
_SHOWN = 5
# Of a remote tar so much is read at once: its headers lie between its images.
_AT_ONCE = 8 << 20
# Of a file that is read whole: CIFAR-100's training set has 155 MB.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Place:
    """Where a file lies: a URL, and, in a tar, which bytes of it; of an unpacked tar, the archive that it was."""

    url: str
    offset: int = -1
    num_bytes: int = -1
    path: str = ""
    archive: str = ""

    @property
    def where(self) -> str:
        """For people."""
        url = redact(self.archive or self.url)
        return url if self.offset < 0 else f"{url}: {self.path}"


@dataclass
class Files:
    """The files of a set.

    Attributes:
        where: what was looked at, for people.
        scratch: a folder for what is unpacked.
        by_path: path from the set's folder, or in an archive of it -> where it lies.
    """

    where: str
    scratch: Path
    by_path: dict[str, Place] = field(default_factory=dict)

    def find(self, path: str) -> Place | None:
        """The file whose path ends so; the one that lies highest."""
        found = [p for p in self.by_path if p == path or p.endswith(f"/{path}")]
        return self.by_path[min(found, key=lambda p: (p.count("/"), p))] if found else None

    def need(self, path: str, what: str = "") -> Place:
        """The file whose path ends so.

        Raises:
            DataError: it is not there.
        """
        found = self.find(path)
        if found is None:
            raise DataError(f"{self.where}: {path} is missing{f', {what}' if what else ''}; fetch it again")
        return found

    def matching(self, pattern: str) -> dict[str, Place]:
        """Files whose whole names match a regular expression, by name; of one that is there twice the highest."""
        wanted = re.compile(pattern)
        found: dict[str, Place] = {}
        for path in sorted(self.by_path, key=lambda p: (p.count("/"), p)):
            name = path.rpartition("/")[2]
            if wanted.fullmatch(name):
                found.setdefault(name, self.by_path[path])
        return found

    def archives(self, *names: str) -> None:
        """Open the archives of these names, as far as they are there: their members count as files.

        Raises:
            DataError: one is damaged.
        """
        for name in names:
            place = self.find(name)
            if place is None:
                continue
            tar = plain_tar(place.url, self.scratch)
            for member in members(tar, where=place.where):
                if member.is_file:
                    path = member.name.removeprefix("./")
                    self.by_path.setdefault(path, Place(tar, member.content, member.size, path, place.url))


def look(url: str, scratch: Path, *, leave_out: str = "") -> Files:
    """The files of a folder, three levels deep, or those beside a file, with it.

    Args:
        url: of a folder or of one file of the set.
        scratch: a folder for what is unpacked.
        leave_out: a regular expression of directories that are not looked into.

    Raises:
        DataError: missing.
    """
    if not is_directory(url):
        found = Files(redact(url), scratch)
        _, beside = list_directory(parent_url(url) or ".")
        # The file that was named comes before another of its name.
        for name, size in beside:
            found.by_path[name] = Place(join_url(parent_url(url), name), -1, size, name)
        if url_name(url) not in found.by_path:
            raise DataError(f"{redact(url)}: no such file; check the path")
        return found
    url = folder_url(url)
    found = Files(redact(url), scratch)

    def walk(folder: str, above: str, depth: int) -> None:
        directories, files = list_directory(folder)
        for name, size in files:
            found.by_path[f"{above}{name}"] = Place(join_url(folder, name), -1, size, f"{above}{name}")
        for name in directories:
            if depth and not (leave_out and re.fullmatch(leave_out, name)):
                walk(join_url(folder, name), f"{above}{name}/", depth - 1)

    walk(url, "", _DEPTH)
    return found


def read(place: Place) -> bytes:
    """The whole of a file.

    Raises:
        DataError: it cannot be read, or is larger than any that is read whole.
    """
    size = place.num_bytes if place.num_bytes >= 0 else file_size(place.url)
    if size > _MOST_BYTES:
        raise DataError(f"{place.where}: {size:,} bytes; at most {_MOST_BYTES:,} are read of such a file")
    begin = max(place.offset, 0)
    with contextlib.closing(RangeReader()) as reader:
        return bytes(reader.read(place.url, begin, begin + size))


def lines(place: Place) -> list[str]:
    """The lines of a text, without blanks at their ends; empty ones at the end do not count.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        text = decode_text(read(place))
    except ValueError as error:
        raise DataError(f"{place.where}: {error}") from None
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def matlab(place: Place, *names: str) -> Mapping[str, Any]:
    """Variables of a file of MATLAB.

    Raises:
        DataError: it is none, is damaged, or has not these.
    """
    from scipy.io import loadmat

    try:
        found: Mapping[str, Any] = loadmat(io.BytesIO(read(place)), squeeze_me=True, variable_names=list(names))
    except DataError:
        raise
    except Exception as error:
        # scipy says of damage whatever zlib, struct and numpy say.
        raise DataError(f"{place.where}: no file of MATLAB, or damaged: {str(error)[:200]}; fetch it again") from None
    for name in names:
        if name not in found:
            raise DataError(f"{place.where}: has no variable {name!r}; is it the file of another set?")
    return found


def whole_numbers(place: Place, name: str, values: Any) -> list[int]:
    """A variable as a list of whole numbers.

    Raises:
        DataError: it is none.
    """
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.array_equal(array, array.round()):
        raise DataError(f"{place.where}: {name!r} is no list of whole numbers; is it the file of another set?")
    return [int(value) for value in array]


def plain_tar(url: str, scratch: Path) -> str:
    """The tar itself, or what its compressed form becomes, in the scratch folder.

    Raises:
        DataError: damaged, or no room for it.
    """
    if not url_name(url).lower().endswith(_COMPRESSED):
        return url
    target = scratch / f"{url_name(url)}.tar"
    with explained(str(target), "written"):
        scratch.mkdir(parents=True, exist_ok=True)
    try:
        with open_file(url) as raw, gzip.open(raw) as content, target.open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{redact(url)}: damaged: {error}; fetch it again") from None
    except OSError as error:
        with explained(str(target), "written"):
            raise error
    return str(target)


def members(url: str, begin: int = 0, size: int | None = None, *, where: str = "") -> Iterator[Member]:
    """The members of a tar, also of one inside another; their offsets are those of the file that holds it.

    Args:
        url: of the file.
        begin: where the tar begins in it.
        size: of the tar; None: to the end of the file.
        where: what it is, for people.

    Raises:
        DataError: it is no tar, damaged, or cut off.
    """
    size = file_size(url) - begin if size is None else size
    parser = HeaderParser(size)
    with contextlib.closing(RangeReader()) as reader:
        take = _ahead(reader, url, begin + size) if is_remote(url) else lambda a, b: bytes(reader.read(url, a, b))
        try:
            while parser.next < size and not parser.ended:
                at = parser.next
                if at + BLOCK > size:
                    raise TarFormatError(at, "ends in the middle of a header: it is truncated")
                member = parser.header(at, take(begin + at, begin + at + BLOCK))
                if parser.wanted:
                    first = begin + at + BLOCK
                    parser.extended(take(first, first + parser.wanted))
                if member is not None:
                    yield member._replace(first=member.first + begin, content=member.content + begin)
        except TarFormatError as error:
            raise DataError(f"{where or redact(url)}: the tar {error} (at byte {error.offset:,})") from None


def _ahead(reader: RangeReader, url: str, end: int) -> Callable[[int, int], bytes]:
    """Reads of a store, many bytes at once."""
    held, first = memoryview(b""), 0

    def take(a: int, b: int) -> bytes:
        nonlocal held, first
        if not first <= a <= b <= first + len(held):
            first, held = a, reader.read(url, a, min(end, max(b, a + _AT_ONCE)))
        return bytes(held[a - first : b - first])

    return take


def shown(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
