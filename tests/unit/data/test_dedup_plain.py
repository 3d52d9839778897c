"""Plain images have perceptual hashes that say nothing: they are the same as others where all their pixels are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.shards import write_tar
from vit_dist.cli import data as cli
from vit_dist.data.dedup import hash_image
from vit_dist.data.manifest import read_manifest

SIZE = (48, 36)


def colour(name: str) -> Image.Image:
    return Image.new("RGB", SIZE, name)


def noise(seed: int, base: int = 240) -> Image.Image:
    """A scan of an empty page."""
    pixels = base + np.random.default_rng(seed).normal(0, 1, (180, 240, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).repeat(3, axis=2))


def gradient(low: tuple[int, int, int], high: tuple[int, int, int]) -> Image.Image:
    """A sky."""
    return Image.fromarray(np.linspace(low, high, 36)[:, None].repeat(48, axis=1).astype(np.uint8))


def halves(left: str, right: str) -> Image.Image:
    image = colour(left)
    image.paste(right, (24, 0, 48, 36))
    return image


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


PLAIN = {
    "colours": ([colour(c) for c in ("red", "orange", "white", "black", "gray")], colour("blue")),
    "sizes": ([Image.new("RGB", (9 * n, 5 * n), "white") for n in (1, 3, 20)], colour("white")),
    "empty pages": ([noise(seed) for seed in range(4)], noise(9)),
    "skies": (
        [gradient((90, 120, n), (200, 220, 255)) for n in (150, 170, 190)],
        gradient((80, 130, 160), (190, 210, 250)),
    ),
    "halves": ([halves("red", "blue"), halves("lime", "black"), halves("white", "gray")], halves("yellow", "navy")),
    "greys": (
        [colour("red").convert("L"), colour("lime").convert("L"), colour("black").convert("1")],
        colour("gray").convert("L"),
    ),
    "nearly constant": ([noise(n, base=100 + n) for n in range(3)], colour("#646464")),
}


def write(folder: Path, name: str, contents: list[bytes]) -> str:
    members = [
        (f"{i:02d}.{suffix}", data) for i, c in enumerate(contents) for suffix, data in (("png", c), ("cls", b"0"))
    ]
    write_tar(folder / f"{name}.tar", members)
    assert cli.main(["index", str(folder / f"{name}.tar"), "--out", str(folder / f"{name}.json")]) == 0
    return str(folder / f"{name}.json")


@pytest.fixture
def dedup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[list[bytes], list[bytes]], tuple[int, str]]:
    """How many of the first are left out because of the second, and what was said."""

    def run(train: list[bytes], val: list[bytes]) -> tuple[int, str]:
        first, second = write(tmp_path, "train", train), write(tmp_path, "val", val)
        capsys.readouterr()
        assert cli.main(["dedup", first, "--against", second, "--out", str(tmp_path / "out.json")]) == 0
        said = capsys.readouterr()
        return len(train) - read_manifest(str(tmp_path / "out.json")).num_samples, said.out + said.err

    return run


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_images_are_not_the_same_for_being_plain(
    kind: str, dedup: Callable[[list[bytes], list[bytes]], tuple[int, str]]
) -> None:
    train, other = PLAIN[kind]
    assert all(hashed is not None and hashed[1] for hashed in (hash_image(encoded(i)) for i in [*train, other]))
    left_out, said = dedup(
        [*(encoded(image) for image in train), encoded(picture(1))], [encoded(other), encoded(picture(2))]
    )
    assert left_out == 0
    assert f"{len(train) + 1} images are plain" in said


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_image_is_left_out_where_all_its_pixels_are_those_of_another(
    kind: str, dedup: Callable[[list[bytes], list[bytes]], tuple[int, str]]
) -> None:
    train, other = PLAIN[kind]
    # Another file of the same pixels.
    copy = encoded(other.convert("RGB"), "BMP")
    left_out, _ = dedup([*(encoded(image) for image in train), copy], [encoded(picture(2)), encoded(other)])
    assert left_out == 1


@pytest.mark.parametrize("seed", range(3))
def test_pictures_with_features_are_compared_by_their_hashes_whatever_their_contrast(seed: int) -> None:
    for image in (picture(seed), Image.blend(picture(seed), Image.new("RGB", (64, 64), "gray"), 0.5)):
        hashed = hash_image(encoded(image, "JPEG", quality=90))
        copy = hash_image(encoded(image.resize((50, 50)), "JPEG", quality=80))
        assert hashed is not None
        assert copy is not None
        assert not hashed[1]
        assert (hashed[0] ^ copy[0]).bit_count() <= 4
