"""Safetensors and files of torch with damage or forgery anywhere: weights, or one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.weight_files import CONFIG, damaged, edited, read, seeds
from vit_dist.models.weights.files import LoadOptions

NEW = LoadOptions(CONFIG, num_classes=2, head="new")
OPTIONS = [LoadOptions(), LoadOptions(CONFIG), NEW, LoadOptions(CONFIG, rows=lambda names: range(len(names) - 1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files lie."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, list[bytes]]:
    """Real files."""
    return {ending: seeds(folder, ending) for ending in (".safetensors", ".pth")}


def test_the_seeds_are_read(whole: dict[str, list[bytes]], folder: Path) -> None:
    for ending, contents in whole.items():
        assert all(read(folder / f"w{ending}", content, NEW) is not None for content in contents)
    assert all(read(folder / "w.safetensors", whole[".safetensors"][0], options) is not None for options in OPTIONS)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@fuzz
@given(data=st.data())
def test_a_damaged_file_is_weights_or_one_error(
    ending: str, data: st.DataObject, whole: dict[str, list[bytes]], folder: Path
) -> None:
    read(folder / f"w{ending}", data.draw(damaged(whole[ending])), data.draw(st.sampled_from(OPTIONS)))


@fuzz
@given(data=st.data())
def test_a_forged_header_is_weights_or_one_error(
    data: st.DataObject, whole: dict[str, list[bytes]], folder: Path
) -> None:
    content = whole[".safetensors"][0]
    end = 8 + int.from_bytes(content[:8], "little")
    header = data.draw(edited(content[8:end].decode())).encode()
    read(
        folder / "w.safetensors",
        len(header).to_bytes(8, "little") + header + content[end:],
        data.draw(st.sampled_from(OPTIONS)),
    )
