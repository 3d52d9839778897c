"""Weights that go out take the names of their classes along, and say how others load them and feed them images."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torchvision.transforms.v2.functional import pil_to_tensor

from tests.unit.models.weights.test_weights import MODELS_IN_TIMM, images, logits, weights
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.data.decode import centre, normalize
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights
from vit_dist.models.weights.notes import clean_classes, sidecar_of
from vit_dist.models.weights.viewed import Viewed

NAMES = ("hat", "tie", "", "Ä, b", "<b>", "d`e", "it's", '"q"', "ninth", "tenth class")
FORMS = ("w.npz", "w.safetensors", "w.timm.safetensors", "folder/")


def named(classes: tuple[str, ...] = NAMES) -> Weights:
    return replace(weights("vit-test", gelu="exact"), classes=classes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [NAMES, NAMES[:2], ("x",) * 10, ()])
def test_names_of_classes_go_out_and_come_back(form: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    before = named(classes)
    write_weights(before, f"{tmp_path}/{form}")
    after = read_weights(tmp_path / form, LoadOptions(before.config, image_size=32))
    padded = (*classes, *[""] * (10 - len(classes))) if classes and form == "folder/" else classes
    assert after.classes == padded
    assert read_weights(tmp_path / form, LoadOptions(before.config, 3, 32, head="new")).classes == ()


@pytest.mark.parametrize(
    ("names", "cleaned"),
    [
        ((" hat ", "tie"), ("hat", "tie")),
        (("a\nb\tc", "\x1b[31m"), ("a\\nb\\tc", "\\x1b[31m")),
        (("A\u0308", "\u202edo"), ("Ä", "\\u202edo")),
        (("\ud800", "n" * 9000), ("\\ud800", "n" * 500)),
        (("", " "), ()),
        ((), ()),
    ],
)
def test_names_are_cleaned(names: tuple[str, ...], cleaned: tuple[str, ...], tmp_path: Path) -> None:
    assert clean_classes(names, 10, "w") == cleaned
    for form in FORMS:
        before = named(names)
        write_weights(before, f"{tmp_path}/{form}")
        after = read_weights(tmp_path / form, LoadOptions(before.config, image_size=32)).classes
        assert after[: len(cleaned)] == cleaned


@pytest.mark.parametrize("names", [["a"] * 11, "text", {"0": "a"}, [1, 2], None, ["n" * 200_000]])
def test_names_that_cannot_be_are_refused(names: Any) -> None:
    with pytest.raises(DataError, match="w: "):
        clean_classes(names, 10, "w")


@pytest.mark.parametrize("said", ['["a"]' * 2, "[" * 5000, '{"0": "x"}', json.dumps(["x"] * 11), "[1]"])
def test_forged_names_in_a_header_are_refused(said: str, tmp_path: Path) -> None:
    write_weights(named(()), tmp_path / "w.safetensors")
    from safetensors.torch import load_file, save_file

    with safe_open(tmp_path / "w.safetensors", "pt") as opened:
        metadata = {**opened.metadata(), "classes": said}
    save_file(load_file(tmp_path / "w.safetensors"), tmp_path / "forged.safetensors", metadata)
    with pytest.raises(DataError, match=r"forged\.safetensors: "):
        read_weights(tmp_path / "forged.safetensors")


@pytest.mark.parametrize("content", ["{}", "nonsense", '{"sha256": "00", "classes": ["a"]}', "[" * 5000, ""])
def test_names_beside_another_npz_are_not_taken(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = named()
    write_weights(before, tmp_path / "w.npz")
    sidecar_of(tmp_path / "w.npz").write_text(content)
    assert read_weights(tmp_path / "w.npz", LoadOptions(before.config)).classes == ()
    assert "the classes have no names" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="does not say its model; give it: --model"):
        read_weights(tmp_path / "w.npz")


@pytest.mark.parametrize("name", ["w.npz", "folder/", "w.safetensors", "w.timm.safetensors"])
@pytest.mark.parametrize("recipe", ["", "data: {val_crop: 0.5, upright: true}\nloss: {name: sigmoid}\n"])
def test_every_form_keeps_how_evaluation_saw_images(name: str, recipe: str, tmp_path: Path) -> None:
    viewed = Viewed(crop=0.5, upright=True, loss="sigmoid")
    # Weights of a run's copies on a store come without its recipe.
    before = replace(named(), viewed=viewed, facts={"recipe": recipe} if recipe else {})
    write_weights(before, f"{tmp_path}/{name}")
    after = read_weights(tmp_path / name)
    assert after.viewed == viewed
    if name == "w.npz":
        assert after.config == before.config


def test_colours_of_others_stay_in_a_folder_and_are_told_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = replace(named(), viewed=Viewed(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2)))
    write_weights(before, f"{tmp_path}/folder/")
    assert read_weights(tmp_path / "folder").viewed == before.viewed
    assert capsys.readouterr().err == ""
    write_weights(before, tmp_path / "w.safetensors")
    assert "--mean 0.4,0.5,0.6 --std 0.2,0.2,0.2" in capsys.readouterr().err


def test_hugging_faces_folder_has_a_label_for_each_class(tmp_path: Path) -> None:
    write_weights(named(("hat", "", "hat")), f"{tmp_path}/folder/")
    said = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert [said["id2label"][str(i)] for i in range(4)] == ["hat", "LABEL_1", "hat", "LABEL_3"]
    assert (said["label2id"]["hat"], said["label2id"]["LABEL_9"]) == (0, 9)


# Four lines for timm


def run_notes(path: Path) -> dict[str, Any]:
    """What the code of the notes beside a file makes."""
    (code,) = re.findall(r"```python\n(.*?)```", path.with_name(f"{path.name}.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) == 4
    names: dict[str, Any] = {}
    with contextlib.chdir(path.parent):
        exec(code, names)
    return names


@pytest.mark.parametrize(("name", "changes"), MODELS_IN_TIMM)
def test_the_notes_load_a_file_into_timms_model_with_our_logits(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = replace(weights(name, 64 if "hybrid" in name else 32, **changes), classes=NAMES, viewed=Viewed(crop=0.5))
    path = tmp_path / "it's.timm.safetensors"
    write_weights(ours, path)
    made = run_notes(path)
    with torch.no_grad():
        theirs = made["model"](images(ours.image_size))
    torch.testing.assert_close(logits(ours), theirs, rtol=1e-4, atol=1e-5)
    with safe_open(path, "pt") as opened:
        said = json.loads(opened.metadata()["timm"])
    assert said["label_names"] == [*NAMES[:2], "LABEL_2", *NAMES[3:]]
    assert said["pretrained_cfg"]["crop_pct"] == 0.5
    assert said["pretrained_cfg"]["mean"] == said["pretrained_cfg"]["std"] == [0.5] * 3


@pytest.mark.parametrize("crop", [0.875, 0.5, 1.0])
def test_the_notes_feed_images_as_evaluation_does(crop: float, tmp_path: Path) -> None:
    write_weights(replace(named(), viewed=Viewed(crop=crop)), tmp_path / "w.timm.safetensors")
    pixels = torch.randint(0, 256, (120, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    theirs = run_notes(tmp_path / "w.timm.safetensors")["images"](image)
    ours = normalize(centre(pil_to_tensor(image), 32, crop)[None], torch.float32)[0]
    assert (theirs - ours).abs().mean() < 0.01


@pytest.mark.s3
def test_what_stands_beside_a_file_goes_to_a_store_and_comes_back(s3: str, tmp_path: Path) -> None:
    from vit_dist.core.files import read_bytes
    from vit_dist.train.checkpoint.weights_remote import downloaded, uploaded

    before = named()
    for name, beside in (("w.npz", "w.npz.json"), ("w.timm.safetensors", "w.timm.safetensors.md")):
        with uploaded(f"{s3}/notes/{name}") as here:
            write_weights(before, here)
        assert read_bytes(f"{s3}/notes/{beside}")
        with downloaded(f"{s3}/notes/{name}") as here:
            assert read_weights(here, LoadOptions(before.config)).classes == NAMES
