"""The average of a run's weights: what its log says of it is what is exported, begun from, evaluated and kept by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import trains_here
from tests.laws.test_resume import recipe_file
from vit_dist.cli.models.weights import export_main
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import CheckpointError, ConfigError, RefusalError
from vit_dist.core.events.reader import read_run
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.stream import EvalBatches
from vit_dist.models.weights.files import read_weights
from vit_dist.train.attempt import attempt
from vit_dist.train.checkpoint.weights import checkpoint_weights
from vit_dist.train.evaluate import evaluate

OPTIONS = ["engine.name=plain", "precision=fp32", "guards.hang=0s", "model.dropout=0.0", "optim.lr=0.02"]
EMA = "ema={decay: 0.7, start: 40%}"


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with trains_here():
        yield


def train(folder: Path, name: str, recipe: Path, *overrides: str) -> Path:
    attempt(load_recipe(str(recipe), [*OPTIONS, *overrides]), folder / name, World())
    return folder / name


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_set: str, small_val: str) -> Path:
    return recipe_file(tmp_path_factory.mktemp("ema"), small_set, small_val)


@pytest.fixture(scope="module")
def averaged(recipe: Path) -> Path:
    """Ten steps, evaluated after each second, of which those past the fourth count."""
    return train(
        recipe.parent,
        "averaged",
        recipe,
        EMA,
        "eval.every=2 steps",
        "checkpoint={every: 2 steps, keep: 1, keep_best: ema/val/loss}",
    )


def scalars(run: Path) -> dict[str, dict[int, float]]:
    found = read_run(str(run / "tb")).scalars
    return {tag: dict(zip(one.steps.tolist(), one.values.tolist(), strict=True)) for tag, one in found.items()}


def loss_of(state: dict[str, torch.Tensor], recipe: Path, small_val: str) -> float:
    """Mean validation loss of a model of these weights, in plain torch."""
    settings = load_recipe(str(recipe), OPTIONS)
    model = settings.model.build(num_classes=4, image_size=28)  # type: ignore[attr-defined]
    model.load_state_dict(state)
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in EvalBatches(read_manifest(small_val), settings.data, World(), 64):
            assert batch is not None
            logits = model(batch.images.float() / 127.5 - 1)
            total += float(torch.nn.functional.cross_entropy(logits, batch.labels[:, 0], reduction="sum"))
            count += len(batch.labels)
    return total / count


def test_the_average_is_evaluated_beside_the_weights_once_a_step_counts(averaged: Path) -> None:
    values = scalars(averaged)
    assert list(values["val/loss"]) == list(values["val/top1"]) == [2, 4, 6, 8, 10]
    assert list(values["ema/val/loss"]) == list(values["ema/val/top1"]) == [6, 8, 10]
    assert all(values["ema/val/loss"][step] != values["val/loss"][step] for step in (6, 8, 10))
    # The best by the average, and the newest.
    best = min((6, 8, 10), key=values["ema/val/loss"].__getitem__)
    kept = sorted(int(path.name.removeprefix("step-")) for path in committed(averaged / "checkpoints"))
    assert kept == sorted({best, 10})
    marker, _ = read_marker(averaged / "checkpoints" / "step-0000000010")
    assert marker["metrics"]["ema/val/loss"] == pytest.approx(values["ema/val/loss"][10])


def test_training_is_the_same_bit_for_bit_with_an_average_and_without(averaged: Path, recipe: Path) -> None:
    plain = train(recipe.parent, "plain", recipe, "eval.every=2 steps", "checkpoint.every=10 steps")
    with_it, without = scalars(averaged), scalars(plain)
    for tag in ("train/loss", "train/grad_norm", "val/loss", "val/top1"):
        assert with_it[tag] == without[tag]
    ours, theirs = checkpoint_weights(averaged).state, checkpoint_weights(plain).state
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with pytest.raises(CheckpointError, match="no average of weights in it: it is of a run without `ema`"):
        checkpoint_weights(plain, average=True)


def test_what_is_exported_is_what_was_evaluated(averaged: Path, recipe: Path, small_val: str, tmp_path: Path) -> None:
    values = scalars(averaged)
    assert export_main([str(averaged), str(tmp_path / "ema.safetensors"), "--average"]) == 0
    assert export_main([str(averaged), str(tmp_path / "last.safetensors")]) == 0
    average, last = (read_weights(tmp_path / f"{name}.safetensors") for name in ("ema", "last"))
    assert (average.facts["average_steps"], "average_steps" in last.facts) == ("6", False)
    assert loss_of(average.state, recipe, small_val) == pytest.approx(values["ema/val/loss"][10], rel=1e-5)
    assert loss_of(last.state, recipe, small_val) == pytest.approx(values["val/loss"][10], rel=1e-5)
    with pytest.raises(ConfigError, match=r"--average: .* is a file of weights"):
        export_main([str(tmp_path / "last.safetensors"), str(tmp_path / "x.safetensors"), "--average"])


def test_a_run_begins_from_the_average(averaged: Path, recipe: Path, tmp_path: Path) -> None:
    rest = ["horizon=1 step", "schedule.warmup=1 step", "optim.lr=1e-30", "optim.weight_decay=0", "eval.every=1 step"]
    begun = train(tmp_path, "begun", recipe, *rest, f"init={{weights: {averaged}, average: true}}")
    assert scalars(begun)["val/loss"][1] == pytest.approx(scalars(averaged)["ema/val/loss"][10], rel=1e-5)
    export_main([str(averaged), str(tmp_path / "w.safetensors")])
    with pytest.raises(ConfigError, match=r"init\.average: .* is a file of weights"):
        train(tmp_path, "file", recipe, *rest, f"init={{weights: {tmp_path / 'w.safetensors'}, average: true}}")


def test_evaluate_measures_both_and_gives_what_training_gave(averaged: Path, tmp_path: Path) -> None:
    logged = scalars(averaged)
    recipe = load_recipe(str(averaged / "recipe.yaml"), [])
    values = evaluate(recipe, averaged, World(), out=tmp_path / "out.json")
    assert values.keys() == {"val/loss", "val/top1", "ema/val/loss", "ema/val/top1"}
    assert values["ema/val/loss"] == pytest.approx(logged["ema/val/loss"][10], rel=1e-6)
    assert values["val/loss"] == pytest.approx(logged["val/loss"][10], rel=1e-6)
    assert json.loads((tmp_path / "out.json").read_text())["values"].keys() == values.keys()


def test_a_run_goes_on_only_with_the_average_that_it_keeps(averaged: Path, recipe: Path) -> None:
    for other in ("ema={decay: 0.8, start: 40%}", "ema=null"):
        with pytest.raises(RefusalError, match="ema"):
            train(averaged.parent, "averaged", recipe, other)


def test_before_a_step_counts_there_is_nothing_to_export(recipe: Path, tmp_path: Path) -> None:
    overrides = ["ema={decay: uniform, start: 9 steps}", "checkpoint.every=5 steps", "eval.every=0 steps"]
    run = train(tmp_path, "late", recipe, *overrides)
    first = run / "checkpoints" / "step-0000000005"
    with pytest.raises(CheckpointError, match=r"none of its steps counts yet \(ema.start\)"):
        checkpoint_weights(first, average=True)
    # One step counts: the average is its weights.
    ours, average = checkpoint_weights(run).state, checkpoint_weights(run, average=True).state
    assert all(torch.equal(tensor, average[name]) for name, tensor in ours.items())
    assert scalars(run)["ema/val/loss"][10] == scalars(run)["val/loss"][10]


def test_an_average_that_would_never_begin_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ema\.start=10 steps is step 10, beyond the last of the run's 10 steps"):
        train(tmp_path, "never", recipe, "ema={start: 10 steps}")
    with pytest.raises(ConfigError, match=r"keep_best: 'ema/val/loss' is not measured"):
        load_recipe(str(recipe), ["checkpoint.keep_best=ema/val/loss"])
