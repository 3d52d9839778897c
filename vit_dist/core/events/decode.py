"""The bytes of an event file -> columns of numbers: records of one shape are read together, by arithmetic on arrays.

A writer says the same thing again and again: of its many records of one length, all bytes are equal but those of the
wall time, the step and the values. So one record of each shape is walked field by field, and says which bytes may
differ and what they mean; then all records whose other bytes are equal to it are decoded at once. The same trick checks
their checksums: a CRC is linear, so that of a record follows from the bytes in which it differs from the one that was
walked.

No protobuf library and no TensorFlow: a library makes an object of each record, and that is where the time of other
readers goes (`benchmarks/read_events.py` measures it).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from fnmatch import translate
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vit_dist.core.events.crc import crc32c, crc_far, mask_crc, masked_crc
from vit_dist.core.events.layout import Layout, column_at, number_at, read_layout, signed, varint
from vit_dist.core.events.shapes import Ints, Shape, ShapeGroup, Words, fixed_bits

Floats = NDArray[np.float64]

# A TFRecord frame: the payload's length (8 bytes), its CRC (4), the payload, its CRC (4).
_HEADER_BYTES = 12
_FRAME_BYTES = 16
# Longer records are walked one by one: texts and histograms, few and each of its own length.
_LONGEST_SHAPE = 1 << 14
# So few records of a length are not worth an array.
_FEW = 4
# Shapes of one length.
_MOST_SHAPES = 4096
# Of all shapes together.
_MOST_SHAPE_BYTES = 64 << 20
# So many shapes of a length may fit next to no other record of it, before all are walked: where each record is of a
# shape of its own, learning shapes costs more than it saves.
_MOST_SPARSE = 8
# What is kept of one file, so that a forged one fills no memory; TensorBoard itself takes no record of 2 GiB.
_LONGEST_RECORD = 64 << 20
_LONGEST_TEXT = 4 << 20
_MOST_TEXT = 64 << 20
_MOST_TAGS = 20_000
_MOST_VALUES = 10_000_000
_MOST_REMARKS = 5


class Part(NamedTuple):
    """Some values of a tag: number of the record in the file, step, value, wall time."""

    record: Ints
    steps: Ints
    values: Floats
    walls: Floats


@dataclass
class Decoder:
    """Takes the bytes of one event file in blocks and collects what they say.

    `wanted` says of a tag whether it is read. Afterwards: `parts` of numbers by tag, `texts` as (record, step, text),
    `purges` as (record, step), `started` (the wall time of the first record), `problem`, `damaged` records, `unread`
    tags with the dtype for which their values are left out.
    """

    wanted: Callable[[str], bool]
    parts: dict[str, list[Part]] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    purges: list[tuple[int, int]] = field(default_factory=list)
    started: float = float("inf")
    problem: str | None = None
    damaged: int = 0
    unread: dict[str, str] = field(default_factory=dict)
    size: int = 0
    _rest: bytes = b""
    _skip: int = 0
    _learnt: int = 0
    _left_out: list[str] = field(default_factory=list)
    _values: int = 0
    _text: int = 0
    _records: int = 0
    _groups: dict[int, list[ShapeGroup]] = field(default_factory=dict)
    _singles: dict[str, list[tuple[int, int, float, float]]] = field(default_factory=dict)

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        self.size += len(block)
        if self.problem is not None:
            return
        if self._skip:
            passed = min(self._skip, len(block))
            self._skip -= passed
            block = block[passed:]
        data = self._rest + block
        starts, lengths, position = self._walk(data)
        offset = self.size - len(data)
        # Lengths are checked before anything is decoded: a payload that is damaged costs its own record, a length that
        # is damaged makes garbage of all that follows.
        good = self._count_sound(data, starts, lengths)
        if good < len(starts):
            self.problem = f"damaged at byte {offset + int(starts[good]) - _HEADER_BYTES}"
            starts, lengths = starts[:good], lengths[:good]
        elif position + _HEADER_BYTES <= len(data) and not self._length_holds(data, position):
            # Not a record that is still to come: a length that points beyond the block because it is wrong.
            self.problem = f"damaged at byte {offset + position}"
        self._rest = data[position:]
        if self.problem is None:
            self._pass_over_giant()
        self._decode(data, starts, lengths)
        self._records += len(starts)

    def _pass_over_giant(self) -> None:
        """Do not wait for a record that is too long to be kept: its bytes are skipped as they come."""
        if len(self._rest) < _HEADER_BYTES:
            return
        (length,) = struct.unpack_from("<Q", self._rest)
        if length > _LONGEST_RECORD:
            self._leave_out(f"a record of {length:,} bytes")
            self._skip = length + _FRAME_BYTES - len(self._rest)
            self._rest = b""

    def _leave_out(self, what: str) -> None:
        # A forged file may bring any number of reasons.
        if what not in self._left_out and len(self._left_out) < _MOST_REMARKS:
            self._left_out.append(what)

    def finish(self) -> None:
        """The file has ended: say what was wrong with it."""
        if self.problem is not None:
            self.problem += f" of {self.size}; the rest was left out"
        elif self.size == 0:
            self.problem = "is empty"
        elif self._rest or self._skip:
            cut = self.size - len(self._rest)
            self.problem = f"the last record is cut short at byte {cut} of {self.size}"
        if self.damaged:
            left_out = f"{self.damaged} damaged record{'s' if self.damaged > 1 else ''} left out"
            self.problem = "; ".join(filter(None, [self.problem, left_out]))
        for what in self._left_out:
            self.problem = "; ".join(filter(None, [self.problem, f"left out: {what}"]))
        for tag, dtype in sorted(self.unread.items())[:_MOST_REMARKS]:
            self.problem = "; ".join(filter(None, [self.problem, f"values of {tag} are {dtype} and were left out"]))
        for tag, rows in self._singles.items():
            record, steps, values, walls = zip(*rows, strict=True)
            part = Part(np.array(record, np.int64), np.array(steps, np.int64), np.array(values), np.array(walls))
            self.parts.setdefault(tag, []).append(part)
        self._singles, self._rest = {}, b""

    def _walk(self, data: bytes) -> tuple[Ints, Ints, int]:
        """Where the payloads of complete records begin, how long they are, where the first incomplete one is."""
        unpack, last, position = struct.Struct("<Q").unpack_from, len(data) - _FRAME_BYTES, 0
        begins: list[int] = []
        add = begins.append
        # The one loop over all records, so there is next to nothing in it.
        while position <= last:
            after = position + unpack(data, position)[0] + _FRAME_BYTES
            if after > len(data):
                break
            add(position)
            position = after
        frames = np.array(begins, np.int64)
        lengths = np.append(frames[1:], position)[: len(frames)] - frames - _FRAME_BYTES
        return frames + _HEADER_BYTES, lengths, position

    def _count_sound(self, data: bytes, starts: Ints, lengths: Ints) -> int:
        """How many records have a length whose checksum holds, up to the first that misleads the walk."""
        if not len(starts):
            return 0
        # A log has few different lengths: their checksums are computed once each and compared with all records.
        values, inverse = np.unique(lengths, return_inverse=True)
        expected = np.array([masked_crc(struct.pack("<Q", int(v))) for v in values], np.uint32)[inverse]
        stored = sliding_window_view(np.frombuffer(data, np.uint8), 4)[starts - 4].view("<u4")[:, 0]
        bad = np.flatnonzero(stored != expected)
        return int(bad[0]) if len(bad) else len(starts)

    def _length_holds(self, data: bytes, position: int) -> bool:
        return bool(struct.unpack_from("<I", data, position + 8)[0] == masked_crc(data[position : position + 8]))

    def _decode(self, data: bytes, starts: Ints, lengths: Ints) -> None:
        if not len(starts):
            return
        # Rows are cut in whole 64-bit words, the last one's reach past its end.
        padded = data + bytes(8)
        if not self._records:
            # Its wall time says when the file was begun, which orders the files of a run.
            self._single(padded, int(starts[0]), int(lengths[0]), 0)
        first = 0 if self._records else 1
        order = first + np.argsort(lengths[first:], kind="stable")
        values, begins = np.unique(lengths[order], return_index=True)
        for i, length in enumerate(values.tolist()):
            rows = order[begins[i] : begins[i + 1] if i + 1 < len(begins) else None]
            if length > _LONGEST_SHAPE or (len(rows) < _FEW and length not in self._groups):
                for row in rows.tolist():
                    self._single(padded, int(starts[row]), length, self._records + row)
            else:
                self._many(padded, starts[rows], length, self._records + rows)

    def _many(self, data: bytes, starts: Ints, length: int, records: Ints) -> None:
        """Records of one length: those of known shapes at once, then new shapes until none is left."""
        num_words = (length + 7) // 8
        raw = np.frombuffer(data, np.uint8)
        words = sliding_window_view(raw, num_words * 8)[starts].view(np.uint64)
        stored = sliding_window_view(raw, 4)[starts + length].view("<u4")[:, 0]
        groups = self._groups.setdefault(length, [])
        pending = np.arange(len(starts))
        for group in groups:
            pending = self._take(group, words, stored, records, pending, length)
        sparse = 0
        while len(pending):
            too_many = sum(len(group.shapes) for group in groups) > _MOST_SHAPES or self._learnt > _MOST_SHAPE_BYTES
            if len(pending) < _FEW or sparse > _MOST_SPARSE or too_many:
                for row in pending.tolist():
                    self._single(data, int(starts[row]), length, int(records[row]))
                return
            learnt = self._learn(groups, data, starts, words, pending, length)
            if learnt is None:
                first, pending = int(pending[0]), pending[1:]
                self._single(data, int(starts[first]), length, int(records[first]))
            else:
                before = len(pending)
                pending = self._take(learnt, words, stored, records, pending, length)
                sparse += before - len(pending) < max(_FEW, before // 32)

    def _learn(
        self, groups: list[ShapeGroup], data: bytes, starts: Ints, words: Words, pending: Ints, length: int
    ) -> ShapeGroup | None:
        """Learn the shape of the first pending record, and all others with numbers at the same places."""
        learnt: ShapeGroup | None = None
        rows = pending[:1]
        while True:
            for row in rows.tolist():
                shape = self._shape(data, int(starts[row]), length, words[row])
                if shape is None:
                    continue
                self._learnt += length
                mask, moving = fixed_bits(shape.layout, length, words.shape[1])
                if learnt is None:
                    learnt = next((group for group in groups if np.array_equal(group.mask, mask)), None)
                    if learnt is None:
                        learnt = ShapeGroup(mask, moving)
                        groups.append(learnt)
                    learnt.add(shape)
                elif np.array_equal(learnt.mask, mask):
                    learnt.add(shape)
            if learnt is None or len(rows) > 1 or len(pending) == 1:
                return learnt
            # Once the places of the numbers are known, equal hashes of all else show every shape that is repeated
            # (tags of one length, say): these are learnt in one go instead of one a round.
            hashes, index, counts = np.unique(learnt.hash_fixed(words[pending]), return_index=True, return_counts=True)
            repeated = index[(counts > 1) & ~np.isin(hashes, learnt.hashes)]
            if not len(repeated):
                return learnt
            rows = np.append(pending[repeated[:_MOST_SHAPES]], pending[0])

    def _shape(self, data: bytes, begin: int, length: int, words: Words) -> Shape | None:
        """The shape of one record; None for a damaged one, for texts and for marks of a restart."""
        payload = data[begin : begin + length]
        crc = crc32c(payload)
        try:
            layout = self._layout(payload)
        except ValueError:
            return None
        # All records of a shape are held to the checksum of this one, so it has to be sound itself.
        sound = struct.unpack_from("<I", data, begin + length)[0] == mask_crc(np.array([crc], np.uint32))[0]
        if layout.start or layout.texts or layout.unread or not sound or layout.wall is None:
            return None
        return Shape(layout, words, crc)

    def _take(
        self, group: ShapeGroup, words: Words, stored: NDArray[np.uint32], records: Ints, pending: Ints, length: int
    ) -> Ints:
        """Decode the pending rows of a group's shapes; returns the rows of none."""
        if not len(pending):
            return pending
        candidates = words if len(pending) == len(words) else words[pending]
        shape_of = group.match(candidates)
        rows = pending[shape_of >= 0]
        all_match = len(rows) == len(pending)
        if not all_match:
            candidates, shape_of = candidates[shape_of >= 0], shape_of[shape_of >= 0]
        if len(group.shapes) == 1:
            self._numbers(group, group.shapes[0], candidates, stored[rows], records[rows], length)
        elif len(rows):
            order = np.argsort(shape_of, kind="stable")
            values, begins = np.unique(shape_of[order], return_index=True)
            for i, shape in enumerate(values.tolist()):
                part = order[begins[i] : begins[i + 1] if i + 1 < len(begins) else None]
                chosen = rows[part]
                self._numbers(group, group.shapes[shape], candidates[part], stored[chosen], records[chosen], length)
        return pending[:0] if all_match else np.setdiff1d(pending, rows, assume_unique=True)

    def _numbers(
        self, group: ShapeGroup, shape: Shape, words: Words, stored: NDArray[np.uint32], records: Ints, length: int
    ) -> None:
        """Add the values of all records of one shape, [n, w]."""
        layout = shape.layout
        slots = [slot for slot in layout.slots if slot.tag is not None]
        # Records of which nothing is wanted are not even checked: a report reads a few tags of large logs.
        if not slots or not len(words):
            return
        # crc(a) ^ crc(b) depends on a ^ b alone, so a record's CRC is the shape's and what each byte that differs adds,
        # looked up by its distance from the end. For n records of m such bytes that is m look-ups of n at a time,
        # where a CRC byte by byte would be a Python loop over the file.
        differ = np.ascontiguousarray((words ^ shape.words).view(np.uint8)[:, group.moving].T)
        crc = np.full(len(words), shape.crc, np.uint32)
        for place, column in zip(group.moving.tolist(), differ, strict=True):
            crc ^= crc_far(length - 1 - place)[column]
        sound = mask_crc(crc) == stored
        if not sound.all():
            self.damaged += int(np.count_nonzero(~sound))
            words, records = words[sound], records[sound]
        rows = words.view(np.uint8)
        assert layout.wall is not None
        walls = column_at(rows, "f8", layout.wall, layout.wall + 8).astype(np.float64)
        # proto3 does not write a field that is zero: no step is step 0.
        steps = np.zeros(len(rows), np.int64)
        if layout.step is not None:
            steps = column_at(rows, "varint", *layout.step).astype(np.int64)
        for slot in slots:
            if not self._has_room(str(slot.tag), len(rows)):
                continue
            values = column_at(rows, slot.kind, slot.begin, slot.end).astype(np.float64)
            self.parts.setdefault(str(slot.tag), []).append(Part(records, steps, values, walls))

    def _has_room(self, tag: str, count: int) -> bool:
        """Whether more numbers of a tag are kept."""
        if self._values + count > _MOST_VALUES:
            self._leave_out(f"what comes after {_MOST_VALUES:,} values")
            return False
        known = tag in self.parts or tag in self._singles
        if not known and len(self.parts) + len(self._singles) >= _MOST_TAGS:
            self._leave_out(f"what is not of the first {_MOST_TAGS:,} tags")
            return False
        self._values += count
        return True

    def _layout(self, payload: bytes) -> Layout:
        """The layout of a record; what is not wanted keeps its place and loses its tag."""
        layout = read_layout(payload)
        slots = tuple(
            slot if slot.tag is not None and self.wanted(slot.tag) else slot._replace(tag=None) for slot in layout.slots
        )
        texts = tuple(text for text in layout.texts if self.wanted(text[0]))
        unread = tuple(one for one in layout.unread if self.wanted(one[0]))
        return replace(layout, slots=slots, texts=texts, unread=unread)

    def _single(self, data: bytes, begin: int, length: int, record: int) -> None:
        """One record, field by field."""
        payload = data[begin : begin + length]
        try:
            layout = self._layout(payload)
        except ValueError:
            self.damaged += 1
            return
        slots = [slot for slot in layout.slots if slot.tag is not None]
        if struct.unpack_from("<I", data, begin + length)[0] != masked_crc(payload):
            self.damaged += 1
            return
        wall = 0.0 if layout.wall is None else number_at(payload, "f8", layout.wall, layout.wall + 8)
        step = 0 if layout.step is None else signed(varint(payload, *layout.step)[0])
        if record == 0 and math.isfinite(wall):
            self.started = wall
        if layout.start:
            self.purges.append((record, step))
        if len(self.unread) < _MOST_TAGS:
            self.unread.update(layout.unread)
        for tag, low, high in layout.texts:
            if self._keeps_text(tag, high - low):
                self.texts.setdefault(tag, []).append((record, step, str(payload[low:high], "utf-8", "replace")))
        for slot in slots:
            if not self._has_room(str(slot.tag), 1):
                continue
            number = number_at(payload, slot.kind, slot.begin, slot.end)
            self._singles.setdefault(str(slot.tag), []).append((record, step, number, wall))

    def _keeps_text(self, tag: str, length: int) -> bool:
        if length > _LONGEST_TEXT:
            self._leave_out(f"a text of {length:,} bytes of {tag}")
            return False
        if self._text + length > _MOST_TEXT or (tag not in self.texts and len(self.texts) >= _MOST_TAGS):
            self._leave_out(f"texts after {_MOST_TEXT:,} bytes or {_MOST_TAGS:,} tags of them")
            return False
        # Each costs some memory of its own, also where it is empty.
        self._text += length + 100
        return True


def tag_filter(tags: Collection[str] | None) -> Callable[[str], bool]:
    """Whether a tag is one of `tags`, which may hold * and ?; None takes every tag."""
    if tags is None:
        return lambda _: True
    exact = frozenset(tag for tag in tags if not re.search(r"[*?]", tag))
    patterns = [re.compile(translate(tag)) for tag in sorted(set(tags) - exact)]
    seen: dict[str, bool] = {}

    def wanted(tag: str) -> bool:
        known = seen.get(tag)
        if known is None:
            if len(seen) >= _MOST_TAGS:
                seen.clear()
            known = seen[tag] = tag in exact or any(pattern.match(tag) for pattern in patterns)
        return known

    return wanted
