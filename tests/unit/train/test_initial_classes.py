"""A head that is kept from other weights has the training set's classes, found by their names, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.places import GOLDEN
from tests.plugins import model_config
from tests.streams import recipe_of
from vit_dist.cli import models
from vit_dist.core.errors import ConfigError, DataError, VitDistError
from vit_dist.core.run.checkpoints import MARKER, committed, read_marker, seal_marker
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.models.weights.files import Weights, read_weights, write_weights
from vit_dist.train.checkpoint.weights import checkpoint_weights
from vit_dist.train.initial_weights import Initial

ANIMALS = ("cat", "dog", "fox", "owl")


class Head:
    """Takes the place of an engine: keeps the bias of the head that it is given."""

    def load(self, source: Any) -> None:
        (length,) = source.shape("weight", "head.bias")
        self.bias = source.read("weight", "head.bias", 0, length).tolist()
        rows, width = source.shape("weight", "head.weight")
        assert source.read("weight", "head.weight", 0, rows * width)[::width].tolist() == self.bias


def weights(classes: tuple[str, ...]) -> Weights:
    """Of four classes, whose biases are their numbers; so is the first column of the head."""
    config = model_config("vit-test", patch_size=8)
    state = {n: torch.zeros(t.shape) for n, t in config.build(num_classes=4, image_size=32).state_dict().items()}
    state["head.bias"] = torch.arange(4.0)
    state["head.weight"][:, 0] = torch.arange(4.0)
    return Weights(state, config, 4, 32, {}, classes)


def begun(tmp_path: Path, init: Path, names: tuple[str, ...], num_classes: int = 0, **fields: Any) -> list[float]:
    """Biases of the head that a run on a set of these classes begins with."""
    data = {"num_classes": num_classes or len(names), "image_size": 32, "train": "unused"}
    recipe = recipe_of(data, "model.patch_size=8", horizon="1 epoch", init={"weights": str(init), **fields})
    head = Head()
    Initial(recipe, RunDir(tmp_path / "run"), World(), dict(enumerate(names))).load(head)  # type: ignore[arg-type]
    return head.bias


@pytest.mark.parametrize("form", ["w.safetensors", "folder/"])
@pytest.mark.parametrize(
    ("theirs", "ours", "num_classes", "expected"),
    [
        (ANIMALS, ANIMALS, 4, [0, 1, 2, 3]),
        (ANIMALS, ("owl", "fox", "dog", "cat"), 4, [3, 2, 1, 0]),
        (ANIMALS, ("cat", "owl"), 2, [0, 3]),
        (ANIMALS, ("cat", "dog"), 2, [0, 1]),
        (ANIMALS, (), 4, [0, 1, 2, 3]),
        ((), ANIMALS, 4, [0, 1, 2, 3]),
        (("", "dog", "", ""), ("dog",), 1, [1]),
    ],
)
def test_the_classes_of_a_head_are_found_by_name(
    tmp_path: Path, form: str, theirs: tuple[str, ...], ours: tuple[str, ...], num_classes: int, expected: list[float]
) -> None:
    write_weights(weights(theirs), f"{tmp_path}/{form}")
    assert read_weights(tmp_path / form).classes == (theirs if any(theirs) else ())
    assert begun(tmp_path, tmp_path / form, ours, num_classes) == expected


@pytest.mark.parametrize(
    ("ours", "num_classes", "says"),
    [
        (("cat", "dog", "emu", "owl"), 4, "the training set has the class 'emu', which what .* was trained on has not"),
        (
            ("ant", "bee", "cat", "dog"),
            4,
            r"the 2 classes 'ant', 'bee', .* the 2 classes 'fox', 'owl'.* init\.head=new",
        ),
        (("dog",), 4, "the training set names 1 of its 4 classes and numbers them unlike"),
        ((), 5, "the training set has 5 classes, what .* 4: .* --classes FILE"),
    ],
)
def test_a_head_of_other_classes_is_refused_with_the_difference(
    tmp_path: Path, ours: tuple[str, ...], num_classes: int, says: str
) -> None:
    write_weights(weights(ANIMALS), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=rf"init\.weights: .*{says}"):
        begun(tmp_path, tmp_path / "w.safetensors", ours, num_classes)
    assert begun(tmp_path, tmp_path / "w.safetensors", ours, num_classes, head="new") == [0] * num_classes


def headless(tmp_path: Path) -> Path:
    """Ours, without the tensors of its head."""
    from safetensors.torch import load_file, save_file

    write_weights(weights(()), tmp_path / "whole.safetensors")
    tensors = {n: t for n, t in load_file(tmp_path / "whole.safetensors").items() if not n.startswith("head.")}
    save_file(tensors, tmp_path / "headless.safetensors")
    return tmp_path / "headless.safetensors"


def headless_npz(tmp_path: Path) -> Path:
    write_weights(weights(()), tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as arrays:
        np.savez(tmp_path / "headless.npz", **{n: a for n, a in arrays.items() if not n.startswith("head")})
    return tmp_path / "headless.npz"


def with_pooler(tmp_path: Path) -> Path:
    """A `ViTModel` of Hugging Face: a trunk and a pooler."""
    from safetensors.torch import load_file, save_file

    write_weights(weights(()), f"{tmp_path}/folder/")
    file, described = tmp_path / "folder" / "model.safetensors", tmp_path / "folder" / "config.json"
    tensors = {n: t for n, t in load_file(file).items() if not n.startswith("classifier.")}
    save_file({**tensors, "vit.pooler.dense.weight": torch.zeros(32, 32)}, file)
    described.write_text(json.dumps({**json.loads(described.read_text()), "architectures": ["ViTModel"]}))
    return tmp_path / "folder"


def written(name: str) -> Callable[[Path], Path]:
    def write(tmp_path: Path) -> Path:
        write_weights(weights(()), f"{tmp_path}/{name}")
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("make", "num_classes"),
    [
        (headless, 4),
        (headless_npz, 4),
        (with_pooler, 4),
        (written("w.npz"), 3),
        (written("w.safetensors"), 7),
        (written("w.timm.safetensors"), 3),
        (written("folder/"), 2),
    ],
)
def test_advice_to_a_recipe_names_its_keys_and_advice_to_a_command_its_options(
    make: Callable[[Path], Path], num_classes: int, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(VitDistError, match=r"init\.head=new") as caught:
        begun(tmp_path, path, (), num_classes)
    assert "--" not in str(caught.value).replace(str(path), "")
    assert begun(tmp_path, path, (), num_classes, head="new") == [0] * num_classes

    words = ["import", str(path), str(tmp_path / "out.safetensors"), "--num-classes", str(num_classes)]
    model = ["--model", "vit-test", "patch_size=8"] if path.suffix else []
    with pytest.raises(VitDistError, match="--head new") as caught:
        models.main([*words, *model])
    assert "init." not in str(caught.value)


def test_names_that_are_given_to_weights_take_the_place_of_theirs(tmp_path: Path) -> None:
    write_weights(weights(ANIMALS), tmp_path / "w.safetensors")
    (tmp_path / "names.txt").write_text("n1\nn2\nn3\nn4\n")
    out = tmp_path / "named.safetensors"
    words = ["import", str(tmp_path / "w.safetensors"), str(out), "--classes", str(tmp_path / "names.txt")]
    assert models.main(words) == 0
    assert begun(tmp_path, out, ("n4", "n3", "n2", "n1")) == [3, 2, 1, 0]
    (tmp_path / "names.txt").write_text("n1\nn2\n")
    with pytest.raises(ConfigError, match=r"--classes: 2 names, but .* has 4 classes"):
        models.main(words)
    with pytest.raises(DataError, match="has 4 classes, 3 are asked for"):
        models.main([*words[:3], "--num-classes", "3"])


def test_a_checkpoint_says_the_names_of_its_classes_to_the_run_that_begins_from_it(tmp_path: Path) -> None:
    """The golden checkpoint, whose marker is that of before there were names, and with names."""
    folder = Path(shutil.copytree(committed(GOLDEN / "checkpoint")[0], tmp_path / "checkpoints" / "step-0000000004"))
    marker = read_marker(folder)[0]
    old = checkpoint_weights(folder)
    assert old.classes == ()
    names = tuple("abcdefghij"[: old.num_classes])

    def head(ours: tuple[str, ...]) -> list[float]:
        data = {"num_classes": len(ours), "image_size": old.image_size, "train": "unused"}
        recipe = recipe_of(data, horizon="1 epoch", init={"weights": str(folder)})
        recipe = recipe.model_copy(update={"model": old.config})
        source: dict[str, Any] = {}
        engine = type("Engine", (), {"load": lambda _, given: source.update(given=given)})()
        Initial(recipe, RunDir(tmp_path / "run"), World(), dict(enumerate(ours))).load(engine)
        return source["given"].read("weight", "head.bias", 0, len(ours)).tolist()

    bias = old.state["head.bias"].tolist()
    assert bias != bias[::-1]
    assert head(names[::-1]) == bias, "a checkpoint without names: its numbers are taken as they are"
    (folder / MARKER).write_bytes(seal_marker({**marker, "classes": names}))
    assert checkpoint_weights(folder).classes == names
    assert head(names) == bias
    assert head(names[::-1]) == bias[::-1]
    with pytest.raises(ConfigError, match=r"the class 'z', which what .* has not"):
        head(("z", *names[1:]))
