"""Counter-based randomness: a number is a pure function of its coordinates, never of a stream's history.

Own integer hashing rather than `numpy.random.Generator`: numpy may change what a generator draws between
releases, and the order of a dataset must outlive numpy. The mixer is the finalizer of SplitMix64 (Steele,
Lea, Flood 2014, with Stafford's "variant 13" constants), which is bijective on 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload

import numpy as np
from numpy.typing import NDArray

MASK64 = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, made odd: what SplitMix64 adds to its state between two numbers."""
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


def mix64(x: int) -> int:
    """Scramble 64 bits, bijectively. int -> int in [0, 2^64)."""
    x &= MASK64
    x = ((x ^ (x >> 30)) * _M1) & MASK64
    x = ((x ^ (x >> 27)) * _M2) & MASK64
    return x ^ (x >> 31)


def mix64_array(x: U64) -> U64:
    """`mix64` for every element. uint64 [...] -> uint64 [...]."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return x ^ (x >> np.uint64(31))


@overload
def hash64(*words: int) -> int: ...
@overload
def hash64(*words: int | U64) -> int | U64: ...
def hash64(*words: int | U64) -> int | U64:
    """Hash integer coordinates, the last of which may be an array: ints -> int, uint64 [n] -> uint64 [n]."""
    state = 0
    for word in words[:-1]:
        assert not isinstance(word, np.ndarray), "only the last coordinate may be an array"
        state = mix64(state + GOLDEN_GAMMA + int(word))
    last = words[-1]
    if isinstance(last, np.ndarray):
        return mix64_array(last + np.uint64((state + GOLDEN_GAMMA) & MASK64))
    return mix64(state + GOLDEN_GAMMA + int(last))


def uniform(*words: int) -> float:
    """One number in [0, 1) for these coordinates (53 bits)."""
    return (hash64(*words) >> 11) * 2.0**-53


def uniforms(lasts: Iterable[int], *words: int) -> list[float]:
    """`uniform(*words, last)` for each of `lasts`; what they have in common is hashed once."""
    state = hash64(*words) + GOLDEN_GAMMA
    return [(mix64(state + last) >> 11) * 2.0**-53 for last in lasts]


def permutation(size: int, *words: int) -> I64:
    """A permutation of range(size) for these coordinates. int64 [size]."""
    keys = hash64(*words, np.arange(size, dtype=np.uint64))
    return np.argsort(keys, kind="stable").astype(np.int64)
