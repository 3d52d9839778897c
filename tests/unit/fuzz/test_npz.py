"""Archives of arrays with damage or forgery anywhere: weights, or one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.weight_files import CONFIG, damaged, read, seeds
from vit_dist.models.weights.files import LoadOptions

OPTIONS = [LoadOptions(CONFIG), LoadOptions(CONFIG, num_classes=2, head="new"), LoadOptions(CONFIG, image_size=16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files lie."""
    return tmp_path_factory.mktemp("npz")


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[bytes]:
    """Real files."""
    return seeds(folder, ".npz")


def test_the_seeds_are_read(whole: list[bytes], folder: Path) -> None:
    assert all(read(folder / "w.npz", content, options) is not None for content in whole for options in OPTIONS)


@fuzz
@given(data=st.data())
def test_a_damaged_archive_is_weights_or_one_error(data: st.DataObject, whole: list[bytes], folder: Path) -> None:
    read(folder / "w.npz", data.draw(damaged(whole)), data.draw(st.sampled_from(OPTIONS)))
