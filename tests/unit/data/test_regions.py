"""A region that is decoded alone has the pixels of the whole image, and a stream that decodes so its bits."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

import vit_dist
from tests.streams import digest, global_batches, recipe
from vit_dist.cli.data.pack import main as pack
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.data import regions
from vit_dist.data.augment import Augment
from vit_dist.data.decode import Encoded, decode
from vit_dist.data.images import DecodeError
from vit_dist.data.regions import RegionDecoder
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

SIDES = (211, 160)
SMOOTH = Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 11, 3), dtype=np.uint8)).resize(SIDES)
LYING = Image.Exif()
LYING[0x0112] = 6

FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "RGB kept": ("RGB", {"keep_rgb": True}),
    "on its side": ("RGB", {"exif": LYING}),
}


def jpeg(form: str = "4:2:0", image: Image.Image = SMOOTH) -> bytes:
    mode, options = FORMS[form]
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def boxes(height: int, width: int, count: int) -> list[tuple[int, int, int, int]]:
    draw = random.Random(7)
    sides = [(draw.randint(1, height), draw.randint(1, width)) for _ in range(count)]
    return [(draw.randint(0, height - h), draw.randint(0, width - w), h, w) for h, w in sides]


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_region_is_that_of_the_whole_image(form: str, upright: bool) -> None:
    content, decoder = jpeg(form), RegionDecoder()
    whole = decode(content, upright=upright)
    for top, left, height, width in boxes(*whole.shape[1:], 12):
        # As a stream has it: a view of what was read.
        image = Encoded(memoryview(bytearray(content)), upright=upright, regions=decoder)
        assert image.size == tuple(whole.shape[1:])
        part = image.region((top, left, height, width))
        assert torch.equal(part, whole[:, top : top + height, left : left + width])
    if form != "on its side" or not upright:
        # It was that decoder which made them.
        assert decoder.decode(content, (0, 0, 5, 9)) is not None


def test_a_crop_is_the_same_from_a_region_and_from_the_whole() -> None:
    decoder, content = RegionDecoder(), jpeg()
    augment = Augment.of(recipe("", "data.image_size=49").data, 3)
    for ordinal in range(20):
        expected = augment.apply(decode(content), epoch=1, ordinal=ordinal)
        assert torch.equal(augment.decode(Encoded(content, regions=decoder), epoch=1, ordinal=ordinal), expected)


@pytest.mark.parametrize(
    "content",
    [jpeg()[:2000], jpeg()[:400], b"", b"no image", jpeg()[:30] + b"\xff\xd9"],
    ids=["cut", "cut in its header", "empty", "other", "no scan"],
)
def test_what_is_no_whole_image_is_told_as_without(content: bytes) -> None:
    with pytest.raises(DecodeError) as plain:
        Encoded(content).region((0, 0, 4, 4))
    with pytest.raises(DecodeError) as alone:
        Encoded(content, regions=RegionDecoder()).region((0, 0, 4, 4))
    assert str(alone.value) == str(plain.value)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        (root / "src" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        shifted = SMOOTH.rotate(15 * number)
        content = jpeg(list(FORMS)[number % len(FORMS)], shifted)
        (root / "src" / str(number % 3) / f"{number:03d}.jpg").write_bytes(content)
    pack([str(root / "src"), str(root / "set"), "--samples-per-shard", "10"])
    return str(root / "set" / "manifest.json")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_the_same_bits(photos: str, workers: int) -> None:
    plain = recipe(photos, "global_batch=8", "data.num_classes=3")
    alone = recipe(photos, "global_batch=8", "data.num_classes=3", "data.decoder=nvimgcodec")
    alone = alone.model_copy(update={"data": alone.data.model_copy(update={"decode_workers": workers})})
    assert digest(global_batches(alone, 1 if workers else 2, 0, 6)) == digest(global_batches(plain, 1, 0, 6))


def test_it_counts_for_a_run_and_its_stream_has_it(photos: str) -> None:
    states = [
        next(iter(stream))[0].images
        for decoder in ("torchvision", "nvimgcodec")
        for stream in [vit_dist.open_stream(photos, batch=6, image_size=32, decoder=decoder)]
    ]
    assert torch.equal(states[0], states[1])
    with pytest.raises(ConfigError, match=r"decoder=nvimgcodec decodes the crop alone, and decode='pil' has none"):
        vit_dist.open_stream(photos, batch=6, decode="pil", decoder="nvimgcodec")


def test_where_it_is_not_installed_a_run_says_so_before_it_begins(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_MODULE", "nvidia.nothing_of_the_kind")
    config = recipe(photos, "global_batch=8", "data.num_classes=3", "data.decoder=nvimgcodec")
    with pytest.raises(ConfigError, match=r"data\.decoder=nvimgcodec: nvidia.nothing_of_.* cannot be imported.*pip"):
        TrainStream(open_training_set(config), config, World(), 0)
