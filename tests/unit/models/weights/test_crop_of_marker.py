"""The crop that exported weights say evaluation used, by what a checkpoint's marker holds."""

from __future__ import annotations

from typing import Any

import pytest

from vit_dist.models.weights.viewed import crop_of


@pytest.mark.parametrize(
    ("data", "crop"),
    [
        ({"val_crop": 0.9}, 0.9),
        ({"val_crop": 1}, 1.0),
        ({"val_crop": 0.9, "val_resize": 256}, 0.875),
        ({"val_resize": 224}, 1.0),
        ({"val_crop": 0.9, "val_resize": None}, 0.9),
        # What no recipe holds counts as if it were not there.
        ({"val_crop": 0.9, "val_resize": 100}, 0.9),
        ({"val_crop": 0.9, "val_resize": "256"}, 0.9),
        ({"val_crop": "big"}, 0.875),
        ({"val_crop": 0}, 0.875),
        ({}, 0.875),
    ],
)
def test_the_crop_is_the_resizings_where_that_is_given(data: dict[str, Any], crop: float) -> None:
    assert crop_of(data, 224) == crop
