"""Factors of the classes in the loss, as a recipe gives them or as its set asks for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.schema import Recipe
from vit_dist.core.world import World
from vit_dist.data.class_weights import read_class_weights
from vit_dist.data.describe import count
from vit_dist.data.sets import TrainingSet
from vit_dist.train.checkpoint.restore import on_main
from vit_dist.train.initial_weights import CLASS_WEIGHTS, digest_of


def weights_of_classes(recipe: Recipe, data: TrainingSet, world: World, device: torch.device) -> Tensor | None:
    """float32 [K] on a device, or None where all classes count alike. A collective.

    Raises:
        DataError: an index of the set, or the file of weights, cannot be read.
    """
    wanted, file = recipe.loss.class_weights, recipe.loss.class_weights_file
    if wanted is None and not file:
        return None
    if file:
        wanted = on_main(lambda: tuple(read_class_weights(file, recipe.data.num_classes)), world)
    assert wanted is not None
    # An index a shard: rank 0 reads them for all.
    weights = on_main(lambda: balanced(data, recipe), world) if wanted == "balanced" else list(wanted)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def identity_of_file(recipe: Recipe, weights: Tensor | None) -> dict[str, str]:
    """The part of a run's identity that says which weights a file gave; {} without one: the recipe says all."""
    if weights is None or not recipe.loss.class_weights_file:
        return {}
    return {CLASS_WEIGHTS: digest_of({"": weights.cpu()})}


def balanced(data: TrainingSet, recipe: Recipe) -> list[float]:
    """For each class the examples of the whole manifests over the classes that they have and the examples of its own.

    So the mean over examples of one label is 1. A class without an example, of which nothing is learned, has 1.

    Args:
        data: the training set; of a mixture, all of its sets, as often as each comes in the stream.
        recipe: of the run.
    """
    counts = np.zeros(recipe.data.num_classes)
    for part in data.parts:
        own = count(part.manifest).per_class
        mixed = recipe.data.mixture.get(part.name)
        share = 1.0 if mixed is None else mixed.weight / part.manifest.num_samples
        counts[part.label_offset : part.label_offset + len(own)] += share * own
    there = counts > 0
    weights = np.ones(len(counts))
    weights[there] = counts.sum() / (there.sum() * counts[there])
    return [float(weight) for weight in weights]
