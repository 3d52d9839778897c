"""The bytes of an event file -> columns of numbers: records of one shape are read together, by arithmetic on arrays.

A writer says the same thing again and again: of its many records of one length, all bytes are equal but those of the
wall time, the step and the values. So one record of each shape is walked field by field, and says which bytes may
differ and what they mean; then all records whose other bytes are equal to it are decoded at once. The same trick checks
their checksums: a CRC is linear, so that of a record follows from the bytes in which it differs from the one that was
walked. No protobuf library, no TensorFlow.
"""

from __future__ import annotations

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

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LONGEST_SHAPE = 1 << 14  # longer records are walked one by one
_FEW = 4  # so few records of a length are not worth an array
_MOST_SHAPES = 4096  # of one length
_MOST_POOR = 8  # so many shapes of a length may fit next to no other record of it, before all are walked


# Shapes: records of one length that differ in their numbers only


@dataclass
class _Shape:
    """A record that was walked: its bytes, its checksum, what its bytes mean."""

    layout: Layout
    words: Words
    crc: int


@dataclass
class _Family:
    """The shapes of one length with numbers at the same places. `mask` has a one for each bit that must be equal."""

    mask: Words
    moving: Ints
    shapes: list[_Shape] = field(default_factory=list)
    hashes: Words = field(default_factory=lambda: np.empty(0, np.uint64))
    places: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    known: set[int] = field(default_factory=set)

    def hash(self, words: Words) -> Words:
        """[n, w] -> [n]: a number that is equal for equal fixed parts."""
        odd = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
        mixed: Words = ((words & self.mask) * odd).sum(axis=1, dtype=np.uint64)
        return mixed ^ (mixed >> np.uint64(29))

    def add(self, shape: _Shape) -> None:
        """One shape more, unless one of its hash is there."""
        (mixed,) = self.hash(shape.words[None])
        if int(mixed) in self.known:
            return
        self.known.add(int(mixed))
        self.shapes.append(shape)
        self.hashes = np.append(self.hashes, mixed)
        self.places = np.append(self.places, len(self.shapes) - 1)
        order = np.argsort(self.hashes, kind="stable")
        self.hashes, self.places = self.hashes[order], self.places[order]

    def match(self, words: Words) -> Ints:
        """[n, w] -> [n]: which shape each row has; -1 for none of these."""
        if len(self.shapes) == 1:
            place = np.zeros(len(words), np.int64)
            there = self.shapes[0].words[None]
        else:
            mixed = self.hash(words)
            place = self.places[np.minimum(np.searchsorted(self.hashes, mixed), len(self.hashes) - 1)]
            there = np.stack([shape.words for shape in self.shapes])[place]
        return np.where((((words ^ there) & self.mask) == 0).all(axis=1), place, -1)


def _mask(layout: Layout, length: int, num_words: int) -> tuple[Words, Ints]:
    """Which bits of a record must equal those of its shape, and which bytes may differ."""
    mask = np.zeros(num_words * 8, np.uint8)
    mask[:length] = 0xFF
    if layout.wall is not None:
        mask[layout.wall : layout.wall + 8] = 0
    if layout.step is not None:
        mask[slice(*layout.step)] = 0x80  # how long the number is, is part of the shape
    for slot in layout.slots:
        mask[slot.begin : slot.end] = 0x80 if slot.kind == "varint" else 0
    return mask.view(np.uint64), np.flatnonzero(mask[:length] != 0xFF)


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
    `purges` as (record, step), `started` (the wall time of the first record), `problem`, `damaged` records.
    """

    wanted: Callable[[str], bool]
    parts: dict[str, list[Part]] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    purges: list[tuple[int, int]] = field(default_factory=list)
    started: float = float("inf")
    problem: str | None = None
    damaged: int = 0
    size: int = 0
    _rest: bytes = b""
    _records: int = 0
    _families: dict[int, list[_Family]] = field(default_factory=dict)
    _few: dict[str, list[tuple[int, int, float, float]]] = field(default_factory=dict)

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        self.size += len(block)
        if self.problem is not None:
            return
        data = self._rest + block
        starts, lengths, position = self._walk(data)
        offset = self.size - len(data)
        good = self._whole_lengths(data, starts, lengths)
        if good < len(starts):
            self.problem = f"damaged at byte {offset + int(starts[good]) - 12}"
            starts, lengths = starts[:good], lengths[:good]
        elif position + 12 <= len(data) and not self._length_holds(data, position):
            self.problem = f"damaged at byte {offset + position}"
        self._rest = data[position:]
        self._decode(data, starts, lengths)
        self._records += len(starts)

    def finish(self) -> None:
        """The file has ended: say what was wrong with it."""
        if self.problem is not None:
            self.problem += f" of {self.size}; the rest was left out"
        elif self.size == 0:
            self.problem = "is empty"
        elif self._rest:
            self.problem = f"the last record is cut short at byte {self.size - len(self._rest)} of {self.size}"
        if self.damaged:
            said = f"{self.damaged} damaged record{'s' if self.damaged > 1 else ''} left out"
            self.problem = "; ".join(filter(None, [self.problem, said]))
        for tag, rows in self._few.items():
            record, steps, values, walls = zip(*rows, strict=True)
            part = Part(np.array(record, np.int64), np.array(steps, np.int64), np.array(values), np.array(walls))
            self.parts.setdefault(tag, []).append(part)
        self._few, self._rest = {}, b""

    def _walk(self, data: bytes) -> tuple[Ints, Ints, int]:
        """Where the payloads of whole records begin, how long they are, where the first record that is not whole is."""
        unpack, size, position = struct.Struct("<Q").unpack_from, len(data) - 16, 0
        starts: list[int] = []
        add = starts.append
        while position <= size:
            after = position + unpack(data, position)[0] + 16
            if after > size + 16:
                break
            add(position)
            position = after
        at = np.array(starts, np.int64)
        return at + 12, np.append(at[1:], position)[: len(at)] - at - 16, position

    def _whole_lengths(self, data: bytes, starts: Ints, lengths: Ints) -> int:
        """How many records have a length whose checksum holds, up to the first that misleads the walk."""
        if not len(starts):
            return 0
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
        padded = data + bytes(8)  # rows are cut in whole words
        if not self._records:
            self._single(padded, int(starts[0]), int(lengths[0]), 0)  # it tells when the file was begun
        first = 0 if self._records else 1
        order = first + np.argsort(lengths[first:], kind="stable")
        values, begins = np.unique(lengths[order], return_index=True)
        for i, length in enumerate(values.tolist()):
            rows = order[begins[i] : begins[i + 1] if i + 1 < len(begins) else None]
            if length > _LONGEST_SHAPE or (len(rows) < _FEW and length not in self._families):
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
        families = self._families.setdefault(length, [])
        left = np.arange(len(starts))
        for family in families:
            left = self._take(family, words, stored, records, left, length)
        poor = 0
        while len(left):
            if len(left) < _FEW or poor > _MOST_POOR or sum(len(one.shapes) for one in families) > _MOST_SHAPES:
                for row in left.tolist():
                    self._single(data, int(starts[row]), length, int(records[row]))
                return
            found = self._learn(families, data, starts, words, left, length)
            if found is None:
                first, left = int(left[0]), left[1:]
                self._single(data, int(starts[first]), length, int(records[first]))
            else:
                before = len(left)
                left = self._take(found, words, stored, records, left, length)
                poor += before - len(left) < max(_FEW, before // 32)

    def _learn(
        self, families: list[_Family], data: bytes, starts: Ints, words: Words, left: Ints, length: int
    ) -> _Family | None:
        """Learn the shape of the first record left, and all others with numbers at the same places."""
        found: _Family | None = None
        rows = left[:1]
        while True:
            for row in rows.tolist():
                begin = int(starts[row])
                payload = data[begin : begin + length]
                crc = crc32c(payload)
                try:
                    layout = self._layout(payload)
                except ValueError:
                    continue
                whole = struct.unpack_from("<I", data, begin + length)[0] == mask_crc(np.array([crc], np.uint32))[0]
                if layout.start or layout.texts or not whole or layout.wall is None:
                    continue
                mask, moving = _mask(layout, length, words.shape[1])
                if found is None:
                    same = [family for family in families if np.array_equal(family.mask, mask)]
                    found = same[0] if same else _Family(mask, moving)
                    if not same:
                        families.append(found)
                    found.add(_Shape(layout, words[row], crc))
                elif np.array_equal(found.mask, mask):
                    found.add(_Shape(layout, words[row], crc))
            if found is None or len(rows) > 1 or len(left) == 1:
                return found
            mixed, index, counts = np.unique(found.hash(words[left]), return_index=True, return_counts=True)
            often = index[(counts > 1) & ~np.isin(mixed, found.hashes)]
            if not len(often):
                return found
            rows = np.append(left[often[:_MOST_SHAPES]], left[0])

    def _take(
        self, family: _Family, words: Words, stored: NDArray[np.uint32], records: Ints, left: Ints, length: int
    ) -> Ints:
        """Decode the rows of the known shapes of a family; returns the rows of none."""
        if not len(left):
            return left
        mine = words if len(left) == len(words) else words[left]
        place = family.match(mine)
        rows = left[place >= 0]
        whole = len(rows) == len(left)
        mine, place = (mine, place) if whole else (mine[place >= 0], place[place >= 0])
        if len(family.shapes) == 1:
            self._numbers(family, family.shapes[0], mine, stored[rows], records[rows], length)
        elif len(rows):
            order = np.argsort(place, kind="stable")
            values, begins = np.unique(place[order], return_index=True)
            for i, shape in enumerate(values.tolist()):
                part = order[begins[i] : begins[i + 1] if i + 1 < len(begins) else None]
                chosen = rows[part]
                self._numbers(family, family.shapes[shape], mine[part], stored[chosen], records[chosen], length)
        return left[:0] if whole else np.setdiff1d(left, rows, assume_unique=True)

    def _numbers(
        self, family: _Family, shape: _Shape, words: Words, stored: NDArray[np.uint32], records: Ints, length: int
    ) -> None:
        """Add the values of all records of one shape, [n, w]."""
        layout = shape.layout
        slots = [slot for slot in layout.slots if slot.tag is not None]
        if not slots or not len(words):
            return
        differ = np.ascontiguousarray((words ^ shape.words).view(np.uint8)[:, family.moving].T)
        crc = np.full(len(words), shape.crc, np.uint32)
        for place, column in zip(family.moving.tolist(), differ, strict=True):
            crc ^= crc_far(length - 1 - place)[column]
        holds = mask_crc(crc) == stored
        if not holds.all():
            self.damaged += int(np.count_nonzero(~holds))
            words, records = words[holds], records[holds]
        rows = words.view(np.uint8)
        assert layout.wall is not None
        walls = column_at(rows, "f8", layout.wall, layout.wall + 8).astype(np.float64)
        steps = np.zeros(len(rows), np.int64)
        if layout.step is not None:
            steps = column_at(rows, "varint", *layout.step).astype(np.int64)
        for slot in slots:
            values = column_at(rows, slot.kind, slot.begin, slot.end).astype(np.float64)
            self.parts.setdefault(str(slot.tag), []).append(Part(records, steps, values, walls))

    def _layout(self, payload: bytes) -> Layout:
        """The layout of a record; what is not wanted keeps its place and loses its tag."""
        layout = read_layout(payload)
        slots = tuple(
            slot if slot.tag is not None and self.wanted(slot.tag) else slot._replace(tag=None) for slot in layout.slots
        )
        return replace(layout, slots=slots, texts=tuple(text for text in layout.texts if self.wanted(text[0])))

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
        self.started = min(self.started, wall) if record == 0 else self.started
        if layout.start:
            self.purges.append((record, step))
        for tag, low, high in layout.texts:
            self.texts.setdefault(tag, []).append((record, step, str(payload[low:high], "utf-8", "replace")))
        for slot in slots:
            number = number_at(payload, slot.kind, slot.begin, slot.end)
            self._few.setdefault(str(slot.tag), []).append((record, step, number, wall))


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
            known = seen[tag] = tag in exact or any(pattern.match(tag) for pattern in patterns)
        return known

    return wanted
