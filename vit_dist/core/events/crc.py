"""CRC-32C, the checksum of TFRecord frames: of some bytes, and of many records that differ in few bytes.

In numpy, since Python's standard library has CRC-32 only, with another polynomial, and a byte-by-byte loop is far too
slow for megabytes. A CRC is linear over XOR: each byte adds a value that depends on the byte and on how many bytes
follow it, and nothing else. So the checksum of a chunk is the XOR of table entries looked up all at once.
"""

from __future__ import annotations

import functools
import struct

import numpy as np
from numpy.typing import NDArray

# TFRecord stores rotated checksums with this added: a CRC over bytes that hold their own CRC would say little.
_MASK_DELTA = 0xA282EAD8
# Bytes whose table entries are looked up together; the tables are 1 KiB a byte.
_CHUNK = 1024
# Below so many bytes a loop is faster than arrays.
_SHORT = 128


@functools.cache
def _crc_table() -> NDArray[np.uint32]:
    crc = np.arange(256, dtype=np.uint32)
    # Castagnoli's polynomial, 0x1EDC6F41, with its bits reversed.
    for _ in range(8):
        crc = (crc >> np.uint32(1)) ^ np.where(crc & np.uint32(1), np.uint32(0x82F63B78), np.uint32(0))
    return crc


_far: list[NDArray[np.uint32]] = []


def crc_far(distance: int) -> NDArray[np.uint32]:
    """What a byte (0..255) adds to the checksum when `distance` bytes follow it."""
    table = _crc_table()
    if not _far:
        _far.append(table)
    while len(_far) <= distance:
        last = _far[-1]
        _far.append(table[last & np.uint32(0xFF)] ^ (last >> np.uint32(8)))
    return _far[distance]


@functools.cache
def _crc_chunk() -> NDArray[np.uint32]:
    return np.stack([crc_far(distance) for distance in reversed(range(_CHUNK))])


def crc32c(data: bytes) -> int:
    """The checksum of some bytes, without TFRecord's mask."""
    state = 0xFFFFFFFF
    raw = np.frombuffer(data, np.uint8)
    for begin in range(0, len(data), _CHUNK):
        part = raw[begin : begin + _CHUNK].copy()
        if len(part) < _SHORT:
            table = _crc_list()
            for byte in data[begin:]:
                state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
            break
        # What came before enters as if it stood in the first four bytes: CRC's register is XORed with its input.
        part[:4] ^= np.frombuffer(struct.pack("<I", state), np.uint8)
        tables = _crc_chunk()[_CHUNK - len(part) :]
        state = int(np.bitwise_xor.reduce(tables[np.arange(len(part)), part]))
    return state ^ 0xFFFFFFFF


@functools.cache
def _crc_list() -> list[int]:
    return [int(entry) for entry in _crc_table()]


def masked_crc(data: bytes) -> int:
    """TFRecord's masked CRC-32C."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def mask_crc(crc: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """TFRecord's mask over checksums, [n] -> [n]."""
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)
