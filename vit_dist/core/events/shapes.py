"""Shapes: records of one length that differ in their numbers only, and finding the shape of many records at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.events.layout import VARINTS, Layout

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]


@dataclass
class Shape:
    """A record that was walked: its bytes as 64-bit words, its checksum, what its bytes mean."""

    layout: Layout
    words: Words
    crc: int


@dataclass
class ShapeGroup:
    """The shapes of one length with numbers at the same places.

    `mask` has a one for each bit that must be equal; `moving` are the bytes that may differ. The hashes of all shapes
    are sorted, and `shape_index[i]` is the shape of `hashes[i]`.
    """

    mask: Words
    moving: Ints
    shapes: list[Shape] = field(default_factory=list)
    hashes: Words = field(default_factory=lambda: np.empty(0, np.uint64))
    shape_index: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    known: set[int] = field(default_factory=set)

    def hash_fixed(self, words: Words) -> Words:
        """[n, w] -> [n]: a number that is equal for equal fixed parts."""
        # Multiply and add modulo 2^64. A constant of its own for each word, so that words that change places are told
        # apart; all of them odd, so that no bit of a word is lost in the product.
        multipliers = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed: Words = ((words & self.mask) * multipliers).sum(axis=1, dtype=np.uint64)
        return mixed ^ (mixed >> np.uint64(29))

    def add(self, shape: Shape) -> None:
        """One shape more, unless one of its hash is there."""
        (hashed,) = self.hash_fixed(shape.words[None])
        if int(hashed) in self.known:
            return
        self.known.add(int(hashed))
        self.shapes.append(shape)
        self.hashes = np.append(self.hashes, hashed)
        self.shape_index = np.append(self.shape_index, len(self.shapes) - 1)
        order = np.argsort(self.hashes, kind="stable")
        self.hashes, self.shape_index = self.hashes[order], self.shape_index[order]

    def match(self, words: Words) -> Ints:
        """[n, w] -> [n]: which shape each row has; -1 for none of these."""
        if len(self.shapes) == 1:
            candidate = np.zeros(len(words), np.int64)
            template = self.shapes[0].words[None]
        else:
            nearest = np.searchsorted(self.hashes, self.hash_fixed(words))
            candidate = self.shape_index[np.minimum(nearest, len(self.hashes) - 1)]
            template = np.stack([shape.words for shape in self.shapes])[candidate]
        # The hash only proposes a shape: two fixed parts may share one, so the bits themselves decide.
        return np.where((((words ^ template) & self.mask) == 0).all(axis=1), candidate, -1)


def fixed_bits(layout: Layout, length: int, num_words: int) -> tuple[Words, Ints]:
    """Which bits of a record must equal those of its shape, and which bytes may differ."""
    mask = np.zeros(num_words * 8, np.uint8)
    mask[:length] = 0xFF
    if layout.wall is not None:
        mask[layout.wall : layout.wall + 8] = 0
    # The top bit of a varint's byte says whether another byte follows: how long the number is, is part of the shape,
    # or all that stands after it would be read from the wrong place.
    if layout.step is not None:
        mask[slice(*layout.step)] = 0x80
    for slot in layout.slots:
        mask[slot.begin : slot.end] = 0x80 if slot.kind in VARINTS else 0
    return mask.view(np.uint64), np.flatnonzero(mask[:length] != 0xFF)
