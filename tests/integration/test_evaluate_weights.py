"""`vit-dist evaluate` of weights without a run: every form gives the same values, and mistakes are said early."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import trains_here
from vit_dist.cli.evaluate import main
from vit_dist.cli.models.options import model_config
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.models.weights.files import read_weights, write_weights
from vit_dist.train.checkpoint.weights import fresh_weights


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with trains_here():
        yield


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of seed 3 in every form."""
    folder = tmp_path_factory.mktemp("forms")
    weights = fresh_weights(model_config("vit-test"), 4, 28, 3)
    for name in ("w.npz", "w.safetensors", "w.timm.safetensors", "w"):
        write_weights(weights, folder / name)
    shutil.copy(folder / "w.npz", folder / "alone.npz")
    return folder


def values(tmp_path: Path, *words: str) -> dict[str, float]:
    out = tmp_path / "out.json"
    assert main([*words, "--out", str(out)]) == 0
    return dict(json.loads(out.read_text())["values"])


def test_every_form_gives_what_the_model_itself_gives(
    forms: Path, small_set: str, small_val: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    knn = json.dumps({"name": "knn", "set": "caps", "train": small_set, "test": small_val, "k": [3]})
    asked = ["--evaluator", knn, "--evaluator", "classification", f"data.val={small_val}"]
    fresh = values(tmp_path, "vit-test", "--seed", "3", "--num-classes", "4", "--image-size", "28", *asked)
    assert fresh.keys() == {"knn/caps_3nn", "val/top1", "val/loss"}
    for name in ("w.npz", "w.safetensors", "w.timm.safetensors", "w"):
        assert values(tmp_path, str(forms / name), *asked) == pytest.approx(fresh, abs=1e-6), name
    other = values(tmp_path, "vit-test", "--seed", "4", "--num-classes", "4", "--image-size", "28", *asked)
    assert other["knn/caps_3nn"] != fresh["knn/caps_3nn"]
    fields = {"name": "classification", "confusion": True}
    files = ["--files", str(tmp_path / "files"), "--evaluator", json.dumps(fields), f"data.val={small_val}"]
    values(tmp_path, str(forms / "w.safetensors"), *files)
    assert len(list((tmp_path / "files").glob("*/confusion.*"))) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alone.npz", "--evaluator", "knn"], r"an .npz does not say its model; give it: --model"),
        (["w.safetensors", "--evaluator", "knn", "--out", "w.npz/x.json"], r"--out w.npz/x.json: .*w.npz is a file"),
        (["w.safetensors"], r"nothing to evaluate: give --evaluator NAME"),
        (["w.safetensors", "--evaluator", "classification"], r"data.val is empty, and classification needs it"),
        (["w.safetensors", "--evaluator", "knn", "optim.lr=1"], r"optim.lr=1: weights are evaluated without a run"),
        (["w.safetensors", "--evaluator", "knm"], r"did you mean 'knn'"),
        (["w.safetensors", "--evaluator", "knn", "evaluators=[knn]"], r"--evaluator beside evaluators="),
        (["w.safetensors", "--evaluator", "knn", "--seed", "1"], r"--seed: of a model's fresh weights"),
        (["w.safetensors", "--evaluator", "knn", "--nodes", "2"], r"--nodes: means something with --cluster only"),
        (["gone.npz", "--evaluator", "knn", "--model", "vit-test"], r"gone.npz: no such file"),
        (["vit-test", "--model", "vit-test", "--evaluator", "knn"], r"is a model itself"),
    ],
)
def test_mistakes_are_said(words: list[str], said: str, forms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forms)
    with pytest.raises(VitDistError, match=said):
        main(words)


def test_a_job_evaluates_weights_and_leaves_values_where_it_is_told(
    forms: Path, small_set: str, small_val: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(forms)
    knn = ["--evaluator", json.dumps({"name": "knn", "set": "caps", "train": small_set, "test": small_val})]
    asked = ["w.npz", "--model", "vit-test", *knn, "--cluster", "dgx-h100", "--dry-run"]
    with pytest.raises(ConfigError, match=r"w.npz has no log that its values could join; give --out FILE"):
        main(asked)
    with pytest.raises(ConfigError, match=r"--devices=0: at least 1 is needed"):
        main([*asked, "--out", "v.json", "--devices", "0"])
    assert main([*asked, "--out", str(tmp_path / "v.json")]) == 0
    script = " ".join(capsys.readouterr().out.split())
    for word in (str(forms / "w.npz"), "--model vit-test", f"--out {tmp_path / 'v.json'}", "knn"):
        assert word in script
    assert not list(tmp_path.iterdir())


def test_an_impossible_resolution_and_another_models_weights_are_refused(
    forms: Path, small_set: str, small_val: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    knn = ["--evaluator", json.dumps({"name": "knn", "train": small_set, "test": small_val})]
    with pytest.raises(ConfigError, match=r"30 does not divide into the 7-pixel patches of vit-test; nearest"):
        main([str(forms / "w.npz"), "--model", "vit-test", "--image-size", "30", *knn])
    with pytest.raises(VitDistError, match=r"w.npz: not the weights of ViT-Ti/16"):
        main([str(forms / "w.npz"), "--model", "ViT-Ti/16", *knn])


def test_options_of_weights_are_refused_for_a_run(tmp_path: Path) -> None:
    words: list[Any] = ["--model", "vit-test", "--evaluator", "knn"]
    with pytest.raises(ConfigError, match=r"--model: for a file of weights, not for .*, a run of ours"):
        main([str(tmp_path / "run"), *words])


def test_weights_are_given_the_colours_that_they_say(
    forms: Path, small_set: str, small_val: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    other = tmp_path / "other"
    shutil.copytree(forms / "w", other)
    said = json.loads((other / "preprocessor_config.json").read_text())
    asked = ["--evaluator", "classification", f"data.val={small_val}"]
    weights = read_weights(forms / "w")
    weights.state["head.weight"].normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    for folder in (forms / "w", other):
        write_weights(weights, folder)
    (other / "preprocessor_config.json").write_text(
        json.dumps({**said, "image_mean": [0.3] * 3, "image_std": [0.2] * 3})
    )
    own, others = (values(tmp_path, str(folder), *asked) for folder in (forms / "w", other))
    assert own["val/loss"] != pytest.approx(others["val/loss"], abs=1e-4)
    # The same by weights that undo it: (x - 0.3) / 0.2 = 2.5 (2 x - 1) + 1.
    kernel = weights.state["patch_embed.proj.weight"]
    weights.state["patch_embed.proj.bias"] += kernel.sum(dim=(1, 2, 3))
    kernel *= 2.5
    write_weights(weights, tmp_path / "undone.safetensors")
    undone = values(tmp_path, str(tmp_path / "undone.safetensors"), *asked)
    assert undone["val/loss"] == pytest.approx(others["val/loss"], rel=1e-4)
