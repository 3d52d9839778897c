"""Losses and targets: held to timm's binary cross-entropy, to sums written out, and to the papers of distillation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.loss import BinaryCrossEntropy

from tests.streams import recipe_of
from vit_dist.config.load import identity, recipe_hash
from vit_dist.config.loss import LossConfig
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.world import World
from vit_dist.train.losses import make_loss, make_targets, make_training_loss
from vit_dist.train.plan import check_named

LOGITS = torch.tensor([[1.5, -0.5, 0.25, 2.0], [-1.0, 0.0, 3.0, 0.5], [0.1, 0.2, -0.3, 0.4]])
LABELS = torch.tensor([[3], [0], [2]])
ONE = torch.ones(3, 1)


def recipe(loss: Mapping[str, Any], *overrides: str, num_classes: int = 4) -> Recipe:
    return recipe_of({"num_classes": num_classes, "train": "unused"}, *overrides, horizon="1 epoch", loss=dict(loss))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_bce_is_timms(smoothing: float, sum_classes: bool, threshold: float | None, weighted: bool) -> None:
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0]) if weighted else None
    config = LossConfig(name="bce", label_smoothing=smoothing, sum_classes=sum_classes, target_threshold=threshold)
    timms = BinaryCrossEntropy(smoothing, target_threshold=threshold, weight=weight, sum_classes=sum_classes)
    targets = make_targets(LABELS, ONE, 4, config)
    loss = make_loss(config, weight)
    torch.testing.assert_close(loss(LOGITS, targets), timms(LOGITS, LABELS[:, 0]))
    # Mixed ones are dense, for timm too.
    mixed = 0.7 * targets + 0.3 * targets.flip(0)
    torch.testing.assert_close(loss(LOGITS, mixed), timms(LOGITS, mixed))


def test_targets_of_bce_are_each_labels_own() -> None:
    labels, weights = torch.tensor([[0, 2, -1]]), torch.tensor([[1.0, 0.5, 0.0]])
    config = LossConfig(name="bce", label_smoothing=0.2)
    expected = torch.tensor([[0.85, 0.05, 0.45, 0.05]])
    torch.testing.assert_close(make_targets(labels, weights, 4, config), expected)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "bce"])
def test_weights_of_classes_are_factors_of_their_terms(name: Any) -> None:
    config, weights = LossConfig(name=name, label_smoothing=0.1), torch.tensor([2.0, 0.0, 1.0, 0.25])
    targets = make_targets(LABELS, ONE, 4, config)
    logits, t, w = LOGITS.double(), targets.double(), weights.double()
    if name == "softmax":
        terms = -t * logits.log_softmax(1)
    else:
        terms = -t * logits.sigmoid().log() - (1 - t) * (-logits).sigmoid().log()
    expected = (w * terms).sum() / (3 * (4 if name == "bce" else 1))
    torch.testing.assert_close(make_loss(config, weights)(LOGITS, targets).double(), expected, rtol=1e-6, atol=0)
    alike = make_loss(config, torch.ones(4))(LOGITS, targets)
    torch.testing.assert_close(alike, make_loss(config)(LOGITS, targets))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_soft_teacher_is_hintons(temperature: float) -> None:
    config = LossConfig.model_validate({"teacher": {"weights": "w", "temperature": temperature, "weight": 0.3}})
    theirs, targets = LOGITS.flip(1) * 2, make_targets(LABELS, ONE, 4, config)
    student = LOGITS.double().requires_grad_()
    loss = make_training_loss(config)(student, torch.cat([targets, theirs], dim=1).double())
    p, q = (x.double().div(temperature).softmax(1) for x in (theirs, LOGITS))
    taught = (p * (p / q).log()).sum() / 3 * temperature**2
    own = -(targets.double() * LOGITS.double().log_softmax(1)).sum() / 3
    torch.testing.assert_close(loss.detach(), 0.7 * own + 0.3 * taught)
    # Section 2 of the paper: the gradient of the teacher's part is (q - p) / T, times the square of T.
    (gradient,) = torch.autograd.grad(loss, student)
    of_labels = (LOGITS.double().softmax(1) - targets.double()) / 3
    torch.testing.assert_close(gradient, 0.7 * of_labels + 0.3 * (q - p) * temperature / 3)


def test_a_hard_teacher_is_deits() -> None:
    config = LossConfig.model_validate({"teacher": {"weights": "w", "hard": True}})
    theirs, targets = LOGITS.flip(1), make_targets(LABELS, ONE, 4, config)
    loss = make_training_loss(config)(LOGITS, torch.cat([targets, theirs], dim=1))
    logs = LOGITS.log_softmax(1)
    said = sum(float(logs[i, LABELS[i, 0]] + logs[i, int(theirs[i].argmax())]) for i in range(3))
    assert loss.item() == pytest.approx(-said / 6)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ({"sum_classes": True}, "sum_classes=true: it is of the loss bce, and the loss is softmax"),
        ({"name": "sigmoid", "target_threshold": 0.0}, "target_threshold=0.0: it is of the loss bce"),
        ({"class_weights": [1.0, 2.0]}, r"loss.class_weights: 2 weights, and data.num_classes=4; give one for each"),
        ({"class_weights": [0.0] * 4}, "class_weights: no class has a weight"),
        ({"class_weights": [1.0, 1.0, 1.0, -1.0]}, r"loss.class_weights.*greater than or equal to 0, got -1"),
        ({"class_weights": "balance"}, "loss.class_weights.*must be 'balanced'"),
        ({"class_weights": "balanced", "class_weights_file": "w"}, "class_weights_file beside class_weights"),
        ({"teacher": {}}, "loss.teacher.weights: is required and missing"),
        ({"teacher": {"weights": "w", "hard": True, "temperature": 2.0}}, "temperature=2: a hard label has none"),
        ({"teacher": {"weights": "w", "weight": 0.0}}, "loss.teacher.weight.*greater than 0"),
        ({"teacher": {"weights": "w", "model": "ViT-B/61"}}, "loss.teacher.model.name.*ViT-B/16"),
        ({"teacher": {"weights": "w", "model": {"name": "vit-test", "depht": 2}}}, "loss.teacher.model.depht: unknown"),
    ],
)
def test_what_cannot_be_is_told_with_its_key(loss: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(loss)


def test_what_is_learned_counts_and_where_a_teacher_lies_does_not() -> None:
    plain = recipe({})
    assert identity(plain)["loss"] == {"name": "softmax", "label_smoothing": 0.0}
    teacher = {"weights": "a.safetensors", "model": "vit-demo"}
    one, other = recipe({"teacher": teacher}), recipe({"teacher": {**teacher, "weights": "b.safetensors"}})
    assert recipe_hash(one) == recipe_hash(other) != recipe_hash(plain)
    assert identity(one)["loss"]["teacher"]["model"]["width"] == 64
    # On the command line, over a recipe's.
    again = recipe({"teacher": teacher}, "loss.teacher.model.depth=2", "loss.teacher.temperature=4.0")
    assert again.loss.teacher is not None
    assert (again.loss.teacher.model.depth, again.loss.teacher.temperature) == (2, 4.0)  # type: ignore[union-attr]
    differ = [{"class_weights": [1.0, 1.0, 1.0, 2.0]}, {"class_weights": "balanced"}, {"name": "bce"}]
    assert len({recipe_hash(recipe(loss)) for loss in [{}, *differ]}) == 4


def test_balanced_weights_are_those_of_the_manifests(tmp_path: Path) -> None:
    from tests.shards import write_set
    from vit_dist.data.sets import open_training_set
    from vit_dist.train.class_weights import weights_of_classes

    sizes = {"one": 30, "two": 50}
    sets = {
        name: write_set(tmp_path / name, num_samples=size, samples_per_shard=7, num_classes=3)
        for name, size in sizes.items()
    }
    counted = {name: labels_of(url) for name, url in sets.items()}
    config = recipe_of(
        {"num_classes": 4, "train": sets["two"], "subset": 20}, horizon="1 epoch", loss={"class_weights": "balanced"}
    )
    weights = weights_of_classes(config, open_training_set(config), World(), torch.device("cpu"))
    assert weights is not None
    # The head has a class that the set has not.
    expected = [50 / (3 * counted["two"][c]) for c in range(3)]
    assert weights.tolist() == pytest.approx([*expected, 1.0])
    mixture = {"one": {"train": sets["one"], "weight": 3}, "two": {"train": sets["two"], "label_offset": 1}}
    config = recipe_of(
        {"num_classes": 4, "mixture": mixture},
        horizon="20 steps",
        loss={"class_weights": "balanced"},
        eval={"every": "9 steps"},
        checkpoint={"every": "9 steps"},
    )
    weights = weights_of_classes(config, open_training_set(config), World(), torch.device("cpu"))
    assert weights is not None
    ones, twos = counted["one"], counted["two"]
    share = [3 * ones.get(c, 0) / 30 + twos.get(c - 1, 0) / 50 for c in range(4)]
    assert weights.tolist() == pytest.approx([4 / (4 * s) for s in share])


def labels_of(url: str) -> dict[int, int]:
    from collections import Counter

    from vit_dist.data.manifest import read_manifest

    manifest = read_manifest(url)
    return Counter(int(label) for i in range(len(manifest.shards)) for label in manifest.read_index(i).labels)


def test_weights_of_a_file_are_read_and_its_numbers_count(tmp_path: Path) -> None:
    from vit_dist.train.class_weights import identity_of_file, weights_of_classes

    file, other = tmp_path / "weights.txt", tmp_path / "same.txt"
    file.write_text("1 # hat\n0.5\n\n2e0\n0\n")
    other.write_text("1.0\n.5\n2\n0\n")
    known = []
    for path in (file, other):
        config = recipe({"class_weights_file": str(path)})
        weights = weights_of_classes(config, None, World(), torch.device("cpu"))  # type: ignore[arg-type]
        assert weights is not None
        assert weights.tolist() == [1.0, 0.5, 2.0, 0.0]
        known.append((recipe_hash(config), identity_of_file(config, weights)))
    assert known[0] == known[1]
    assert known[0][1].keys() == {"class_weights"}
    plain = recipe({"class_weights": [1.0, 0.5, 2.0, 0.0]})
    assert identity_of_file(plain, torch.ones(4)) == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"1\n2\n", "has 2 weights, and data.num_classes=4; write one a line"),
        (b"1\n2\n-3\n4\n", "weights.txt, line 3: '-3' is no weight; expected a number from 0"),
        (b"1\nnan\n3\n4\n", "line 2: 'nan' is no weight"),
        (b"a,b\n", "line 1: 'a,b' is no weight"),
        (b"0\n0\n0\n0\n", "no class has a weight"),
        (b"\xff\xfe1\x00", "weights.txt: is not text in UTF-8|UTF-16"),
        (None, "weights.txt"),
    ],
)
def test_a_file_that_is_no_weights_is_told_before_ranks_start(content: bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"loss.class_weights_file: .*({says})"):
        check_named(recipe({"class_weights_file": str(file)}), tmp_path / "run")
