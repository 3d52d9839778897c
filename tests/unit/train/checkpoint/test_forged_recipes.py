"""Weights out of a checkpoint: what its marker says of the model is held against what it holds, within bounds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.places import GOLDEN
from tests.unit.train.checkpoint.forging import Forged, forge, reseal
from vit_dist.core.errors import CheckpointError, VitDistError
from vit_dist.core.run.checkpoints import committed, step_name
from vit_dist.train.checkpoint.weights import checkpoint_state, checkpoint_weights, intact_checkpoint

OLD = committed(GOLDEN / "checkpoint")[0]


def _model(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda marker: marker["recipe"]["model"].update(values)


def _data(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda marker: marker["recipe"]["data"].update(values)


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no model": (lambda m: m["recipe"].pop("model"), "model: missing"),
    "a model that is a text": (lambda m: m["recipe"].update(model="vit"), "model: .*expected the settings"),
    "a model that is unknown": (_model(name="no-such-model"), "no-such-model"),
    "a billion layers": (_model(depth=10**9), "depth"),
    "two layers": (_model(depth=2), "no part has the weight"),
    "another width": (_model(width=32), "is \\[.*the model's is"),
    "a width without end": (_model(width=10**12), "width"),
    "no whole width": (_model(width=16.5), "width"),
    "a setting that there is not": (_model(widths=16), "widths"),
    "another patch size": (_model(patch_size=14), "the model's is|no part"),
    "no data": (lambda m: m["recipe"].pop("data"), "num_classes: missing"),
    "no classes": (_data(num_classes=0), "num_classes: 0; expected"),
    "classes without end": (_data(num_classes=2**40), "no tensor of it has so many rows"),
    "other classes": (_data(num_classes=5), "head.*the model's is"),
    "classes that are none": (_data(num_classes="4"), "num_classes"),
    "pixels without end": (_data(image_size=2**40), "pixels"),
    "other pixels": (_data(image_size=56), "pos_embed.*the model's is"),
    "pixels that do not fit the patches": (_data(image_size=29), "no such model can be built|patches"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose newest checkpoint, of step 5, is like the one before."""
    for step in (4, 5):
        folder = tmp_path / "checkpoints" / step_name(step)
        shutil.copytree(OLD, folder)
        reseal(folder, lambda marker: marker["state"].update(step=step, position=16 * step))  # noqa: B023
    return tmp_path


@pytest.mark.parametrize("how", FORGED)
def test_a_newest_marker_that_lies_of_its_model_is_passed_over_in_words(
    run: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    change, says = FORGED[how]
    newest = run / "checkpoints" / step_name(5)
    reseal(newest, change)
    assert checkpoint_weights(run).facts["step"] == "4"
    assert f"{step_name(5)} is damaged and skipped: " in capsys.readouterr().err
    # That one and no other: one error, that says what.
    with pytest.raises(VitDistError, match=f"(?s){says}"):
        checkpoint_weights(newest)


@pytest.mark.parametrize(
    "edit",
    [
        lambda part: part.slices["weight:cls_token"].update(shape=[16, 2]),
        lambda part: part.slices.pop("weight:cls_token"),
        lambda part: part.header["weight:cls_token"].update(dtype="F64"),
        lambda part: part.header["weight:cls_token"].update(data_offsets=[0, 64]),
        lambda part: part.slices["weight:pos_embed"].update(start=1),
        lambda part: part.data.extend(b"more"),
    ],
)
def test_a_newest_part_that_lies_is_passed_over_wherever_the_newest_is_taken(
    run: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[Forged], object]
) -> None:
    forge(run / "checkpoints" / step_name(5), 0, edit)
    assert intact_checkpoint(run).name == step_name(4)
    assert checkpoint_state(run)[1]["state"]["step"] == 4
    weights = checkpoint_weights(run)
    assert weights.facts["step"] == "4"
    assert torch.equal(weights.state["cls_token"], checkpoint_weights(OLD).state["cls_token"])
    assert capsys.readouterr().err.count(f"{step_name(5)} is damaged and skipped: ") == 3
    forge(run / "checkpoints" / step_name(4), 0, edit)
    with pytest.raises(CheckpointError, match=r"no intact checkpoint in it: step-0000000005: .*; step-0000000004: "):
        checkpoint_weights(run)
