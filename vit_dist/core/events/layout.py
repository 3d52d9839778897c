"""One record of an event file: which bytes mean what. Walks the fields of its protobuf message by hand.

Protobuf's wire format is a flat list of fields. Each begins with a key, a varint of `field number << 3 | wire type`;
the wire type says how long the content is: 0 a varint (seven bits a byte, the lowest first, the top bit set where
another byte follows), 1 eight bytes, 2 a varint length and that many bytes (texts, messages, packed numbers), 5 four
bytes.
Field numbers are those of TensorBoard's event.proto, summary.proto and tensor.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Their tensors are settings of TensorBoard's own tabs and neither numbers nor texts of a run.
_HIDDEN_PLUGINS = frozenset({b"hparams", b"custom_scalars"})

_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5

# A writer puts some dozen numbers into a record; a forged one could hold as many fields as bytes, and take minutes.
_MOST_FIELDS = 100_000
LONGEST_TAG = 1000
"""Bytes; the value of a longer one is damaged."""


class Slot(NamedTuple):
    """Where one number of a record stands; the tag of one not wanted is None.

    `kind` is one of VARINTS, or type and size in bytes of what is stored as it is: f2 to f8, i1 to i8, u1 to u8, and b2
    for bf16.
    """

    tag: str | None
    kind: str
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """What the bytes of one record mean. `start` is true for the mark of a restart (SessionLog START).

    `unread` are tags of numbers that cannot be given, each with its dtype.
    """

    wall: int | None
    step: tuple[int, int] | None
    slots: tuple[Slot, ...]
    texts: tuple[tuple[str, int, int], ...]
    start: bool
    unread: tuple[tuple[str, str], ...] = ()


def read_layout(payload: bytes) -> Layout:
    """Walk one `Event`.

    Raises:
        ValueError: the bytes are no event, or beyond what a writer puts into one.
    """
    wall, step, start = None, None, False
    slots: list[Slot] = []
    texts: list[tuple[str, int, int]] = []
    unread: list[tuple[str, str]] = []
    for number, wire, begin, end in _fields(payload, 0, len(payload)):
        # A field with another wire type than its own is an unknown field, which protobuf skips.
        if number == 1 and wire == _EIGHT_BYTES:
            wall = begin
        elif number == 2 and wire == _VARINT:
            step = (begin, end)
        elif number == 5 and wire == _DELIMITED:
            for inner, kind, low, high in _fields(payload, begin, end):
                if inner == 1 and kind == _DELIMITED:
                    _value(payload, low, high, slots, texts, unread)
        elif number == 7 and wire == _DELIMITED:
            # Of a field that is given twice, the last counts.
            statuses = [
                payload[low] for inner, kind, low, _ in _fields(payload, begin, end) if inner == 1 and kind == _VARINT
            ]
            start = statuses[-1:] == [1]
    return Layout(wall, step, tuple(slots), tuple(texts), start, tuple(unread))


def _value(
    payload: bytes,
    begin: int,
    end: int,
    slots: list[Slot],
    texts: list[tuple[str, int, int]],
    unread: list[tuple[str, str]],
) -> None:
    """One `Summary.Value`: adds its number or its text, if it is one of either."""
    tag, simple, tensor, plugin = "", None, None, b""
    for number, wire, low, high in _fields(payload, begin, end):
        if number == 1 and wire == _DELIMITED:
            if high - low > LONGEST_TAG:
                raise ValueError("a giant tag")
            tag = str(payload[low:high], "utf-8", "replace")
        elif number == 2 and wire == _FOUR_BYTES:
            simple = (low, high)
        elif number == 8 and wire == _DELIMITED:
            # The two are a oneof: the one that comes later replaces the other.
            tensor, simple = (low, high), None
        elif number == 9 and wire == _DELIMITED:
            plugin = _plugin(payload, low, high)
    if simple is not None:
        slots.append(Slot(tag, "f4", *simple))
    elif tensor is not None and plugin not in _HIDDEN_PLUGINS:
        _tensor(payload, *tensor, tag, slots, texts, unread)


def _plugin(payload: bytes, begin: int, end: int) -> bytes:
    for number, wire, low, high in _fields(payload, begin, end):
        if number == 1 and wire == _DELIMITED:
            for inner, kind, first, last in _fields(payload, low, high):
                if inner == 1 and kind == _DELIMITED:
                    return payload[first:last]
    return b""


# TensorProto: dtype -> (field of its listed values, wire type of one, how it is stored there, how in tensor_content)
_KINDS = {
    1: (5, _FOUR_BYTES, "f4", "f4"),
    2: (6, _EIGHT_BYTES, "f8", "f8"),
    3: (7, _VARINT, "varint", "i4"),
    4: (7, _VARINT, "varint", "u1"),
    5: (7, _VARINT, "varint", "i2"),
    6: (7, _VARINT, "varint", "i1"),
    9: (10, _VARINT, "varint", "i8"),
    10: (11, _VARINT, "varint", "u1"),
    14: (13, _VARINT, "bf16 bits", "b2"),
    17: (7, _VARINT, "varint", "u2"),
    19: (13, _VARINT, "half bits", "f2"),
    22: (16, _VARINT, "varint", "u4"),
    23: (17, _VARINT, "uvarint", "u8"),
}
# Numbers that this reader cannot give, for whoever asks for their tags.
_NOT_READ = {8: "complex64", 18: "complex128", **dict.fromkeys(range(24, 29), "float8"), 33: "float4"}
_NOT_READ |= dict.fromkeys((11, 12, 13, 15, 16), "quantized") | dict.fromkeys((29, 30, 31, 32), "packed integer")
VARINTS = frozenset({"varint", "uvarint", "half bits", "bf16 bits"})
"""Kinds of which each number is a varint; of half and bf16, of its 16 bits."""
_DT_STRING = 7


def _tensor(
    payload: bytes,
    begin: int,
    end: int,
    tag: str,
    slots: list[Slot],
    texts: list[tuple[str, int, int]],
    unread: list[tuple[str, str]],
) -> None:
    """A tensor of one number or one text; anything else (images, histograms) is skipped."""
    dtype = 0
    content: tuple[int, int] | None = None
    listed: list[tuple[int, int, int, int]] = []
    for number, wire, low, high in _fields(payload, begin, end):
        if number == 1 and wire == _VARINT:
            dtype = payload[low]
        elif number == 4 and wire == _DELIMITED:
            content = (low, high)
        elif number in {5, 6, 7, 8, 10, 11, 13, 16, 17}:
            listed.append((number, wire, low, high))
    if dtype == _DT_STRING:
        strings = [(low, high) for number, wire, low, high in listed if number == 8 and wire == _DELIMITED]
        if len(strings) == 1:
            texts.append((tag, *strings[0]))
        return
    if dtype not in _KINDS:
        if dtype in _NOT_READ:
            unread.append((tag, _NOT_READ[dtype]))
        return
    field, wire_of_one, kind, raw_kind = _KINDS[dtype]
    if content is not None and content[1] > content[0]:
        if content[1] - content[0] == int(raw_kind[1]):
            slots.append(Slot(tag, raw_kind, *content))
        return
    numbers: list[tuple[int, int]] = []
    for number, wire, low, high in listed:
        if number != field:
            continue
        # Writers may pack repeated numbers into one field or give each a field of its own; readers must take both.
        if wire == wire_of_one:
            numbers.append((low, high))
        elif wire == _DELIMITED:
            numbers += _packed(payload, low, high, kind)
    if len(numbers) == 1:
        slots.append(Slot(tag, kind, *numbers[0]))


def _packed(payload: bytes, begin: int, end: int, kind: str) -> list[tuple[int, int]]:
    """Where the first numbers of a packed field stand; two at the most, since more than one are none that is read."""
    if kind not in VARINTS:
        size = int(kind[1])
        return [(at, at + size) for at in range(begin, end, size)[:2]] if (end - begin) % size == 0 else []
    numbers: list[tuple[int, int]] = []
    while begin < end and len(numbers) < 2:
        _, after = varint(payload, begin, end)
        numbers.append((begin, after))
        begin = after
    return numbers


def _fields(payload: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, wire type, where the content begins and ends."""
    count = 0
    while position < end:
        count += 1
        if count > _MOST_FIELDS:
            raise ValueError("more fields than any record has")
        key, position = varint(payload, position, end)
        wire = key & 7
        if wire == _DELIMITED:
            length, position = varint(payload, position, end)
            after = position + length
        elif wire == _VARINT:
            _, after = varint(payload, position, end)
        elif wire in {_EIGHT_BYTES, _FOUR_BYTES}:
            after = position + (8 if wire == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if after > end:
            raise ValueError("a field passes the end of its message")
        yield key >> 3, wire, position, after
        position = after


def varint(payload: bytes, position: int, end: int) -> tuple[int, int]:
    """A number at `position`, and where it ends. Raises ValueError where it does not."""
    value = shift = 0
    # Ten bytes hold 64 bits; what goes on beyond them is no number.
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
    # int64 fields are written in two's complement; the tenth byte of a varint may carry bits beyond the 64th.
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_FORMATS = {"f4": struct.Struct("<f"), "f8": struct.Struct("<d"), "i4": struct.Struct("<i"), "i8": struct.Struct("<q")}


def number_at(payload: bytes, kind: str, begin: int, end: int) -> float:
    """The number of a slot."""
    if kind == "varint":
        return float(signed(varint(payload, begin, end)[0]))
    if kind in _FORMATS:
        return float(_FORMATS[kind].unpack_from(payload, begin)[0])
    # Rarer kinds have one definition, that of many at once.
    row = np.frombuffer(payload[begin:end], np.uint8)[None]
    return float(column_at(row, kind, 0, end - begin)[0])


def column_at(rows: NDArray[np.uint8], kind: str, begin: int, end: int) -> NDArray[np.generic]:
    """[n, length] -> [n]: the numbers at one place of every row."""
    if kind == "b2":
        return _from_bf16(np.ascontiguousarray(rows[:, begin:end]).view("<u2")[:, 0])
    if kind not in VARINTS:
        return np.ascontiguousarray(rows[:, begin:end]).view(f"<{kind}")[:, 0]
    value = np.zeros(len(rows), np.uint64)
    for i in range(end - begin):
        value |= (rows[:, begin + i].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * i)
    if kind == "half bits":
        return value.astype(np.uint16).view(np.float16)
    if kind == "bf16 bits":
        return _from_bf16(value.astype(np.uint16))
    return value if kind == "uvarint" else value.view(np.int64)


def _from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    # The upper half of a float32.
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
