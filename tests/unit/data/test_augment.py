"""Changes of training images: drawn as they should be, from no shared generator, and torchvision's own results."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from vit_dist.config.augment import AUGREG, AugmentConfig, EraseConfig, JitterConfig, RandAugmentConfig
from vit_dist.data.augment import Augment, Draw, Erased
from vit_dist.data.decode import decode
from vit_dist.data.images import load
from vit_dist.data.randaugment import Op, apply_op, draw_ops

SIDE = 48
IMAGE = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))
PICTURE = Image.fromarray(IMAGE.permute(1, 2, 0).numpy())
ALL = AugmentConfig(
    crop="inception",
    randaugment=RandAugmentConfig(num_ops=2, magnitude=9),
    jitter=JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    erase=EraseConfig(fill="noise"),
)
TORCHVISION = v2.RandAugment()
OPS = list(TORCHVISION._AUGMENTATION_SPACE)
BIG_VISION = [
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
]  # fmt: skip


def augment(config: AugmentConfig, size: int = SIDE, seed: int = 5) -> Augment:
    return Augment(config, size, (0.05, 1.0), (3 / 4, 4 / 3), seed)


def drawn(config: RandAugmentConfig, count: int, side: int = SIDE) -> list[Op]:
    return list(itertools.chain.from_iterable(draw_ops(config, key, side) for key in range(count)))


def test_a_random_crop_is_cut_out_of_the_squashed_image_at_every_place_of_it() -> None:
    height, width, squashed = 96, 144, 48
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    smooth = torch.stack([(2 * rows + 0 * columns), (columns + 0 * rows), (rows + columns) // 2]).to(torch.uint8)
    crops = augment(AugmentConfig(crop="random", resize=squashed), 36)
    draws = [crops.draw(height, width, epoch=0, ordinal=i) for i in range(200)]
    tops, lefts, heights, widths = (set(column) for column in zip(*(draw.box for draw in draws), strict=True))
    assert (heights, widths) == ({72}, {108})
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 24, 0, 36)
    assert 60 < sum(draw.flip for draw in draws) < 140
    whole = v2.functional.resize(smooth, [squashed, squashed], antialias=True).float()
    for draw in draws[:20]:
        top, left, _, _ = draw.box
        # Places of the squashed image are every second row and third column of this one.
        if top % 2 == 0 and left % 3 == 0:
            wanted = whole[:, top // 2 : top // 2 + 36, left // 3 : left // 3 + 36]
            found = crops.render(smooth, Draw(box=draw.box)).float()
            assert (found - wanted).abs()[:, 1:-1, 1:-1].max() <= 1.0


@pytest.mark.parametrize("magnitude", [0, 1, 9, 15, 22, 30])
def test_randaugment_is_torchvisions_for_what_was_drawn(magnitude: int) -> None:
    ops = {(op.name, op.values): op for op in drawn(RandAugmentConfig(num_ops=4, magnitude=magnitude), 60)}
    assert {name for name, _ in ops} == set(OPS)
    for (name, values), op in ops.items():
        magnitudes, is_signed = TORCHVISION._AUGMENTATION_SPACE[name]
        space = magnitudes(31, SIDE, SIDE)
        value = values[0] if values else 0.0
        value = value / 255 if name == "Solarize" else value
        if space is not None:
            theirs = float(space[magnitude])
            theirs = int(theirs) if name.startswith("Translate") else theirs
            assert (abs(value) if is_signed else value) == pytest.approx(theirs, abs=1e-5)
        expected = TORCHVISION._apply_image_or_video_transform(
            PICTURE, name, value, interpolation=TORCHVISION.interpolation, fill=TORCHVISION._fill
        )
        assert np.array_equal(apply_op(PICTURE, op), expected), op
        assert np.asarray(apply_op(PICTURE, op)).dtype == np.uint8


@pytest.mark.parametrize("ops", ["torchvision", "big_vision"])
def test_every_operation_comes_as_often_as_every_other_and_half_of_them_negative(ops: Any) -> None:
    names = OPS if ops == "torchvision" else BIG_VISION
    counts: Counter[str] = Counter()
    signs: dict[str, list[bool]] = {}
    for op in drawn(RandAugmentConfig(num_ops=2, magnitude=10, ops=ops), 4000):
        counts[op.name] += 1
        if op.name.startswith(("Shear", "Translate", "Rotate")):
            signs.setdefault(op.name, []).append(op.values[0] < 0)
    assert set(counts) == set(names)
    expected = 8000 / len(names)
    # Chi-squared of 13 or 15 degrees of freedom: over 40 once in 2,000 times.
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 40
    assert len(signs) == 5
    assert all(abs(np.mean(negative) - 0.5) < 0.08 for negative in signs.values())
    both = Counter(tuple(op.name for op in draw_ops(RandAugmentConfig(magnitude=9), key, SIDE)) for key in range(4000))
    assert len(both) == len(OPS) ** 2, "the two layers are drawn apart"


def test_big_visions_ranges_are_those_of_its_code() -> None:
    """The numbers of google-research/big_vision, pp/autoaugment.py, at 224 pixels."""
    found: dict[int, dict[str, float]] = {}
    for magnitude in (0, 10, 15, 20):
        config = RandAugmentConfig(num_ops=16, magnitude=magnitude, ops="big_vision")
        found[magnitude] = {
            op.name: abs(op.values[0]) for op in drawn(config, 40, 224) if op.values and op.name != "Color"
        }
        factor = next(op.values[0] for op in drawn(config, 40, 224) if op.name == "Color")
        assert 1 + factor == pytest.approx({0: 0.1, 10: 1.9, 15: 2.8, 20: 3.7}[magnitude])
    for name, values in {
        "Rotate": (0, 30, 45, 60),
        "ShearX": (0, 0.3, 0.45, 0.6),
        "TranslateY": (0, 100, 150, 200),
        "Cutout": (0, 40, 60, 80),
        "Solarize": (0, 256, 384, 512),
        "SolarizeAdd": (0, 110, 165, 220),
        "Posterize": (1, 4, 6, 8),
    }.items():
        assert [found[magnitude][name] for magnitude in (0, 10, 15, 20)] == pytest.approx(values), name


def test_big_visions_own_operations_do_what_its_code_says() -> None:
    pixels = np.asarray(PICTURE).astype(int)
    added = np.where(pixels < 128, np.clip(pixels + 110, 0, 255), pixels)
    assert np.array_equal(apply_op(PICTURE, Op("SolarizeAdd", (110,), 128)), added)
    cut = pixels.copy()
    cut[0:15, 30:48] = 128
    assert np.array_equal(apply_op(PICTURE, Op("Cutout", (10, 5, 40), 128)), cut)
    assert np.array_equal(apply_op(PICTURE, Op("Invert", (), 128)), 255 - pixels)
    assert np.array_equal(apply_op(PICTURE, Op("Solarize", (256,), 128)), pixels)
    for op in Op("Rotate", (45,), 128), Op("ShearX", (0.6,), 128), Op("TranslateX", (30,), 128):
        black = apply_op(Image.new("RGB", (SIDE, SIDE)), op)
        assert set(np.unique(black).tolist()) == {0, 128}, op


def test_colour_jitter_is_torchvisions_for_what_was_drawn() -> None:
    config = JitterConfig(brightness=0.8, contrast=0.3, saturation=2.0, hue=0.5)
    orders, hues = set(), []
    names = ["brightness", "contrast", "saturation", "hue"]
    for ordinal in range(60):
        one = augment(AugmentConfig(crop="none", jitter=config))
        draw = one.draw(SIDE, SIDE, epoch=0, ordinal=ordinal)
        factors = dict(draw.jitter)
        params = {"fn_idx": torch.tensor([names.index(name) for name, _ in draw.jitter])}
        params |= {f"{name}_factor": factor for name, factor in draw.jitter}
        if ordinal < 10:
            theirs = v2.ColorJitter(0.8, 0.3, 2.0, 0.5).transform(PICTURE, params)
            assert np.array_equal(one.apply(IMAGE, epoch=0, ordinal=ordinal).permute(1, 2, 0), theirs)
        assert 0.2 <= factors["brightness"] <= 1.8
        assert 0.7 <= factors["contrast"] <= 1.3
        assert 0 <= factors["saturation"] <= 3
        orders.add(tuple(factors))
        hues.append(factors["hue"])
    assert len(orders) > 15
    assert -0.5 <= min(hues) < -0.4
    assert 0.4 < max(hues) <= 0.5


@pytest.mark.parametrize("fill", ["grey", "noise"])
def test_erasing_paints_the_rectangle_that_was_drawn_and_nothing_else(fill: Any) -> None:
    config = AugmentConfig(crop="none", erase=EraseConfig(probability=1.0, area=(0.1, 0.3), fill=fill))
    seen = set()
    for ordinal in range(40):
        draw = augment(config).draw(SIDE, SIDE, epoch=0, ordinal=ordinal)
        assert draw.erased is not None
        top, left, height, width = draw.erased.top, draw.erased.left, draw.erased.height, draw.erased.width
        assert 0 <= top <= SIDE - height
        assert 0 <= left <= SIDE - width
        assert 0.08 < height * width / SIDE**2 < 0.32
        assert 0.25 < height / width < 3.9
        erased = augment(config).render(IMAGE, draw)
        inside = erased[:, top : top + height, left : left + width]
        expected = IMAGE.clone()
        expected[:, top : top + height, left : left + width] = inside
        assert torch.equal(erased, expected)
        values = inside.unique()
        assert values.tolist() == [128] if fill == "grey" else len(values) > 100
        seen.add((top, left))
        params = {"i": top, "j": left, "h": height, "w": width, "v": inside}
        assert torch.equal(erased, v2.RandomErasing().transform(IMAGE, params))
    assert len(seen) > 30


def test_probabilities_are_kept() -> None:
    config = AugmentConfig(jitter=JitterConfig(hue=0.1, probability=0.8), erase=EraseConfig(probability=0.25))
    draws = [augment(config).draw(SIDE, SIDE, epoch=1, ordinal=ordinal) for ordinal in range(3000)]
    assert abs(np.mean([bool(draw.jitter) for draw in draws]) - 0.8) < 0.03
    assert abs(np.mean([draw.erased is not None for draw in draws]) - 0.25) < 0.03


def test_what_is_drawn_stays_what_it_was() -> None:
    """A change here gives every augmented run other images: it needs a name of its own in the recipe."""
    draw = augment(ALL, size=224, seed=7).draw(375, 500, epoch=3, ordinal=12354)
    assert draw == FROZEN
    assert augment(AugmentConfig(), seed=7).draw(375, 500, epoch=3, ordinal=12354) == Draw(draw.box, draw.flip)


FROZEN = Draw(
    box=(59, 71, 300, 399),
    flip=True,
    jitter=(
        ("contrast", 1.1657231540521955),
        ("saturation", 1.3223169251532434),
        ("hue", -0.0950996722356933),
        ("brightness", 1.1011117075982129),
    ),
    ops=(Op("TranslateY", (-30,)), Op("ShearX", (-0.09,))),
    erased=Erased(top=153, left=87, height=61, width=135, noise=5673894292221569943),
)


def test_no_generator_is_asked_and_none_is_needed() -> None:
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    one = [augment(ALL).apply(IMAGE, epoch=e, ordinal=o) for e in range(2) for o in range(20)]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    torch.manual_seed(2)
    other = [augment(ALL).apply(IMAGE, epoch=e, ordinal=o) for e in range(2) for o in range(20)]
    assert all(map(torch.equal, one, other))
    assert len({image.numpy().tobytes() for image in one}) == 40


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (40, 30), (224, 224)])
@pytest.mark.parametrize("size", [1, 2, 28])
def test_images_and_results_of_any_size_go_through(shape: tuple[int, int], size: int) -> None:
    image = torch.full((3, *shape), 200, dtype=torch.uint8)
    for strength in ("light1", "strong2"):
        config = ALL.model_copy(update={"randaugment": None, "augreg": strength})
        for ordinal in range(12):
            result = augment(config, size=size).apply(image, epoch=0, ordinal=ordinal)
            assert result.shape == (3, size, size)
            assert result.dtype == torch.uint8


def test_words_say_what_was_drawn() -> None:
    ops = (
        Op("Rotate", (-30.0,)),
        Op("Equalize"),
        Op("Color", (0.9,)),
        Op("Cutout", (40, 3, 5)),
        Op("Solarize", (256,)),
    )
    draw = Draw((1, 2, 30, 40), flip=True, jitter=(("hue", -0.05),), ops=ops, erased=Erased(1, 2, 3, 4, None))
    assert draw.words() == [
        "crop 40 x 30, flipped", "hue -0.05", "Rotate -30 deg", "Equalize", "Color x 1.90", "Cutout 80 px",
        "Solarize nothing", "erased 4 x 3",
    ]  # fmt: skip
    assert Draw(flip=True).words() == ["flipped"]
    assert Draw().words() == []


def test_the_strengths_are_the_papers() -> None:
    assert {name: tuple(setting) for name, setting in AUGREG.items()} == {
        "none": (0, 0, 0.0),
        "light1": (2, 0, 0.0),
        "light2": (2, 10, 0.2),
        "medium1": (2, 15, 0.2),
        "medium2": (2, 15, 0.5),
        "strong1": (2, 20, 0.5),
        "strong2": (2, 20, 0.8),
    }
    named = AugmentConfig(augreg="medium2")
    spelt = AugmentConfig(randaugment=RandAugmentConfig(num_ops=2, magnitude=15, ops="big_vision"))
    for ordinal in range(20):
        assert augment(named).draw(9, 9, epoch=0, ordinal=ordinal) == augment(spelt).draw(
            9, 9, epoch=0, ordinal=ordinal
        )


def photo(orientation: object, form: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    pixels = np.random.default_rng(4).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    image, exif, buffer = Image.fromarray(pixels).resize(size), Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(buffer, form, exif=exif.tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_turned_photo_stands_upright_where_that_is_asked(orientation: int | None, form: str) -> None:
    content = photo(orientation, form)
    stored, upright = decode(content), decode(content, upright=True)
    assert stored.shape == (3, 16, 24)
    expected = Image.fromarray(stored.permute(1, 2, 0).numpy())
    expected.getexif()[0x0112] = orientation or 1
    turned = np.asarray(ImageOps.exif_transpose(expected))
    assert np.array_equal(upright.permute(1, 2, 0).numpy(), turned)
    # As `data pack --upright` turns it.
    assert load(content, upright=True).image.size == (upright.shape[2], upright.shape[1])
    assert torch.equal(upright, stored) == (orientation not in range(2, 9))


def test_damaged_exif_data_turn_nothing() -> None:
    content = photo(6)
    at = content.index(b"Exif\0\0") + 6
    for end in range(at, at + 20):
        damaged = content[:at] + bytes(end - at) + content[end:]
        pixels = decode(damaged, upright=True)
        assert pixels.shape in {(3, 16, 24), (3, 24, 16)}
    assert torch.equal(decode(content[:at] + bytes(20) + content[at + 20 :], upright=True), decode(content))
    assert math.prod(decode(content, upright=True).shape) == 3 * 16 * 24
