"""Which images are looked at, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.shards import image_bytes, write_set
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.data.decode import centre, decode
from vit_dist.inspect.images import image_files, read_files, read_set, spaced


def folder(path: Path, count: int) -> Path:
    for i in range(count):
        inner = path / f"class-{i % 2}"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{i:02}.PNG").write_bytes(image_bytes(i, i % 2))
    (path / "notes.txt").write_text("no image")
    return path


def test_images_of_folders_are_found_however_deep_and_in_order(tmp_path: Path) -> None:
    files = image_files([folder(tmp_path / "photos", 4), tmp_path / "photos/class-1/01.PNG"])
    assert [path.name for path in files] == ["00.PNG", "02.PNG", "01.PNG", "03.PNG", "01.PNG"]
    pixels = read_files(files[:2], 14, 0.875)
    assert torch.equal(pixels[1], centre(decode(files[1].read_bytes()), 14, 0.875))


def test_what_is_not_there_or_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such image or folder"):
        image_files([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images in this folder: no file that ends in \.jpg"):
        image_files([tmp_path / "empty"])
    (tmp_path / "broken.jpg").write_bytes(image_bytes(0, 0, form="JPEG")[:-40])
    with pytest.raises(DataError, match=r"broken\.jpg: the JPEG is truncated.*; leave it out"):
        read_files([tmp_path / "broken.jpg"], 28, 1.0)


def test_images_are_spaced_over_all_that_there_are() -> None:
    assert spaced(10, 4, 128, "x") == [0, 2, 5, 7]
    assert spaced(3, None, 128, "x") == [0, 1, 2]
    assert len(spaced(1000, None, 128, "x")) == 128
    with pytest.raises(ConfigError, match=r"--images 11: photos has 10 images; ask for 10 or fewer"):
        spaced(10, 11, 128, "photos")


def test_images_of_a_set_come_with_their_classes(tmp_path: Path) -> None:
    write_set(tmp_path, num_samples=9, samples_per_shard=4, num_classes=2)
    pixels, names = read_set(str(tmp_path), 28, 1.0, wanted=3, most=128)
    assert pixels.shape == (3, 3, 28, 28)
    assert len(names) == 3
    again, _ = read_set(str(tmp_path), 28, 1.0, most=128)
    assert torch.equal(again[::3], pixels)
    with pytest.raises(ConfigError, match="has 9 images"):
        read_set(str(tmp_path), 28, 1.0, wanted=10, most=128)
