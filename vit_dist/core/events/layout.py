"""One record of an event file: which bytes mean what. Walks the fields of its protobuf message by hand.

Field numbers are those of TensorBoard's event.proto, summary.proto and tensor.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_HIDDEN_PLUGINS = frozenset({b"hparams", b"custom_scalars"})


class Slot(NamedTuple):
    """Where one number of a record stands. `kind` is f4, f8, i4, i8 or varint; the tag of one not wanted is None."""

    tag: str | None
    kind: str
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """What the bytes of one record mean. `start` is true for the mark of a restart (SessionLog START)."""

    wall: int | None
    step: tuple[int, int] | None
    slots: tuple[Slot, ...]
    texts: tuple[tuple[str, int, int], ...]
    start: bool


def read_layout(payload: bytes) -> Layout:
    """Walk one `Event`.

    Raises:
        ValueError: the bytes are no event.
    """
    wall, step, start = None, None, False
    slots: list[Slot] = []
    texts: list[tuple[str, int, int]] = []
    for number, wire, begin, end in _fields(payload, 0, len(payload)):
        if number == 1 and wire == 1:
            wall = begin
        elif number == 2 and wire == 0:
            step = (begin, end)
        elif number == 5 and wire == 2:
            for inner, kind, low, high in _fields(payload, begin, end):
                if inner == 1 and kind == 2:
                    _value(payload, low, high, slots, texts)
        elif number == 7 and wire == 2:
            said = [payload[low] for inner, _, low, _ in _fields(payload, begin, end) if inner == 1]
            start = said[-1:] == [1]
    return Layout(wall, step, tuple(slots), tuple(texts), start)


def _value(
    payload: bytes,
    begin: int,
    end: int,
    slots: list[Slot],
    texts: list[tuple[str, int, int]],
) -> None:
    """One `Summary.Value`: adds its number or its text, if it is one of either."""
    tag, simple, tensor, plugin = "", None, None, b""
    for number, wire, low, high in _fields(payload, begin, end):
        if number == 1 and wire == 2:
            tag = str(payload[low:high], "utf-8", "replace")
        elif number == 2 and wire == 5:
            simple = (low, high)
        elif number == 8 and wire == 2:
            tensor, simple = (low, high), None
        elif number == 9 and wire == 2:
            plugin = _plugin(payload, low, high)
    if simple is not None:
        slots.append(Slot(tag, "f4", *simple))
    elif tensor is not None and plugin not in _HIDDEN_PLUGINS:
        _tensor(payload, *tensor, tag, slots, texts)


def _plugin(payload: bytes, begin: int, end: int) -> bytes:
    for number, wire, low, high in _fields(payload, begin, end):
        if number == 1 and wire == 2:
            for inner, kind, first, last in _fields(payload, low, high):
                if inner == 1 and kind == 2:
                    return payload[first:last]
    return b""


# TensorProto: dtype -> (field of its listed values, wire type of one, how it is stored there, how in tensor_content)
_KINDS = {1: (5, 5, "f4", "f4"), 2: (6, 1, "f8", "f8"), 3: (7, 0, "varint", "i4"), 9: (10, 0, "varint", "i8")}
_DT_STRING = 7


def _tensor(
    payload: bytes, begin: int, end: int, tag: str, slots: list[Slot], texts: list[tuple[str, int, int]]
) -> None:
    """A tensor of one number or one text; anything else (images, histograms) is passed over."""
    dtype = 0
    content: tuple[int, int] | None = None
    listed: list[tuple[int, int, int, int]] = []
    for number, wire, low, high in _fields(payload, begin, end):
        if number == 1 and wire == 0:
            dtype = payload[low]
        elif number == 4 and wire == 2:
            content = (low, high)
        elif number in {5, 6, 7, 8, 10}:
            listed.append((number, wire, low, high))
    if dtype == _DT_STRING:
        strings = [(low, high) for number, wire, low, high in listed if number == 8 and wire == 2]
        if len(strings) == 1:
            texts.append((tag, *strings[0]))
        return
    if dtype not in _KINDS:
        return
    home, single, kind, raw = _KINDS[dtype]
    if content is not None and content[1] > content[0]:
        if content[1] - content[0] == int(raw[1]):
            slots.append(Slot(tag, raw, *content))
        return
    numbers: list[tuple[int, int]] = []
    for number, wire, low, high in listed:
        if number != home:
            continue
        if wire == single:
            numbers.append((low, high))
        elif wire == 2:
            numbers += _packed(payload, low, high, kind)
    if len(numbers) == 1:
        slots.append(Slot(tag, kind, *numbers[0]))


def _packed(payload: bytes, begin: int, end: int, kind: str) -> list[tuple[int, int]]:
    if kind != "varint":
        size = int(kind[1])
        return [(at, at + size) for at in range(begin, end, size)] if (end - begin) % size == 0 else []
    found = []
    while begin < end:
        _, after = varint(payload, begin, end)
        found.append((begin, after))
        begin = after
    return found


def _fields(payload: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, wire type, where the content begins and ends."""
    while position < end:
        key, position = varint(payload, position, end)
        wire = key & 7
        if wire == 2:
            length, position = varint(payload, position, end)
            after = position + length
        elif wire == 0:
            _, after = varint(payload, position, end)
        elif wire in {1, 5}:
            after = position + (8 if wire == 1 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if after > end:
            raise ValueError("a field passes the end of its message")
        yield key >> 3, wire, position, after
        position = after


def varint(payload: bytes, position: int, end: int) -> tuple[int, int]:
    """A number at `position`, and where it ends. Raises ValueError where it does not."""
    value = shift = 0
    while position < end and shift < 70:
        byte = payload[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number that does not end")


def signed(value: int) -> int:
    """A 64-bit number as the signed one that it stands for."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_FORMATS = {"f4": struct.Struct("<f"), "f8": struct.Struct("<d"), "i4": struct.Struct("<i"), "i8": struct.Struct("<q")}


def number_at(payload: bytes, kind: str, begin: int, end: int) -> float:
    """The number of a slot."""
    if kind == "varint":
        return float(signed(varint(payload, begin, end)[0]))
    return float(_FORMATS[kind].unpack_from(payload, begin)[0])


def column_at(rows: NDArray[np.uint8], kind: str, begin: int, end: int) -> NDArray[np.generic]:
    """[n, length] -> [n]: the numbers at one place of every row."""
    if kind != "varint":
        return np.ascontiguousarray(rows[:, begin:end]).view(f"<{kind}")[:, 0]
    value = np.zeros(len(rows), np.uint64)
    for i in range(end - begin):
        value |= (rows[:, begin + i].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * i)
    return value.view(np.int64)
