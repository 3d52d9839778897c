"""Law 1 for changes of images: the same bits at every world size, number of threads, position and restart."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.streams import digest, global_batches, recipe
from vit_dist.cli.main import main
from vit_dist.config.schema import Recipe
from vit_dist.core.world import World
from vit_dist.data.augment import Augment
from vit_dist.data.decode import centre
from vit_dist.data.gallery import read, rows
from vit_dist.data.manifest import read_manifest
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import EvalBatches, TrainStream

CHANGES = {
    "randaugment": ("data.augment.randaugment={}",),
    "strength": ("data.augment.augreg=strong2",),
    "jitter": ("data.augment.jitter={brightness: 0.5, contrast: 0.5, saturation: 0.5, hue: 0.2}",),
    "erase": ("data.augment.erase={fill: noise}",),
    "all": ("data.augment={crop: flip, randaugment: {ops: big_vision, magnitude: 15}, jitter: {hue: 0.1}, erase: {}}",),
}


@pytest.mark.parametrize("changes", list(CHANGES))
def test_images_are_changed_alike_by_any_number_of_ranks_and_threads_and_after_a_restart(
    small_set: str, changes: str
) -> None:
    config = recipe(small_set, *CHANGES[changes], "data.lanes=8", "data.window=5", "data.decode_threads=1")
    whole = global_batches(config, 1, 0, 6)
    many = recipe(small_set, *CHANGES[changes], "data.lanes=8", "data.window=5", "data.decode_threads=7")
    for size in 2, 3:
        torch.manual_seed(size)
        assert digest(global_batches(many, size, 0, 6)) == digest(whole)
    assert digest(global_batches(many, 4, 4 * 12, 2)) == digest(whole[4:6])
    plain = global_batches(recipe(small_set, "data.lanes=8", "data.window=5"), 1, 0, 6)
    differ = [not torch.equal(a[2], b[2]) for a, b in zip(whole, plain, strict=True)]
    assert all(differ)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, plain, strict=True)), (
        "the order has nothing to do with it"
    )


def test_an_example_is_changed_in_another_way_in_each_epoch(small_set: str) -> None:
    config = recipe(small_set, "data.augment={crop: none, randaugment: {}}", "global_batch=200")
    first, second = ({int(o): i for o, i in zip(b[0], b[2], strict=True)} for b in global_batches(config, 1, 0, 2))
    same = sum(torch.equal(first[ordinal], second[ordinal]) for ordinal in first)
    # Both draws may leave an image as it is.
    assert same < 20


def test_what_is_shown_is_what_training_gets(small_set: str) -> None:
    config = recipe(small_set, *CHANGES["all"])
    data = open_training_set(config)
    ((_, _, images),) = global_batches(config, 1, 0, 1)
    shown = rows(data, config, start=0, images=12, draws=2)
    assert all(torch.equal(row.views[2][0], image) for row, image in zip(shown, images, strict=True))
    assert all(not torch.equal(row.views[2][0], row.views[3][0]) for row in shown)
    assert [row.views[0][0].shape for row in shown] == [(3, 28, 28)] * 12
    assert {words[0] for row in shown for _, words in row.views[1:]} == {"evaluation", "epoch 0", "epoch 1"}


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a manifest: one photo of 40 x 20 pixels whose EXIF data say that it lies on its side."""
    folder = tmp_path_factory.mktemp("lying")
    (folder / "photos" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((40, 20)).save(folder / "photos" / "a" / "one.jpg", exif=exif.tobytes())
    assert main(["data", "pack", str(folder / "photos"), str(folder / "shards")]) == 0
    return str(folder / "shards" / "manifest.json")


def of_one(manifest: str, *overrides: str) -> Recipe:
    return recipe(manifest, "global_batch=1", "data.augment=none", *overrides)


@pytest.mark.parametrize("upright", [False, True])
def test_photos_are_turned_for_training_and_evaluation_alike(lying: str, upright: bool) -> None:
    config = of_one(lying, f"data.upright={str(upright).lower()}")
    pixels = read(open_training_set(config), 0, upright=upright).pixels
    assert pixels is not None
    assert pixels.shape[1:] == ((40, 20) if upright else (20, 40))
    with TrainStream(open_training_set(config), config, World(), 0) as stream:
        ((batch, _),) = itertools.islice(stream, 1)
    expected = Augment.of(config.data, config.seed).apply(pixels, epoch=0, ordinal=0)
    assert torch.equal(batch.images[0], expected)
    (seen,) = list(EvalBatches(read_manifest(lying), config.data, World(), 4))
    assert seen is not None
    assert torch.equal(seen.images[0], centre(pixels, 28, 0.875))


@pytest.mark.parametrize("side", [28, 29, 32, 57, 448])
def test_evaluation_resizes_to_as_many_pixels_as_are_asked_for(lying: str, side: int) -> None:
    config = of_one(lying, f"data.val_resize={side}")
    (seen,) = list(EvalBatches(read_manifest(lying), config.data, World(), 4))
    pixels = read(open_training_set(config), 0, upright=False).pixels
    assert seen is not None
    assert pixels is not None
    resized = torch.nn.functional.interpolate(
        pixels[None].float(), size=(side, 2 * side), mode="bilinear", antialias=True, align_corners=False
    )[0]
    top, left = (side - 28) // 2, (2 * side - 28) // 2
    expected = resized[:, top : top + 28, left : left + 28]
    assert (seen.images[0].float() - expected).abs().max() <= 1
    for size in range(1, 400):
        for larger in range(size, size + 40):
            assert round(size / (size / larger)) == larger


def test_the_picture_is_written_by_the_command(
    small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"base: demo\ndata: {{num_classes: 4, train: {small_set}, val: ''}}\nglobal_batch: 8\n"
    )
    words = [str(tmp_path / "r.yaml"), "data.augment.augreg=medium2", "--images", "3", "--draws", "2", "--start", "6"]
    assert main(["data", "show", *words, "--out", str(tmp_path / "views.png")]) == 0
    assert "3 examples" in capsys.readouterr().out
    with Image.open(tmp_path / "views.png") as picture:
        # Stored, evaluation, two epochs, mixed.
        assert picture.width == 5 * 176 + 8
        assert picture.height > 3 * 190
        assert len(picture.getcolors(1 << 20)) > 500
