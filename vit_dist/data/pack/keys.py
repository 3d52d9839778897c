"""Which keys of a set stand twice, in memory that does not grow with the set: their hashes lie on disk. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from vit_dist.core.seeding import U64

_HASHES_IN_MEMORY = 1 << 24


def key_hash(key: str) -> int:
    """64 bits."""
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))


def repeated_hashes(path: Path, count: int) -> set[int]:
    """The hashes that a file holds more than once.

    The file is read once for every 16M hashes in it, each time for another share of them; so there are never many more
    in memory.

    Args:
        path: of 64-bit numbers, the lowest byte first.
        count: how many.
    """
    passes = max(1, -(-count // _HASHES_IN_MEMORY))
    repeated: set[int] = set()
    for number in range(passes):
        share = np.concatenate(_shares(path, passes, number))
        share.sort()
        repeated.update(share[1:][share[1:] == share[:-1]].tolist())
    return repeated


def _shares(path: Path, passes: int, number: int) -> list[U64]:
    shares: list[U64] = [np.zeros(0, np.uint64)]
    with path.open("rb") as file:
        while content := file.read(8 * _HASHES_IN_MEMORY // 16):
            hashes = np.frombuffer(content, "<u8")
            shares.append(hashes[hashes % np.uint64(passes) == number])
    return shares
