"""Sums of an evaluation: exact counts, the loss of an independent formula, and nothing that waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.host_reads import HostReads
from vit_dist.config.load import resolve
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.engines._protocol import EngineInputs
from vit_dist.evals import EvalContext
from vit_dist.evals._classification import batch_sums
from vit_dist.train.losses import make_loss


def of_numpy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> tuple[int, float]:
    """Correct examples and their summed loss, example by example in float64."""
    correct, total = 0, 0.0
    for row, own, share in zip(logits.double().numpy(), labels.tolist(), weights.double().numpy(), strict=True):
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        known = [(label, weight) for label, weight in zip(own, share, strict=True) if label >= 0]
        correct += int(row.argmax()) in [label for label, _ in known]
        whole = sum(weight for _, weight in known)
        total -= sum(weight / whole * log_p[label] for label, weight in known if whole)
    return correct, float(total)


CASES = {
    "one label each": ([[0], [2], [1], [3]], [[1.0]] * 4),
    "two labels": ([[0, 1], [2, 3]], [[1.0, 1.0], [1.0, 1.0]]),
    "padded labels": ([[0, -1, -1], [1, 2, -1], [3, 1, 0]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
    "soft labels": ([[0, 1], [2, 0]], [[0.9, 0.1], [0.25, 0.5]]),
    "no label at all": ([[-1], [2]], [[0.0], [1.0]]),
    "one example": ([[3]], [[1.0]]),
}


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_an_independent_formula(case: str, scale: float) -> None:
    labels, weights = torch.tensor(CASES[case][0]), torch.tensor(CASES[case][1], dtype=torch.float32)
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(1)) * scale
    correct, loss, examples = batch_sums(logits, labels, weights).tolist()
    expected_correct, expected_loss = of_numpy(logits, labels, weights)
    assert (correct, examples) == (expected_correct, sum(any(label >= 0 for label in own) for own in labels.tolist()))
    assert loss == pytest.approx(expected_loss, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("cut", [1, 7, 64, 1000])
def test_counts_do_not_depend_on_how_a_set_is_cut_and_losses_in_last_bits_alone(cut: int) -> None:
    draw = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(1000, 10, generator=draw) * 5, torch.randint(0, 10, (1000, 1), generator=draw)
    weights = torch.ones(1000, 1)
    whole = batch_sums(logits, labels, weights)
    parts = [
        batch_sums(logits[i : i + cut], labels[i : i + cut], weights[i : i + cut]) for i in range(0, len(logits), cut)
    ]
    summed = torch.stack(parts).sum(0)
    assert summed[[0, 2]].tolist() == whole[[0, 2]].tolist()
    assert float(summed[1]) == pytest.approx(float(whole[1]), rel=1e-9)


def test_one_loss_that_is_no_number_is_not_hidden_and_spoils_no_count() -> None:
    logits = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])
    correct, loss, examples = batch_sums(logits, torch.tensor([[0], [1]]), torch.ones(2, 1)).tolist()
    assert (correct, examples) == (1, 2)
    assert math.isnan(loss)


@pytest.fixture
def context(small_set: str, small_val: str) -> Callable[[int], EvalContext]:
    """context(batch): an untrained vit-test, of which `batch` examples are evaluated at once."""

    def of(batch: int) -> EvalContext:
        recipe: Any = resolve(
            {
                "horizon": "1 epoch",
                "global_batch": 8,
                "model": "vit-test",
                "data": {"num_classes": 4, "image_size": 28, "train": small_set, "val": small_val},
                "optim": {"name": "adamw", "lr": 1e-3},
                "schedule": {"name": "constant", "warmup": "0 steps"},
                "engine": {"name": "plain"},
                "evaluators": ["classification", {"name": "fewshot", "set": "s", "shots": [1, 5], "seeds": 1}],
                "eval": {"batch": batch},
            }
        )
        torch.manual_seed(0)
        model = recipe.model.build(num_classes=4, image_size=28)
        torch.nn.init.normal_(model.head.weight, std=0.05)
        optimizer, loss = recipe.optim.over_layers(model), make_loss(recipe.loss)
        inputs = EngineInputs(model, optimizer, loss, World(), torch.device("cpu"), "fp32", 1.0, 8, 1)
        return EvalContext(recipe.engine.build(inputs), recipe, World(), read_manifest(small_val))

    return of


@pytest.mark.parametrize("evaluator", [0, 1])
def test_the_host_reads_no_more_in_many_batches_than_in_one(
    context: Callable[[int], EvalContext], evaluator: int
) -> None:
    values, places = [], []
    for batch in (64, 4):
        looked_at = context(batch)
        with HostReads() as reads:
            values.append(dict(looked_at.recipe.evaluators[evaluator].run(looked_at)))
        places.append([place for place in reads.places if "vit_dist" in place])
    assert len(places[1]) == len(places[0]), places
    assert values[0] == pytest.approx(values[1], rel=1e-6)
