"""`vit-dist predict`: what evaluation says of the same images, from any form of weights; what is wrong, in words."""

from __future__ import annotations

import contextlib
import csv
import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import trains_here
from tests.laws.test_resume import recipe_file
from tests.shards import image_bytes
from vit_dist.cli.main import main
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.events.reader import read_run
from vit_dist.core.files import write_bytes
from vit_dist.core.world import World
from vit_dist.models.weights.files import write_weights
from vit_dist.predict.classifier import OpenOptions, open_classifier
from vit_dist.predict.run import predict
from vit_dist.train.attempt import attempt
from vit_dist.train.checkpoint.weights import checkpoint_weights

SETTINGS = ["engine.name=plain", "precision=fp32", "horizon=30 steps", "guards.hang=0s", "checkpoint.every=30 steps"]
SETTINGS += ["eval.every=30 steps", "data.val_crop=0.9", "data.upright=true", "ema={decay: 0.9}"]
NAMES = ("hat", "tie", "cap", "bag")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, small_set: str, small_val: str) -> Path:
    """A run that has learned a little, so that some of its predictions are right and some wrong."""
    folder = tmp_path_factory.mktemp("predicting")
    with trains_here():
        attempt(load_recipe(str(recipe_file(folder, small_set, small_val)), SETTINGS), folder / "run", World())
    return folder / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/val/CLASS/*.png, five of each class, with a file that is no image."""
    for label, name in enumerate(NAMES):
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        for number in range(5):
            path = tmp_path / "photos" / "val" / name / f"{number}.png"
            path.write_bytes(image_bytes(900 + 10 * label + number, label))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["predict", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_over_a_set_the_first_predictions_are_as_accurate_as_evaluation_says(
    run_dir: Path, small_val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = read_run(str(run_dir / "tb")).scalars["val/top1"].values[-1]
    words = [run_dir, small_val, "--json", tmp_path / "o.json", "--batch", 7, "--device", "cpu"]
    code, out, err = asked(capsys, *words)
    told = json.loads((tmp_path / "o.json").read_text())
    assert code == 0
    assert told["accuracy"]["top1"] == pytest.approx(logged, abs=1e-7)
    assert told["accuracy"]["images"] == len(told["images"]) == 45
    # What is compared says something: neither all nor none.
    assert 0.3 < logged < 1
    assert sum(entry["right"] for entry in told["accuracy"]["classes"]) == told["accuracy"]["right"]
    assert f"top-1 {logged:.4f}" in out
    assert "probabilities: softmax" in err
    assert "shorter side to 31, the middle 28 x 28, upright" in err
    averaged = read_run(str(run_dir / "tb")).scalars["ema/val/top1"].values[-1]
    assert averaged != logged
    _, out, err = asked(capsys, run_dir, small_val, "--average", "--device", "cpu")
    assert f"top-1 {averaged:.4f}" in out
    assert "the average of its weights" in err


def test_classes_of_folders_are_those_of_the_same_names_and_a_csv_has_them(
    run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = asked(capsys, run_dir, photos, "--csv", tmp_path / "o.csv", "--grid", tmp_path / "o.png")
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    assert code == 0
    assert [row["known"] for row in rows] == [name for name in sorted(NAMES) for _ in range(5)]
    assert all((row["class_1"] == row["known"]) == (row["right"] == "1") for row in rows)
    assert all(sum(float(row[f"probability_{i}"]) for i in range(1, 5)) == pytest.approx(1) for row in rows)
    assert rows[0]["image"] == f"{photos}/val/bag/0.png"
    assert "1 file does not end like an image" in err
    assert "top-1" in out
    picture = Image.open(tmp_path / "o.png").convert("RGB")
    # Frames of the first row of six: green is right, red is wrong.
    frames = [picture.getpixel((14 + 190 * column, 14)) for column in range(6)]
    colours = {"1": (0x1B, 0x7F, 0x3B), "0": (0xC6, 0x28, 0x28)}
    assert frames == [colours[row["right"]] for row in rows[:6]]


def test_weights_of_all_forms_say_the_same_as_their_run(run_dir: Path, photos: Path, tmp_path: Path) -> None:
    weights = checkpoint_weights(run_dir)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES) + "\n")
    there = predict(open_classifier(str(run_dir)), str(photos))
    assert {one.labels for one in there} == {(i,) for i in range(4)}
    for name in ("w.safetensors", "w.timm.safetensors", "w.npz", "folder/"):
        write_weights(weights, f"{tmp_path}/{name}")
        # Neither .npz nor Hugging Face's folder says the crop; an .npz does not even say its model.
        said = OpenOptions(crop=0.9, config=weights.config if name.endswith(".npz") else None)
        classifier = open_classifier(f"{tmp_path}/{name}", said if "." not in name or ".npz" in name else OpenOptions())
        assert classifier.classes == NAMES
        found = predict(classifier, str(photos), batch=20)
        assert [[n for n, _ in one.top] for one in found] == [[n for n, _ in one.top] for one in there]
        torch.testing.assert_close(
            torch.tensor([[p for _, p in one.top] for one in found]),
            torch.tensor([[p for _, p in one.top] for one in there]),
        )


def test_images_that_cannot_be_read_are_named_and_the_rest_goes_on(
    run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "val" / "cap" / "2.png").write_bytes(b"GIF89a and no more")
    code, out, err = asked(capsys, run_dir, photos, "--top", 1)
    assert code == 1
    assert "of 19 images of a known class" in out
    assert len([line for line in out.splitlines() if line.startswith(str(photos))]) == 20
    assert f"{photos}/val/cap/2.png: cannot be read" in err
    assert "1 image of 20 could not be read" in err


def test_a_sigmoid_trained_models_probabilities_stand_alone(
    run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = asked(capsys, run_dir, photos / "val" / "hat" / "0.png", "--loss", "sigmoid", "--json", "-")
    (image,) = json.loads(out)["images"]
    assert code == 0
    assert "probabilities: sigmoid" in err
    logits = open_classifier(str(run_dir)).logits
    view = open_classifier(str(run_dir)).view((photos / "val" / "hat" / "0.png").read_bytes())
    expected = logits(view[None]).sigmoid()[0].sort(descending=True).values
    assert [entry["probability"] for entry in image["predictions"]] == pytest.approx(expected.tolist())


def test_directories_that_are_no_classes_have_no_part_in_the_accuracy_and_are_named(
    run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "val" / "tie").rename(photos / "val" / "scarf")
    code, out, err = asked(capsys, run_dir, photos / "val")
    assert code == 0
    assert "5 images in directories that are no classes of the model ('scarf'), count for no accuracy" in err
    assert "of 15 images of a known class" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}", "{tmp}/nowhere"], "no such file or folder"),
        (["{run}", "{tmp}/empty"], "no images there (1 other file there)"),
        (["{run}", "{tmp}/empty/*.jpg"], "no file fits this pattern"),
        (["{run}", "{tmp}/set.tar"], "a tar; `vit-dist data index"),
        (["{tmp}/empty", "{photos}"], "no weights are read from this folder"),
        (["{tmp}/gone.npz", "{photos}"], "no such file"),
        (["{tmp}/names.txt", "{photos}"], "weights in a file of this name are not known"),
        (["{run}", "{photos}", "--classes", "{tmp}/names.txt"], "2 names, but the head of"),
        (["{run}", "{photos}", "--model", "ViT-B/16"], "is a checkpoint or run of ours, which says its model"),
        (["{run}", "{photos}", "--image-size", "30"], "30"),
        (["{tmp}/w.safetensors", "{photos}", "--average"], "is a file of weights; give a run or a checkpoint"),
        (["{run}", "{photos}", "--device", "cuda:99"], "--device 'cuda:99'"),
        (["{run}", "{photos}", "--device", "quantum"], "no device is called so"),
        (["{run}", "{photos}", "--crop", "1.5"], "--crop=1.5"),
        (["{run}", "{photos}", "--grid", "o.jpg"], "ends in .png"),
        (["{run}", "{photos}", "--set", "pool=map"], "give --model NAME"),
        (["{run}", "{photos}", "--top", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    words: list[str], said: str, run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    (tmp_path / "set.tar").write_bytes(b"")
    (tmp_path / "w.safetensors").write_bytes(b"")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    filled = [word.format(run=run_dir, tmp=tmp_path, photos=photos) for word in words]
    code, _, err = asked(capsys, *filled)
    assert code in (1, 2)
    assert said in " ".join(err.split())


def test_a_run_without_a_checkpoint_and_weights_of_another_model_are_told(
    run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_bytes((run_dir / "recipe.yaml").read_bytes())
    assert "no checkpoint in it to predict with" in asked(capsys, tmp_path / "begun", photos)[2]
    write_weights(checkpoint_weights(run_dir), tmp_path / "w.npz")
    code, _, err = asked(capsys, tmp_path / "w.npz", photos, "--model", "bit-demo")
    assert code == 1
    assert "not the weights of bit-demo" in err


def test_a_folder_of_hugging_face_with_other_colours_is_seen_by_these(run_dir: Path, tmp_path: Path) -> None:
    write_weights(checkpoint_weights(run_dir), f"{tmp_path}/hf/")
    file = tmp_path / "hf" / "preprocessor_config.json"
    said: dict[str, Any] = {**json.loads(file.read_text()), "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}
    file.write_text(json.dumps(said))
    classifier, plain = open_classifier(f"{tmp_path}/hf"), open_classifier(str(run_dir))
    views = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    mean, std = (torch.tensor(said[key])[:, None, None] for key in ("image_mean", "image_std"))
    with torch.no_grad():
        expected = plain.model((views / 255 - mean) / std)
    torch.testing.assert_close(classifier.logits(views), expected)
    assert not torch.allclose(plain.logits(views), expected)


@pytest.mark.s3
def test_weights_and_images_on_a_store_and_a_web_server_are_read_there(
    run_dir: Path, photos: Path, s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(checkpoint_weights(run_dir), tmp_path / "w.safetensors")
    write_bytes(f"{s3}/predict/w.safetensors", (tmp_path / "w.safetensors").read_bytes())
    for name in NAMES[:2]:
        write_bytes(f"{s3}/predict/photos/{name}/0.png", (photos / "val" / name / "0.png").read_bytes())
    with serving(photos) as url:
        words = [f"{s3}/predict/w.safetensors", f"{s3}/predict/photos", f"{url}/val/cap/0.png", f"{url}/val/cap/9.png"]
        code, out, err = asked(capsys, *words, "--json", "-")
    images = json.loads(out)["images"]
    here = predict(open_classifier(str(run_dir)), *(str(photos / "val" / name / "0.png") for name in NAMES[:3]))
    ranked = [[entry["number"] for entry in image["predictions"]] for image in images[:3]]
    assert ranked == [[number for number, _ in one.top] for one in here]
    assert [image["known"][0]["class"] for image in images[:2]] == ["hat", "tie"]
    assert code == 1
    assert f"{url}/val/cap/9.png: cannot be read" in err


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """URL of a web server of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_names_of_another_number_than_the_head_has_are_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 names, but the head of .* has 4 classes"):
        open_classifier(str(run_dir), OpenOptions(classes=("one",)))


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
