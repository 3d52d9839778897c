"""The 512-byte headers of tars: the one parser of all who read them, from v7 to pax. No torch.

Own code, because a sample index needs offsets, because `tarfile` reads 10 KB at a time and takes a damaged header in
the middle for the end, and because the training reader checks a few headers in memory. What a typeflag means, and which
of several names counts, is as in `tarfile`, through which webdataset reads. But the prefix is read only where the magic
says that there is one, as in GNU tar: `tarfile` takes the times in GNU's incremental tars for it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

BLOCK = 512
_MAX_HEADER_BYTES = 1 << 20
_ZERO = bytes(BLOCK)
_CHECKSUM_SPACES = 8 * 0x20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Files, 7 a contiguous one.
_REGULAR = frozenset([b"0", b"\0", b"7"])
# Links, devices, directories, pipes. Of every other kind, known or not, content follows as long as the size says.
_WITHOUT_CONTENT = frozenset(b"%d" % kind for kind in range(1, 7))
# pax for one member (X: Solaris) and for all that follow, GNU's long names of members and of what they link to.
_EXTENDED = frozenset([b"x", b"X", b"g", b"L", b"K"])
_OCTAL = re.compile(rb" *([0-7]*) *(?:\0.*)?", re.DOTALL)
_DECIMAL = re.compile(rb"[0-9]{1,20}")


class TarFormatError(Exception):
    """What is wrong with a tar, as a text that goes on after 'the tar', and at which byte."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(problem)
        self.offset, self.problem = offset, problem


class Member(NamedTuple):
    """One member of a tar.

    Attributes:
        name: bytes that are not UTF-8 stand as surrogates in it.
        kind: its typeflag.
        first: offset of the first of its headers.
        content: offset of its bytes.
        size: how many they are.
    """

    name: str
    kind: bytes
    first: int
    content: int
    size: int

    @property
    def is_file(self) -> bool:
        """A regular file: no directory, link, device or note of the program that wrote the tar."""
        return self.kind in _REGULAR

    @property
    def is_link(self) -> bool:
        """A hard or symbolic link."""
        return self.kind in (b"1", b"2")


class HeaderParser:
    """Takes the headers of a tar one after the other, and says where the next one is.

    Args:
        num_bytes: of the tar where known, so that a damaged size is noticed at once.

    Attributes:
        next: offset of the next header.
        ended: the end marker was met.
        wanted: bytes right after the last header that `extended` must be given before the next one.
    """

    def __init__(self, num_bytes: int | None = None) -> None:
        self.next, self.ended, self.wanted = 0, False, 0
        self._num_bytes = num_bytes
        self._first: int | None = None  # of the extended headers that belong to the next member
        self._extended = b""
        self._name: str | None = None
        self._size: int | None = None

    def header(self, offset: int, block: bytes) -> Member | None:
        """The member whose header a block is; None for the end marker and for extended headers.

        Args:
            offset: of the block in the tar.
            block: 512 bytes.

        Raises:
            TarFormatError: no header, damaged, or of a member that cannot be read in place.
        """
        if not _checksum_fits(block):
            # Tars end in blocks of zeros.
            if block != _ZERO:
                _not_a_header(offset, block)
            if self._first is not None:
                raise TarFormatError(
                    self._first, "ends after an extended header, without its member: it is damaged; write it again"
                )
            self.ended, self.next = True, offset + BLOCK
            return None
        kind = block[156:157]
        size = _number(offset, block[124:136])
        content = offset + BLOCK
        if kind == b"0" and self._first is None:
            # Nearly every header: a plain file without extended headers.
            self._skip(offset, size)
            return Member(_header_name(block), kind, offset, content, size)
        if kind in _EXTENDED:
            self._begin_extended(offset, kind, size)
            return None
        name = _header_name(block)
        if kind == b"\0" and name.endswith("/"):
            # How directories were written before there was a typeflag for them.
            kind = b"5"
        name = name if self._name is None else self._name
        size = size if self._size is None else self._size
        first = offset if self._first is None else self._first
        self._name = self._size = self._first = None
        if kind == b"S":
            raise TarFormatError(
                offset, f"holds the sparse file {name!r}, which cannot be read in place; write it again"
            )
        self._skip(offset, 0 if kind in _WITHOUT_CONTENT else size)
        return Member(name, kind, first, content, size)

    def _begin_extended(self, offset: int, kind: bytes, size: int) -> None:
        if size > _MAX_HEADER_BYTES:
            raise TarFormatError(offset, f"has an extended header of {size} bytes; it is damaged; write it again")
        if self._first is None:
            self._first = offset
        self._skip(offset, size)
        self._extended, self.wanted = kind, size
        if not size:
            self.extended(b"")

    def extended(self, content: bytes) -> None:
        """The content of the extended header that came last.

        Raises:
            TarFormatError: damaged, or it says what cannot be read in place.
        """
        self.wanted = 0
        if self._extended == b"L":
            self._set_name(_text(content.partition(b"\0")[0]))
        elif self._extended != b"K":
            self._pax(content)

    def _set_name(self, name: str) -> None:
        # Of several headers for one member, which no program writes, `tarfile` takes the first.
        if self._name is None:
            self._name = name

    def _pax(self, content: bytes) -> None:
        records = dict(_pax_records(self.next, content))
        if any(key.startswith(b"GNU.sparse") for key in records):
            raise TarFormatError(self.next, "holds a sparse file, which cannot be read in place; write it again")
        path, size = records.get(b"path"), records.get(b"size")
        if self._extended == b"g" and (path is not None or size is not None):
            raise TarFormatError(
                self.next,
                "has a global pax header that gives all members one name or size, so that none can be read alone; "
                "write it again",
            )
        if path == b"" or (size is not None and not _DECIMAL.fullmatch(size)):
            raise TarFormatError(self.next, "has a pax header with an empty name or a damaged size; write it again")
        if path is not None:
            self._set_name(_text(path).rstrip("/"))
        if size is not None and self._size is None:
            self._size = int(size)

    def _skip(self, offset: int, size: int) -> None:
        self.next = offset + BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
        if self._num_bytes is not None and offset + BLOCK + size > self._num_bytes:
            raise TarFormatError(
                offset,
                f"has a member of {size} bytes that would end after the end of the file ({self._num_bytes} bytes): it "
                f"is truncated or damaged; copy or write it again",
            )


def walk(read: Callable[[int, int], bytes], begin: int, end: int) -> Iterator[Member]:
    """The members whose headers lie in a part of a tar.

    Args:
        read: gives bytes [a, b) of the tar, fewer where it has no more.
        begin: offset of a member's first header.
        end: where to stop.

    Raises:
        TarFormatError: what lies there are no headers.
    """
    parser = HeaderParser()
    parser.next = begin
    while parser.next < end and not parser.ended:
        at = parser.next
        block = read(at, at + BLOCK)
        if len(block) < BLOCK:
            raise TarFormatError(at, "ends in the middle of a header")
        member = parser.header(at, block)
        if parser.wanted:
            parser.extended(read(at + BLOCK, at + BLOCK + parser.wanted))
        if member is not None:
            yield member


def _checksum_fits(header: bytes) -> bool:
    field = header[148:156]
    try:
        stored = int(field.partition(b"\0")[0], 8)
    except ValueError:
        return False
    # The low half of Adler-32 is 1 + the sum of the bytes modulo 65521: sum() in C, twenty times as fast.
    difference = (zlib.adler32(header) & 0xFFFF) - sum(field) + _CHECKSUM_SPACES - 1 - stored
    if difference % 65521 == 0:
        return True
    # Some old programs summed signed bytes: the same but for 256 for each byte of 128 and more.
    high = sum(byte >= 0x80 for byte in header) - sum(byte >= 0x80 for byte in field)
    return high > 0 and (difference - 256 * high) % 65521 == 0


def _not_a_header(offset: int, block: bytes) -> NoReturn:
    for magic, name in _COMPRESSED.items():
        if offset == 0 and block.startswith(magic):
            raise TarFormatError(
                0, f"is compressed with {name}, so samples cannot be read in place; decompress it, then index it"
            )
    if offset == 0:
        raise TarFormatError(0, "does not begin with a tar header: this is no tar file; check the URL")
    raise TarFormatError(offset, "has no valid header here (its checksum does not fit): it is damaged; write it again")


def _number(offset: int, text: bytes) -> int:
    digits = text[:11]
    if text[11] in b"\0 " and digits.isdigit():
        # The usual form, but for 8 and 9.
        try:
            return int(digits, 8)
        except ValueError:
            pass
    # GNU tar's binary form, for files of 8 GiB and more; 0xFF, a negative number, leads past any end.
    if text[0] & 0x80:
        return int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
    octal = _OCTAL.fullmatch(text)
    # Zeros before digits: 0 to some readers, the digits to others.
    if octal is None or (text[0] == 0 and text.strip(b"\0 ")):
        raise TarFormatError(offset, f"has a header whose size is {text!r}: it is damaged; write it again")
    return int(octal.group(1) or b"0", 8)


def _header_name(header: bytes) -> str:
    raw = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        raw = header[345:500].partition(b"\0")[0] + b"/" + raw
    return _text(raw)


def _text(raw: bytes) -> str:
    # A member that is no part of a sample may be named as it likes; others are refused by who groups them.
    return raw.decode("utf-8", "surrogateescape")


def _pax_records(offset: int, content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values: each record is 'LENGTH KEY=VALUE' and a line's end, LENGTH that of the whole."""
    at = 0
    while at < len(content) and content[at]:
        length, space, _ = content[at : at + 20].partition(b" ")
        end = at + int(length) if space and length.isdigit() else 0
        key, equals, value = content[at + len(length) + 1 : end - 1].partition(b"=")
        if not at < end <= len(content) or not equals or content[end - 1 : end] != b"\n":
            raise TarFormatError(offset, "has a damaged pax header; write it again")
        yield key, value
        at = end
