"""Headers of safetensors files, read within bounds: what one says is held against the bytes that are there. No torch.

8 bytes with the header's length, the header (JSON: name -> dtype, shape, place), then the tensors' bytes and nothing
else. A header of a few bytes can promise more than any memory holds, or give two names the same bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.small_files import (
    MAX_BYTES,
    DamagedError,
    is_count,
    is_mapping,
    is_name,
    open_regular,
    parse_json,
    required,
    shown,
)

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
"""Bytes of an element, by the format's name of a dtype."""
MAX_DIMENSIONS = 32
_METADATA = "__metadata__"
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Described:
    """What a header says of a tensor: its dtype and shape, and which bytes of the file are its own."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says it holds: tensors by name, texts beside them, and how many bytes the file has."""

    tensors: Mapping[str, Described]
    metadata: Mapping[str, str]
    num_bytes: int


def read_header(path: Path) -> Header:
    """The header of a file, each byte of whose data belongs to one tensor.

    Raises:
        OSError: the file is not there, or cannot be read.
        DamagedError: no safetensors file, or one whose header does not fit its bytes.
    """
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        begin = _LENGTH_BYTES + length
        if num_bytes < _LENGTH_BYTES or begin > num_bytes:
            raise DamagedError(f"its header ends at byte {begin:,}, the file at {num_bytes:,}")
        if length > MAX_BYTES:
            raise DamagedError(f"its header has {length:,} bytes, it may have {MAX_BYTES:,}")
        content = file.read(length)
    described = parse_json(content)
    if not isinstance(described, dict):
        raise DamagedError("its header is not a JSON object")
    metadata = described.pop(_METADATA, {})
    if not is_mapping(metadata) or not all(isinstance(text, str) for text in metadata.values()):
        raise DamagedError(f"{_METADATA} is not texts by name")
    tensors = {name: _described(name, entry, begin) for name, entry in described.items()}
    _check_places(tensors, begin, num_bytes)
    return Header(tensors, metadata, num_bytes)


def is_shape(value: Any) -> bool:
    """A list of sizes, of no more elements than a float counts exactly."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(map(is_count, value))
        and is_count(math.prod(size for size in value if size))
    )


def _described(name: str, entry: Any, begin: int) -> Described:
    if not is_name(name):
        raise DamagedError(f"a tensor is called {shown(name)}")
    try:
        dtype = required(entry, "dtype", lambda v: isinstance(v, str) and v in ITEM_BYTES, f"one of {[*ITEM_BYTES]}")
        shape = required(entry, "shape", is_shape, "a list of sizes")
        place = required(entry, "data_offsets", _is_place, "where it begins and ends")
    except DamagedError as error:
        raise DamagedError(f"{shown(name)}: {error}") from None
    num_bytes = ITEM_BYTES[dtype] * math.prod(shape)
    if place[1] - place[0] != num_bytes:
        raise DamagedError(
            f"{shown(name)}: {dtype} of shape {shown(shape)} takes {num_bytes:,} bytes, it has {place[1] - place[0]:,}"
        )
    return Described(dtype, tuple(shape), begin + place[0], begin + place[1])


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value)) and value[0] <= value[1]


def _check_places(tensors: Mapping[str, Described], begin: int, end: int) -> None:
    at = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            whose = "two tensors" if tensor.begin < at else "no tensor"
            between = sorted((tensor.begin, at))
            raise DamagedError(f"{shown(name)}: bytes {between[0]:,} to {between[1]:,} belong to {whose}")
        at = tensor.end
    if at != end:
        raise DamagedError(f"its tensors end at byte {at:,}, the file at {end:,}")
