"""Read a WebDataset tar once, front to back: where each sample lies, its key, its labels, the tar's checksum. No torch.

An own parser of the 512-byte headers (ustar, pax, GNU long names), because a sample index needs offsets, because
`tarfile` reads 10 KB at a time, and because a damaged tar must be refused with the offset and what to do. Members
are grouped into samples by webdataset's rule: consecutive members whose paths agree up to the first dot of the file
name; names such as `__meta__` and names without a dot are no samples.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import xxhash

from vit_dist.core.errors import DataError
from vit_dist.data.index import IndexedSample, ShardIndex, build_index
from vit_dist.data.labels import LabelRule

IMAGE_EXTENSIONS = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm"]
)
BLOCK = 512
_MAX_HEADER_BYTES = 1 << 20
_MAX_LABEL_BYTES = 16 << 20
_ZERO = bytes(BLOCK)
# As webdataset splits path and extensions.
_SAMPLE_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META_NAME = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CHECKSUM_SPACES = 8 * 0x20


def _checksum_fits(header: bytes) -> bool:
    try:
        stored = int(header[148:156].partition(b"\0")[0], 8)
    except ValueError:
        return False
    # The low half of Adler-32 is 1 + the sum of the bytes modulo 65521: sum() in C, twenty times as fast.
    return ((zlib.adler32(header) & 0xFFFF) - sum(header[148:156]) + _CHECKSUM_SPACES - 1 - stored) % 65521 == 0


@dataclass(frozen=True)
class TarScan:
    """What a tar holds, from one pass over it.

    Attributes:
        index: its samples.
        num_bytes: size of the tar.
        checksum: XXH128 of its bytes.
        left_out: samples that could not be indexed, (key, offset, reason); empty unless they were allowed.
        ignored: members that are no part of a sample.
    """

    index: ShardIndex
    num_bytes: int
    checksum: str
    left_out: tuple[tuple[str, int, str], ...] = ()
    ignored: int = 0


@dataclass
class _Sample:
    key: str
    offset: int
    extensions: set[str] = field(default_factory=set)
    images: list[tuple[str, int, int]] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)


class TarScanner:
    """Takes a tar's bytes in order, in pieces of whole 512-byte blocks, and yields its index at the end.

    Args:
        where: the tar's name in errors.
        rule: where labels stand.
        size: bytes of the tar where known, so that a damaged size is noticed at once.
        leave_out: list samples without an image or a label instead of refusing the tar.
    """

    def __init__(self, where: str, rule: LabelRule | None = None, *, size: int | None = None, leave_out: bool = False):
        self.where, self.rule, self.size, self.leave_out = where, rule or LabelRule(), size, leave_out
        self._hash = xxhash.xxh3_128()
        self._position = 0
        self._next = 0  # offset of the next header
        self._ended = False
        self._wanted: Callable[[bytes], None] | None = None
        self._content = bytearray()
        self._content_left = 0
        self._first_header: int | None = None  # of a pax or GNU header that belongs to the next member
        self._long_name: str | None = None
        self._long_size: int | None = None
        self._sample: _Sample | None = None
        self._rows: list[IndexedSample] = []
        self._keys: set[str] = set()
        self._end = 0
        self._left_out: list[tuple[str, int, str]] = []
        self._ignored = 0

    def feed(self, chunk: memoryview) -> None:
        """The next bytes of the tar.

        Raises:
            DataError: not a tar, damaged, or a name that is not allowed.
        """
        self._hash.update(chunk)
        base, end = self._position, self._position + len(chunk)
        self._position = end
        # The content of a label may begin in one chunk and end in another.
        if self._wanted is not None:
            taken = min(self._content_left, len(chunk))
            self._content += chunk[:taken]
            self._content_left -= taken
            if self._content_left:
                return
            self._deliver()
        # From header to header: most bytes are images, which nobody here looks at.
        while self._next < end:
            at = self._next - base
            if self._ended:
                if bytes(chunk[at:]).strip(b"\0"):
                    self._fail(self._next, "has data after its end marker, as if tars were joined; pack them apart")
                self._next = end
                return
            header = bytes(chunk[at : at + BLOCK])
            if len(header) < BLOCK:
                if self._next == 0:
                    self._not_a_header(header)
                self._truncated()
            content = self._next + BLOCK
            self._header(header)
            if self._wanted is not None:
                begin = content - base
                piece = chunk[begin : begin + self._content_left]
                self._content_left -= len(piece)
                self._content = bytearray(piece)
                if self._content_left:
                    return
                self._deliver()

    def finish(self) -> TarScan:
        """The index of all that was fed.

        Raises:
            DataError: the tar is truncated or empty, or its last sample is incomplete.
        """
        if self._position == 0:
            raise DataError(f"{self.where}: the file is empty, not a tar; write it again or leave it out")
        if not self._ended:
            self._truncated()
        self._close_sample()
        return TarScan(
            index=build_index(self._rows, self._end),
            num_bytes=self._position,
            checksum=self._hash.hexdigest(),
            left_out=tuple(self._left_out),
            ignored=self._ignored,
        )

    def _fail(self, offset: int, problem: str) -> NoReturn:
        raise DataError(f"{self.where}: at byte {offset}: the tar {problem}")

    def _truncated(self) -> NoReturn:
        last = f"; its last complete sample is {self._rows[-1].key!r}" if self._rows else ""
        self._fail(
            self._position,
            f"ends in the middle: it is truncated, or was never closed{last}; copy or write it again",
        )

    def _deliver(self) -> None:
        take, self._wanted = self._wanted, None
        assert take is not None
        take(bytes(self._content))
        self._content = bytearray()

    def _header(self, header: bytes) -> None:
        offset = self._next
        if not _checksum_fits(header):
            # Tars end in blocks of zeros.
            if header == _ZERO:
                self._ended = True
                self._next = offset + BLOCK
                return
            self._not_a_header(header)
        kind = header[156:157]
        size = self._number(header[124:136])
        if kind == b"0" and self._first_header is None and self.size is not None and offset + BLOCK + size <= self.size:
            # Nearly every header: a plain file without extended headers.
            self._next = offset + BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
            self._member(self._name(header), offset, offset, size)
            return
        if kind in b"xgLK":
            if size > _MAX_HEADER_BYTES:
                self._fail(offset, f"has an extended header of {size} bytes; it is damaged; write it again")
            if self._first_header is None:
                self._first_header = offset
            self._skip(offset, size)
            self._want(size, {b"x": self._pax, b"L": self._gnu_name}.get(kind, _nothing))
            return
        name = self._long_name if self._long_name is not None else self._name(header)
        size = self._long_size if self._long_size is not None else size
        first = self._first_header if self._first_header is not None else offset
        self._long_name = self._long_size = self._first_header = None
        if kind == b"S":
            self._fail(offset, f"holds the sparse file {name!r}, which cannot be read in place; write it again")
        # `in` would hold of b"" too, which never comes: a header has 512 bytes.
        regular = kind in b"0\x007"
        self._skip(offset, size if regular else 0)
        if not regular or name.endswith("/"):
            self._ignored += kind != b"5" and not name.endswith("/")
            return
        self._member(name, first, offset, size)

    def _skip(self, offset: int, size: int) -> None:
        self._next = offset + BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
        if self.size is not None and offset + BLOCK + size > self.size:
            self._fail(
                offset,
                f"has a member of {size} bytes that would end after the end of the file ({self.size} bytes): it is "
                f"truncated or damaged; copy or write it again",
            )

    def _want(self, size: int, take: Callable[[bytes], None]) -> None:
        self._wanted, self._content_left = take, size

    def _not_a_header(self, header: bytes) -> NoReturn:
        for magic, name in _COMPRESSED.items():
            if self._next == 0 and header.startswith(magic):
                self._fail(
                    0, f"is compressed with {name}, so samples cannot be read in place; decompress it, then index it"
                )
        if self._next == 0:
            self._fail(0, "does not begin with a tar header: this is no tar file; check the URL")
        self._fail(self._next, "has no valid header here (its checksum does not fit): it is damaged; write it again")

    def _number(self, text: bytes) -> int:
        if text[11] in b"\0 " and text[:11].isdigit():
            try:
                return int(text[:11], 8)
            except ValueError:
                self._damaged_size(text)
        # GNU tar's binary form, for files of 8 GiB and more.
        if text[0] & 0x80:
            return int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
        try:
            return int(text.strip(b"\0 ") or b"0", 8)
        except ValueError:
            self._damaged_size(text)

    def _damaged_size(self, text: bytes) -> NoReturn:
        self._fail(self._next, f"has a header whose size is {text!r}: it is damaged; write it again")

    def _name(self, header: bytes) -> str:
        raw = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
            raw = header[345:500].partition(b"\0")[0] + b"/" + raw
        return self._text(raw)

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self._fail(
                self._next, f"has a member whose name is not UTF-8: {raw!r}; rename it, then write the tar again"
            )

    def _gnu_name(self, content: bytes) -> None:
        self._long_name = self._text(content.partition(b"\0")[0])

    def _pax(self, content: bytes) -> None:
        at = 0
        while at < len(content) and content[at]:
            length, space, _ = content[at : at + 20].partition(b" ")
            if not space or not length.isdigit() or not 0 < int(length) <= len(content) - at:
                self._fail(self._next, "has a damaged pax header; write it again")
            record = content[at + len(length) + 1 : at + int(length) - 1]
            key, _, value = record.partition(b"=")
            if key == b"path":
                self._long_name = self._text(value)
            elif key == b"size" and value.isdigit():
                self._long_size = int(value)
            elif key.startswith(b"GNU.sparse"):
                self._fail(self._next, "holds a sparse file, which cannot be read in place; write it again")
            at += int(length)

    def _member(self, name: str, first: int, offset: int, size: int) -> None:
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            self._fail(
                offset, f"holds the name {name!r}; absolute names and '..' are refused; write it with plain names"
            )
        match = _SAMPLE_NAME.match(name)
        if match is None or (name.startswith("__") and _META_NAME.match(name)):
            self._ignored += 1
            return
        key, extension = match.group(1), match.group(2).lower()
        sample = self._sample
        if sample is None or sample.key != key:
            self._close_sample()
            if key in self._keys:
                self._fail(
                    first,
                    f"holds the key {key!r} twice, apart from each other; the members of a sample must follow one "
                    f"another and keys be unique in a tar; sort it by name",
                )
            self._keys.add(key)
            sample = self._sample = _Sample(key, first)
        if extension in sample.extensions:
            self._fail(offset, f"holds {name!r} twice; keys must be unique in a tar")
        sample.extensions.add(extension)
        self._end = self._next
        if extension in IMAGE_EXTENSIONS and (not self.rule.image or extension == self.rule.image):
            sample.images.append((extension, offset + BLOCK, size))
        elif self.rule.wants(extension):
            if size > _MAX_LABEL_BYTES:
                self._fail(offset, f"holds labels of {size} bytes in {name!r}; that is no label")
            labels = sample.labels
            self._want(size, lambda content: labels.__setitem__(extension, content))

    def _close_sample(self) -> None:
        sample, self._sample = self._sample, None
        if sample is None:
            return
        try:
            if len(sample.images) != 1:
                members = ", ".join(sorted(sample.extensions))
                problem = "has no image" if not sample.images else "has several images; name one with --image"
                raise ValueError(f"{problem}: its members are {members}")
            labels, weights = self.rule.labels(sample.labels)
        except ValueError as error:
            reason = str(error)
            if not self.leave_out:
                raise DataError(
                    f"{self.where}: at byte {sample.offset}: sample {sample.key!r} {reason}; mend the tar, name the "
                    f"labels (--labels), or leave such samples out (--skip-bad)"
                ) from None
            self._left_out.append((sample.key, sample.offset, reason))
            return
        _, offset, size = sample.images[0]
        self._rows.append(IndexedSample(sample.key, sample.offset, offset, size, labels, weights))


def _nothing(content: bytes) -> None:
    """A header that says nothing about samples: a long link name, or defaults for all members."""
