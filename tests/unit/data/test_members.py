"""What part of a name is a sample's key: as webdataset's own pattern says it, in a time that grows with its length."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.unit.fuzz.damage import bounded
from vit_dist.data.members import IMAGE_EXTENSIONS, split_name

# webdataset.tariterators.base_plus_ext
PATTERN = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def test_every_short_name_is_split_as_by_webdataset() -> None:
    for length in range(7):
        for parts in itertools.product(("a", "/", ".", "\n", "jpg"), repeat=length):
            name = "".join(parts)
            match = PATTERN.match(name)
            expected = None if match is None else (match[1], match[2].lower())
            if expected is not None and expected[0].endswith("/") and expected[1] not in IMAGE_EXTENSIONS:
                expected = None
            assert split_name(name) == expected, name


@pytest.mark.parametrize("piece", ["a/", "a", "/", ".", "a.", "./", "\n/", "__", "a/."])
def test_a_name_of_a_mebibyte_takes_no_square_of_that(piece: str) -> None:
    with bounded():
        split_name(piece * (2**20 // len(piece)))
        split_name(piece * (2**20 // len(piece)) + ".jpg")
