"""An untrained model before evaluators, and independent formulas of what they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_dist.config.load import resolve
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.engines._protocol import EngineInputs
from vit_dist.evals import EvalContext
from vit_dist.train.losses import make_loss

LINEAR: dict[str, Any] = {"name": "linear", "set": "small", "poolings": ["head", "cls+mean"], "rates": [5.0, 30.0]}
EVALUATORS: list[Any] = [
    {"name": "classification", "measure": ["top1", "loss", "top5", "ece"], "confusion": True},
    {"name": "knn", "set": "small", "k": [1, 5, 20]},
    {**LINEAR, "batch": 48, "passes": 4},
]


def context_of(
    train: str,
    val: str,
    evaluators: Sequence[Any],
    world: World | None = None,
    device: torch.device | None = None,
    outputs: Path | None = None,
    **data: Any,
) -> EvalContext:
    """An untrained vit-test with a head of seven classes, whose weights are the same every time."""
    world, device = world or World(), device or torch.device("cpu")
    recipe: Any = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": 12,
            "precision": "fp32",
            "model": "vit-test",
            "data": {"num_classes": 7, "image_size": 28, "train": train, "val": val, **data},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": "plain"},
            "evaluators": list(evaluators),
            "eval": {"batch": 16},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=7, image_size=28)
    torch.nn.init.normal_(model.head.weight, std=0.5)  # of zeros every class has the same score
    inputs = EngineInputs(
        model, recipe.optim.build(model), make_loss(recipe.loss), world, device, "fp32", 1.0, 12 // world.size, 1
    )
    return EvalContext(recipe.engine.build(inputs), recipe, world, read_manifest(val), outputs)


def nearest_by_force(
    x: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float, num_classes: int
) -> np.ndarray:
    """The class of each query by the votes of its k nearest examples, one query after the other, in float64."""
    x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    guesses = []
    for query in queries.astype(np.float64):
        similarity = x @ (query / np.linalg.norm(query))
        votes = np.zeros(num_classes)
        for i in np.argsort(-similarity, kind="stable")[:k]:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        guesses.append(int(votes.argmax()))
    return np.array(guesses)
