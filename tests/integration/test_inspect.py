"""`vit-dist inspect` on runs and on weights of each form, and the pictures that a run logs of itself."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import trains_here
from tests.shards import image_bytes, write_set
from vit_dist.cli.inspect import main
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import ConfigError, DataError, VitDistError
from vit_dist.core.events.reader import read_run
from vit_dist.core.registry import MODELS
from vit_dist.core.world import World
from vit_dist.inspect.images import read_files
from vit_dist.models import ModelConfig
from vit_dist.models.weights.files import write_weights
from vit_dist.train.attempt import attempt
from vit_dist.train.checkpoint.weights import fresh_weights
from vit_dist.train.evaluate import evaluate

RECIPE = """
global_batch: 12
horizon: 4 steps
precision: fp32
model: vit-test
data: {num_classes: 4, image_size: 28, augment: none}
optim: {name: adamw, lr: 1e-3}
schedule: {name: constant, warmup: 0 steps}
engine: plain
eval: {every: 2 steps}
checkpoint: {every: 4 steps, probe: 0}
guards: {hang: 0s}
ema: {decay: 0.5}
evaluators: [{name: inspect, images: 5, show: [rollout, distance]}]
"""


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with trains_here():
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, small_set: str, small_val: str) -> Path:
    attempt(
        load_recipe(str(recipe), [f"data.train={small_set}", f"data.val={small_val}"]), recipe.parent / "run", World()
    )
    return recipe.parent / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(6):
        (tmp_path / "photos" / f"{i}.png").write_bytes(image_bytes(i, i))
    return tmp_path / "photos"


def weights_of(name: str, out: Path, **settings: object) -> Path:
    cls, defaults = MODELS.lookup(name)
    config = cls(**{"name": name, **defaults, **settings})
    assert isinstance(config, ModelConfig)
    write_weights(fresh_weights(config, 4, 28, 0), out)
    return out


def seen(out: Path) -> list[str]:
    return list(json.loads((out / "inspect.json").read_text())["views"])


def test_a_run_logs_pictures_of_itself_and_how_far_it_looks(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tb")).Reload()
    of_weights = {"inspect/rollout", "inspect/distance"}
    assert set(log.Tags()["images"]) == of_weights | {f"ema/{tag}" for tag in of_weights}
    for picture in log.Images("inspect/rollout"):
        image = Image.open(io.BytesIO(picture.encoded_image_string))
        assert image.size == (picture.width, picture.height)
    assert [picture.step for picture in log.Images("inspect/distance")] == [2, 4]
    # Our own reader passes by pictures.
    distance = read_run(str(run / "tb")).scalars["inspect/attention_distance"]
    assert distance.steps.tolist() == [2, 4]
    assert all(0 < value < 28 for value in distance.values)


def test_pictures_of_another_set_have_tags_of_their_own(run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    other = write_set(tmp_path / "other", num_samples=6, samples_per_shard=6, num_classes=4, first=900)
    shutil.copytree(run, tmp_path / "run")
    asked = [f"evaluators=[{{name: inspect, images: 5, show: [distance], set: {other}}}]"]
    values = evaluate(load_recipe(str(tmp_path / "run" / "recipe.yaml"), asked), tmp_path / "run", World())
    tag, of_average = values
    assert tag.startswith("inspect@")
    assert of_average.startswith("ema@")
    log = EventAccumulator(str(tmp_path / "run" / "tb")).Reload()
    assert len(log.Images("inspect/distance")) == 2
    assert len(log.Images(f"{tag.partition('/')[0]}/distance")) == 1


@pytest.mark.parametrize(
    ("more", "tag"), [([], "inspect/attention_distance"), (["--average"], "ema/inspect/attention_distance")]
)
def test_a_run_is_looked_at_with_its_own_validation_set(
    more: list[str],
    tag: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(run), "--show", "distance", "--images", "5", *more]) == 0
    said = capsys.readouterr().out
    assert said.startswith("vit-test, 5 images of 28 pixels\n  mean attention distance: ")
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("inspect-run/inspect.json"))
    assert (record["step"], record["views"]) == ("4", ["distance"])
    # The last value of the log is of the same model and the same images.
    rows = (tmp_path / "inspect-run" / "distance.csv").read_text().splitlines()[1:]
    mean = sum(float(row.split(",")[2]) for row in rows) / len(rows)
    assert mean == pytest.approx(float(read_run(str(run / "tb")).scalars[tag].values[-1]))


@pytest.mark.parametrize(
    ("name", "file", "more", "views"),
    [
        ("hybrid-test", "h.safetensors", ["--image-size", "56"], ["distance"]),
        ("vit-test", "g.npz", ["--model", "vit-test"], ["positions", "filters"]),
        ("vit-test", "t.timm.safetensors", ["--model", "vit-test"], ["positions"]),
        ("vit-test", "folder/", [], ["layers"]),
        ("bit-test", "b.safetensors", [], ["field"]),
    ],
)
def test_weights_of_each_form_are_looked_at(
    tmp_path: Path, photos: Path, name: str, file: str, more: list[str], views: list[str]
) -> None:
    source = weights_of(name, tmp_path / file) if not file.endswith("/") else tmp_path / "folder"
    if file.endswith("/"):
        weights_of(name, f"{tmp_path}/{file}")  # type: ignore[arg-type]
    shown = [word for view in views for word in ("--show", view)]
    images = [str(photos)] if views[0] not in ("positions", "filters") else []
    assert main([str(source), *images, *more, *shown, "--out", str(tmp_path / "out")]) == 0
    assert seen(tmp_path / "out") == views


def test_without_images_what_needs_none_is_drawn_and_the_page_says_so(tmp_path: Path) -> None:
    source = weights_of("vit-test", tmp_path / "w.safetensors", position_embedding="relative")
    assert main([str(source), "--out", str(tmp_path / "out")]) == 0
    assert seen(tmp_path / "out") == ["filters"]
    page = (tmp_path / "out" / "inspect.html").read_text()
    assert "needs images, and none were given" in page
    assert "its positions are relative" in page


def words_of(tmp_path: Path, *words: str) -> list[str]:
    return [str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out"), *words]


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--show", "rolout"], ConfigError, "'rolout' is nothing to look at; did you mean 'rollout'"),
        (["--show", "rollout"], ConfigError, "--show rollout: needs images: name some"),
        (["--images", "0"], ConfigError, "--images=0: at least 1 is needed"),
        (["--images", "3"], ConfigError, "--images 3: needs images"),
        (["PHOTOS", "--images", "7"], ConfigError, "has 6 images; ask for 6 or fewer"),
        (["PHOTOS", "--data", "set"], ConfigError, "give images or a set, not both"),
        (["PHOTOS", "--show", "filters"], ConfigError, "no view that was asked for by --show needs any"),
        (["nowhere"], ConfigError, "nowhere: no such image or folder of images"),
        (["pool=map"], ConfigError, "settings (k=v) are those of a model; give --model NAME"),
        (["--model", "vit-test", "--image-size", "30"], ConfigError, "image_size=30 does not divide into the 7-pixel"),
        (["PHOTOS", "--device", "toaster"], ConfigError, "--device toaster: no device is called so"),
        (["BROKEN"], DataError, "broken.png: not an image of a known format; leave it out"),
        (["--model", "vit-demo"], DataError, "not the weights of vit-demo"),
    ],
)
def test_bad_input_is_told_by_name(
    tmp_path: Path, photos: Path, words: list[str], error: type[VitDistError], said: str
) -> None:
    weights_of("vit-test", tmp_path / "w.safetensors")
    (tmp_path / "broken.png").write_bytes(b"none")
    places = {"PHOTOS": str(photos), "BROKEN": str(tmp_path / "broken.png"), "nowhere": str(tmp_path / "nowhere")}
    with pytest.raises(error) as caught:
        main(words_of(tmp_path, *(places.get(word, word) for word in words)))
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sources_that_cannot_be_looked_at_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        main([str(tmp_path / "gone.npz")])
    with pytest.raises(ConfigError, match="says its model; leave --model out"):
        main([str(run), "--model", "vit-test", "--out", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match=r"--average: .* is a file of weights"):
        main([str(weights_of("vit-test", tmp_path / "w.safetensors")), "--average", "--out", str(tmp_path / "out")])
    weights_of("vit-test", tmp_path / "g.npz")
    (tmp_path / "g.npz.json").unlink()
    with pytest.raises(ConfigError, match=r"an \.npz does not say its model; give it: --model"):
        main([str(tmp_path / "g.npz"), "--out", str(tmp_path / "out")])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "g.npz").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.npz: not a whole \.npz"):
        main([str(tmp_path / "cut.npz"), "--model", "vit-test", "--out", str(tmp_path / "out")])


def test_photos_are_turned_where_the_model_saw_them_so(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8)[:, None, None], (1, 40, 3))).save(
        tmp_path / "a.jpg", exif=exif
    )
    plain, turned = (
        read_files([tmp_path / "a.jpg"], 28, 1.0, upright=upright)[0, 0].float() for upright in (False, True)
    )
    assert plain.std(0).mean() > 10 * plain.std(1).mean()
    assert turned.std(1).mean() > 10 * turned.std(0).mean()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["model=bit-test"], "bit-test has none; leave it out"),
        (["data.val="], "evaluators: inspect has no images: give it `set: URL`"),
        (["evaluators=[{name: inspect, show: [distance, distance]}]"], "expected each view once"),
        (["evaluators=[{name: inspect, show: [filters]}]"], "evaluators"),
    ],
)
def test_recipes_that_cannot_be_looked_at_are_refused_before_they_train(
    recipe: Path, small_set: str, small_val: str, changes: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(recipe), [f"data.train={small_set}", f"data.val={small_val}", *changes])
    assert said in str(caught.value)


def test_a_set_of_fewer_images_is_refused_before_training(recipe: Path, small_set: str, small_val: str) -> None:
    words = [f"data.train={small_set}", f"data.val={small_val}", "evaluators=[{name: inspect, images: 128}]"]
    found = load_recipe(str(recipe), words)
    with pytest.raises(ConfigError, match=r"inspect: images=128, and .* has \d+ images; ask for fewer"):
        found.evaluators[0].check_sets(found)  # type: ignore[attr-defined]


def test_looking_leaves_the_weights_as_they_are(tmp_path: Path, photos: Path) -> None:
    from vit_dist.inspect import look_inside

    config = MODELS.lookup("vit-test")
    model = config[0](**{"name": "vit-test", **config[1]}).build(num_classes=2, image_size=28)  # type: ignore[attr-defined]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    look_inside(model, torch.zeros(2, 3, 28, 28, dtype=torch.uint8), image_size=28)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_folder_of_hugging_face_is_looked_at_in_the_colours_that_it_says(tmp_path: Path) -> None:
    config = load_recipe("demo", ["model=vit-test"]).model
    assert isinstance(config, ModelConfig)
    weights = fresh_weights(config, 4, 28, 0)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / "photos" / f"{number}.png").write_bytes(image_bytes(number, number))

    def distances(folder: str) -> list[list[str]]:
        assert (
            main(
                [
                    str(tmp_path / folder),
                    str(tmp_path / "photos"),
                    "--show",
                    "distance",
                    "--out",
                    str(tmp_path / f"look-{folder}"),
                ]
            )
            == 0
        )
        return [line.split(",") for line in (tmp_path / f"look-{folder}" / "distance.csv").read_text().splitlines()]

    for folder in ("own", "other", "undone"):
        write_weights(weights, f"{tmp_path}/{folder}/")
        if folder == "other":
            file = tmp_path / folder / "preprocessor_config.json"
            file.write_text(
                json.dumps({**json.loads(file.read_text()), "image_mean": [0.3] * 3, "image_std": [0.2] * 3})
            )
            # The same by weights that undo it: (x - 0.3) / 0.2 = 2.5 (2 x - 1) + 1.
            kernel = weights.state["patch_embed.proj.weight"]
            weights.state["patch_embed.proj.bias"] += kernel.sum(dim=(1, 2, 3))
            kernel *= 2.5
    own, other, undone = map(distances, ("own", "other", "undone"))
    assert own != other
    assert [
        [pytest.approx(float(c), rel=1e-3) if c[:1].isdigit() and "." in c else c for c in row] for row in undone
    ] == [[float(c) if c[:1].isdigit() and "." in c else c for c in row] for row in other]
