"""The header of a safetensors file: what it says of its tensors, held against the bytes that are there. No torch.

The layout is that of https://github.com/huggingface/safetensors: eight bytes with the length of the header, the header
in JSON, then the values of all tensors, one behind the other without a gap.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

from vit_dist.core.npz import shown_name
from vit_dist.core.small_files import DamagedError, NotJsonError, is_count, parse_json, shown

MAX_HEADER_BYTES = 64 << 20
_MAX_DIMENSIONS = 32
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
}


@dataclass(frozen=True)
class Stated:
    """What a header says of a tensor: its dtype by the format's name, its shape, and bytes [begin, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BinaryIO) -> tuple[dict[str, Stated], dict[str, str]]:
    """The tensors of an open file, by name, and its metadata.

    Raises:
        DamagedError: no such file, cut short, or a tensor whose shape its bytes do not hold; two tensors that share
            bytes, or bytes that none has.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    begin = 8 + int.from_bytes(file.read(8), "little")
    if size < 8 or begin > size:
        raise DamagedError(f"a header of {begin - 8:,} bytes in a file of {size:,}")
    if begin > MAX_HEADER_BYTES:
        raise DamagedError(f"a header of {begin - 8:,} bytes; {MAX_HEADER_BYTES:,} at most are read")
    try:
        header = parse_json(file.read(begin - 8), unique=True)
    except NotJsonError as error:
        raise DamagedError(f"its header is {error}") from None
    if not isinstance(header, dict):
        raise DamagedError("its header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedError(f"__metadata__: {shown(metadata)}; expected texts by their names")
    tensors = {name: _stated(name, raw, begin) for name, raw in header.items()}
    at = begin
    # In the order in which they lie; one without values lies between two others.
    for name, one in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if one.begin != at:
            raise DamagedError(
                f"{shown_name(name)}: its values begin at byte {one.begin - begin:,} of the values, {at - begin:,} was "
                f"expected: tensors lie one behind the other"
            )
        at = one.end
    if at != size:
        raise DamagedError(f"its tensors take {at - begin:,} bytes, it has {size - begin:,}")
    return tensors, metadata


def _stated(name: str, raw: Any, begin: int) -> Stated:
    where = shown_name(name)
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamagedError(f"{where}: {shown(raw)}; expected dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise DamagedError(f"{where}: dtype={shown(dtype)}; known: {', '.join(_BITS)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(is_count, shape)):
        raise DamagedError(f"{where}: has the shape {shown(shape)}, which is none")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise DamagedError(f"{where}: data_offsets={shown(offsets)}; expected two whole numbers from 0")
    wanted = math.prod(shape) * _BITS[dtype] // 8
    if offsets[1] - offsets[0] != wanted:
        raise DamagedError(
            f"{where}: its shape {shown(shape)} of {dtype} takes {wanted:,} bytes, it has {offsets[1] - offsets[0]:,}"
        )
    return Stated(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])
