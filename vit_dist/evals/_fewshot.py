"""Ridge regression in closed form on frozen features, over however many ranks there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_dist.data.decode import squash
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.subset import pick
from vit_dist.engines._collectives import broadcast_object
from vit_dist.evals import EvalContext
from vit_dist.evals._features import feature_width, features
from vit_dist.evals.fewshot import FewShotConfig, draw

# The constant feature; so large that its weight is hardly held back by lambda.
BIAS = 100.0
STD_FLOOR = 1e-5


def accuracies(config: FewShotConfig, context: EvalContext) -> dict[int, float]:
    """Top-1 on the test set for each number of shots, the mean over the draws; the same on every rank. A collective."""
    train, test = config.open_sets(context.recipe)
    drawn = _drawn(config, context)
    x, labels = _shots(config, context, train, drawn)
    stored, classes = np.unique(drawn), train.num_classes
    device = context.engine.device
    fits = []
    for shots in config.shots:
        for ordinals in drawn:
            rows = torch.from_numpy(np.searchsorted(stored, ordinals[:, :shots].ravel()))
            weight, bias = ridge(x[rows].double(), labels[rows], classes, config.l2)
            fits.append((weight.to(device, torch.float32), bias.to(device, torch.float32)))
    # Correct examples of each fit, and last the number of examples.
    correct = torch.zeros(len(fits) + 1, dtype=torch.float64, device=device)
    for batch, x_test in features(context, test, crop=config.crop, view=squash):
        truth = batch.labels.to(device, non_blocking=True)
        for i, (weight, bias) in enumerate(fits):
            guess = (x_test @ weight + bias).argmax(1, keepdim=True)
            correct[i] += (truth == guess).any(1).sum()
        correct[-1] += len(truth)
    if context.world.size > 1:
        torch.distributed.all_reduce(correct)
    by_shots = (correct[:-1] / correct[-1]).reshape(len(config.shots), config.seeds).mean(1)
    return dict(zip(config.shots, by_shots.tolist(), strict=True))


def ridge(x: Tensor, labels: Tensor, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """The linear classifier with the least |ZW - Y|^2 + l2 |W|^2.

    Z is x, each feature less its mean and over its standard deviation + 1e-5, and a constant feature of 100; Y is 1 for
    the class and -1 elsewhere. Solved in whichever of its primal and dual form is smaller: N x N or (D + 1) x (D + 1).

    Args:
        x: float64 [N, D].
        labels: int64 [N].
        classes: K.
        l2: lambda, over 0.

    Returns:
        Weight [D, K] and bias [K], for features as they come.
    """
    mean = x.mean(0)
    std = x.std(0, correction=0) + STD_FLOOR
    z = torch.cat([(x - mean) / std, torch.full((len(x), 1), BIAS, dtype=x.dtype)], dim=1)
    y = torch.full((len(x), classes), -1.0, dtype=x.dtype)
    y[torch.arange(len(x)), labels] = 1.0
    if len(z) >= z.shape[1]:
        w = torch.cholesky_solve(z.T @ y, _cholesky(z.T @ z, l2))
    else:
        w = z.T @ torch.cholesky_solve(y, _cholesky(z @ z.T, l2))
    weight = w[:-1] / std[:, None]
    return weight, BIAS * w[-1] - mean @ weight


def _cholesky(gram: Tensor, l2: float) -> Tensor:
    factor: Tensor = torch.linalg.cholesky(gram + l2 * torch.eye(len(gram), dtype=gram.dtype))
    return factor


def _drawn(config: FewShotConfig, context: EvalContext) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The shots' ordinals [seeds, classes, shots]: rank 0 reads the labels and sends them. A collective."""
    shots, train = max(config.shots), config.sources(context.recipe)[0]
    drawn = broadcast_object(draw(train, shots, config.seeds) if context.world.is_main else None, context.world)
    assert drawn is not None
    return drawn


def _shots(
    config: FewShotConfig, context: EvalContext, manifest: ShardManifest, drawn: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[Tensor, Tensor]:
    """Features [n, D] and labels [n] of all shots in the order of their ordinals, on every rank, on the CPU."""
    subset = pick(manifest, drawn)
    x = torch.zeros(subset.num_samples, feature_width(context), device=context.engine.device)
    labels = torch.zeros(subset.num_samples, dtype=torch.int64, device=context.engine.device)
    for batch, x_batch in features(context, manifest, subset=subset, crop=config.crop, view=squash):
        rows, truth = (whole.to(x.device, non_blocking=True) for whole in (batch.positions, batch.labels))
        x[rows], labels[rows] = x_batch, truth[:, 0]
    # Each row was filled by one rank: a sum with zeros is exact, and the fit is the same on any number of ranks.
    if context.world.size > 1:
        torch.distributed.all_reduce(x)
        torch.distributed.all_reduce(labels)
    return x.cpu(), labels.cpu()
