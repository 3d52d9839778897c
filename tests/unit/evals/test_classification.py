"""Top-5, calibration and confusion against formulas example by example; images without a label are left out."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluating import context_of
from tests.shards import image_bytes, write_tar
from vit_dist.core.errors import ConfigError
from vit_dist.data.manifest import ShardManifest
from vit_dist.evals import _classification as sums
from vit_dist.evals._confusion import write_confusion

DRAW = torch.Generator().manual_seed(5)
LOGITS = torch.randn(60, 9, generator=DRAW) * 3
LABELS = torch.where(torch.rand(60, 2, generator=DRAW) < 0.2, -1, torch.randint(0, 9, (60, 2), generator=DRAW))
# The first label is the one that there is where there is one.
LABELS = LABELS.sort(dim=1, descending=True).values


def test_top_5_counts_examples_with_a_label_among_the_five_highest() -> None:
    expected = 0
    for row, own in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        best = sorted(range(9), key=lambda i: -row[i])[:5]
        expected += any(label in best for label in own)
    assert float(sums.among_top(LOGITS, LABELS, 5)) == expected
    assert 0 < expected < 60


@pytest.mark.parametrize("bins", [2, 15])
def test_the_calibration_error_is_that_of_a_loop_over_bins(bins: int) -> None:
    probabilities = LOGITS.double().softmax(1).numpy()
    known = [i for i in range(60) if max(LABELS[i].tolist()) >= 0]
    expected, n = 0.0, len(known)
    for b in range(bins):
        inside = [i for i in known if b / bins < probabilities[i].max() <= (b + 1) / bins]
        if inside:
            accuracy = np.mean([int(probabilities[i].argmax()) in LABELS[i].tolist() for i in inside])
            expected += len(inside) / n * abs(accuracy - np.mean([probabilities[i].max() for i in inside]))
    found = sum(sums.confidences(LOGITS[i : i + 7], LABELS[i : i + 7], bins) for i in range(0, 60, 7))
    assert sums.calibration_error(found) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.01
    assert n < 60


def test_a_confusion_counts_each_labelled_example_once_and_a_right_one_on_the_diagonal() -> None:
    counts = torch.zeros(81, dtype=torch.int64)
    for i in range(0, 60, 11):
        sums.add_confusion(counts, LOGITS[i : i + 11], LABELS[i : i + 11])
    expected = np.zeros((9, 9), np.int64)
    for guess, own in zip(LOGITS.argmax(1).tolist(), LABELS.tolist(), strict=True):
        if max(own) >= 0:
            expected[guess if guess in own else own[0], guess] += 1
    np.testing.assert_array_equal(counts.view(9, 9).numpy(), expected)


def test_a_confusion_is_a_table_and_pictures_and_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    counts = np.array([[8, 2, 0], [1, 5, 4], [0, 0, 0]])
    names = ["=cat", "$\\frac$ dog", ""]
    write_confusion(counts, names, "pets", tmp_path)
    rows = list(csv.reader(io.StringIO((tmp_path / "confusion.csv").read_text())))
    assert rows[1:] == [["'=cat", "8", "2", "0"], ["$\\frac$ dog", "1", "5", "4"], ["2", "0", "0", "0"]]
    with Image.open(tmp_path / "confusion.png") as picture:
        assert len(picture.getcolors(1 << 20) or ()) > 20
    assert "<svg" in (tmp_path / "confusion.svg").read_text()


def real(folder: Path, labels: list[str], small_set: str) -> ShardManifest:
    """A set whose labels lie in .json members, several or none for an image."""
    from vit_dist.cli.data import main

    members = []
    for i, own in enumerate(labels):
        members += [(f"{i:04}.png", image_bytes(i, 0)), (f"{i:04}.json", f'{{"label": {own}}}'.encode())]
    tar = write_tar(folder / "real.tar", members)
    assert (
        main(
            [
                "index",
                str(tar),
                "--labels",
                "json",
                "--label-field",
                "label",
                "--skip-bad",
                "--num-classes",
                "7",
                "--out",
                str(folder / "m.json"),
            ]
        )
        == 0
    )
    from vit_dist.data.manifest import read_manifest

    return read_manifest(str(folder / "m.json"))


def test_images_without_a_label_are_left_out_and_each_of_several_is_right(tmp_path: Path, small_set: str) -> None:
    manifest = real(tmp_path, ["[0, 1, 2, 3, 4, 5, 6]", "[]", "[1]"], small_set)
    context = context_of(small_set, str(tmp_path / "m.json"), ["classification"])
    assert (manifest.max_labels, manifest.num_samples) == (7, 2)
    with torch.no_grad():
        context.engine.module.head.bias.copy_(torch.tensor([50.0, 0, 0, 0, 0, 0, 0]))  # type: ignore[operator]
    found = dict(context.recipe.evaluators[0].run(context))
    # Two examples count; the first is right whatever is said.
    assert found["val/top1"] == 0.5


@pytest.mark.parametrize(
    ("settings", "data", "said"),
    [
        ({"measure": ["top5"]}, {"num_classes": 5}, r"measure: top5 is always 1 of 5 classes"),
        ({"confusion": True}, {"num_classes": 9000}, r"a picture of 9,000 classes"),
        ({"measure": ["top6"]}, {}, r"top6"),
    ],
)
def test_what_says_nothing_is_refused(settings: Any, data: Any, said: str, small_set: str, small_val: str) -> None:
    with pytest.raises(ConfigError, match=said):
        context_of(small_set, small_val, [{"name": "classification", **settings}], **data)
