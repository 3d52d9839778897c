"""Read a WebDataset tar once, front to back: where each sample lies, its key, its labels, the tar's checksum. No torch.

A damaged tar is refused with the offset and what to do. What a header says is `tarheader`'s affair, what makes up a
sample that of `members`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import xxhash

from vit_dist.core.errors import DataError
from vit_dist.data.index import MOST_SAMPLE_BYTES, IndexedSample, ShardIndex, build_index
from vit_dist.data.labels import LabelRule
from vit_dist.data.members import image_of, part_of_sample, split_name
from vit_dist.data.tarheader import BLOCK, HeaderParser, Member, TarFormatError

_MAX_LABEL_BYTES = 16 << 20
# webdataset keeps these beside the members of a sample.
_RESERVED = frozenset(["__key__", "__url__", "__local_path__"])


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
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


Places = dict[str, tuple[int, frozenset[tuple[int, int]]]]
"""Of each key, the offset of its sample, and the offset and size of the bytes of each of its members."""


class TarScanner:
    """Takes a tar's bytes in order, in pieces of whole 512-byte blocks, and yields its index at the end.

    Args:
        where: the tar's name in errors.
        rule: where labels stand.
        size: bytes of the tar where known, so that a damaged size is noticed at once.
        leave_out: list samples without an image or a label instead of refusing the tar.
        places: filled with those of all samples, also of the ones left out; None: not wanted.
    """

    def __init__(
        self,
        where: str,
        rule: LabelRule | None = None,
        *,
        size: int | None = None,
        leave_out: bool = False,
        places: Places | None = None,
    ):
        self.where, self.rule, self.leave_out = where, rule or LabelRule(), leave_out
        self._hash = xxhash.xxh3_128()
        self._position = 0
        self._headers = HeaderParser(size)
        self._wanted: Callable[[bytes], None] | None = None
        self._content = bytearray()
        self._content_left = 0
        self._sample: _Sample | None = None
        self._link = ("", "")  # key and name of the last link
        self._rows: list[IndexedSample] = []
        self._keys: set[str] = set()
        self._places = places
        self._end = 0
        self._left_out: list[tuple[str, int, str]] = []
        self._ignored = 0

    def feed(self, chunk: memoryview) -> None:
        """The next bytes of the tar.

        Raises:
            DataError: not a tar, damaged, or a name that is not allowed.
        """
        try:
            self._feed(chunk)
        except TarFormatError as error:
            self._fail(error.offset, error.problem)

    def _feed(self, chunk: memoryview) -> None:
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
        headers = self._headers
        # From header to header: most bytes are images, which nobody here looks at.
        while (offset := headers.next) < end:
            at = offset - base
            if headers.ended:
                if bytes(chunk[at:]).strip(b"\0"):
                    self._fail(offset, "has data after its end marker, as if tars were joined; pack them apart")
                headers.next = end
                return
            block = bytes(chunk[at : at + BLOCK])
            if len(block) < BLOCK:
                if offset == 0:
                    headers.header(0, block)
                self._truncated()
            member = headers.header(offset, block)
            if member is not None:
                self._member(member)
            elif headers.wanted:
                self._want(headers.wanted, headers.extended)
            if self._wanted is not None:
                begin = at + BLOCK
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
        if not self._headers.ended:
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
        raise DataError(f"{self.where}: at byte {offset}: the tar {problem}") from None

    def _truncated(self) -> NoReturn:
        last = f"; its last complete sample is {self._rows[-1].key!r}" if self._rows else ""
        self._fail(
            self._position,
            f"ends in the middle: it is truncated, or was never closed{last}; copy or write it again",
        )

    def _want(self, size: int, take: Callable[[bytes], None]) -> None:
        self._wanted, self._content_left = take, size

    def _deliver(self) -> None:
        take, self._wanted = self._wanted, None
        assert take is not None
        take(bytes(self._content))
        self._content = bytearray()

    def _member(self, member: Member) -> None:
        name = member.name
        split = part_of_sample(member)
        if split is None:
            self._ignored += member.kind not in (b"5", b"D") and not name.endswith("/")
            if member.is_link:
                self._link = ((split_name(name) or ("", ""))[0], name)
            return
        key, extension = split
        header = member.content - BLOCK
        # Nearly every name is plain.
        if ".." in name or name[0] == "/" or extension[:2] == "__" or not name.isascii():
            self._refuse_name(header, name, extension)
        sample = self._sample
        if sample is None or sample.key != key:
            self._close_sample()
            if key in self._keys:
                self._fail(
                    member.first,
                    f"holds the key {key!r} twice, apart from each other; the members of a sample must follow one "
                    f"another and keys be unique in a tar; sort it by name",
                )
            self._keys.add(key)
            sample = self._sample = _Sample(key, member.first)
        if extension in sample.members:
            self._fail(header, f"holds {name!r} twice; keys must be unique in a tar")
        sample.members[extension] = member.content, member.size
        self._end = self._headers.next
        if self.rule.wants(extension):
            if member.size > _MAX_LABEL_BYTES:
                self._fail(header, f"holds labels of {member.size} bytes in {name!r}; that is no label")
            labels = sample.labels
            self._want(member.size, lambda content: labels.__setitem__(extension, content))

    def _refuse_name(self, header: int, name: str, extension: str) -> None:
        if name.startswith("/") or ".." in name.split("/"):
            self._fail(
                header, f"holds the name {name!r}; absolute names and '..' are refused; write it with plain names"
            )
        if extension in _RESERVED:
            self._fail(header, f"holds {name!r}, an extension that webdataset keeps for itself; rename it")
        try:
            name.encode()
        except UnicodeEncodeError:
            raw = name.encode("utf-8", "surrogateescape")
            self._fail(header, f"has a member whose name is not UTF-8: {raw!r}; rename it, then write the tar again")

    def _close_sample(self) -> None:
        sample, self._sample = self._sample, None
        if sample is None:
            return
        if self._places is not None:
            self._places[sample.key] = sample.offset, frozenset(sample.members.values())
        try:
            image = image_of(sample.members, self.rule.image)
            _check_size(sample, image)
            labels, weights = self.rule.labels(sample.labels)
        except ValueError as error:
            reason = self._reason(sample, error)
            if not self.leave_out:
                raise DataError(
                    f"{self.where}: at byte {sample.offset}: sample {sample.key!r} {reason}; mend the tar, name the "
                    f"labels (--labels), or leave such samples out (--skip-bad)"
                ) from None
            self._left_out.append((sample.key, sample.offset, reason))
            return
        offset, size = sample.members[image]
        self._rows.append(IndexedSample(sample.key, sample.offset, offset, size, labels, weights))

    def _reason(self, sample: _Sample, error: ValueError) -> str:
        reason = str(error)
        if not sample.labels and "its members are" not in reason:
            reason += f"; its members are {', '.join(sorted(sample.members))}"
        if self._link[0] == sample.key:
            reason += f" ({self._link[1]!r} is a link; write the tar with --dereference and --hard-dereference)"
        return reason


def _check_size(sample: _Sample, image: str) -> None:
    """Refuse a sample of which too much would have to be read.

    Raises:
        ValueError: the image is too large, or lies behind what is.
    """
    offset, size = sample.members[image]
    if size > MOST_SAMPLE_BYTES:
        raise ValueError(
            f"has an image of {size:,} bytes, in {image!r}; {MOST_SAMPLE_BYTES:,} are the most that is read"
        )
    if offset + size - sample.offset > MOST_SAMPLE_BYTES:
        raise ValueError(
            f"has its image, {image!r}, {offset - sample.offset:,} bytes behind its begin, and {MOST_SAMPLE_BYTES:,} "
            f"are the most that is read; put the image before its other members"
        )
