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


def accuracies(config: FewShotConfig, context: EvalContext) -> list[list[list[float]]]:
    """Top-1 on the test set [lambdas, shots, draws]; the same on every rank. A collective.

    Examples of the test set without a label are not tried.
    """
    train, test = config.open_sets(context.recipe)
    drawn = _drawn(config, context)
    x, labels = _shots(config, context, train, drawn)
    stored, classes = np.unique(drawn), train.num_classes
    device = context.engine.device
    fits = []
    for shots in config.shots:
        for ordinals in drawn:
            rows = torch.from_numpy(np.searchsorted(stored, ordinals[:, :shots].ravel()))
            ridge = Ridge(x[rows].double(), labels[rows], classes)
            solved = (ridge.solve(l2) for l2 in config.lambdas)
            fits += [(weight.to(device, torch.float32), bias.to(device, torch.float32)) for weight, bias in solved]
    # Correct examples of each fit, and last the number of examples.
    correct = torch.zeros(len(fits) + 1, dtype=torch.float64, device=device)
    for batch, x_test in features(context, test, crop=config.crop, view=squash):
        truth = batch.labels.to(device, non_blocking=True)
        known = (truth >= 0).any(1)
        for i, (weight, bias) in enumerate(fits):
            guess = (x_test @ weight + bias).argmax(1, keepdim=True)
            correct[i] += ((truth == guess).any(1) & known).sum()
        correct[-1] += known.sum()
    if context.world.size > 1:
        torch.distributed.all_reduce(correct)
    found = (correct[:-1] / correct[-1]).reshape(len(config.shots), config.seeds, len(config.lambdas))
    by_lambda: list[list[list[float]]] = found.permute(2, 0, 1).tolist()
    return by_lambda


class Ridge:
    """The linear classifiers with the least |ZW - Y|^2 + lambda |W|^2, for any lambda, of one Gram matrix.

    Z is x, each feature less its mean and over its standard deviation + 1e-5, and a constant feature of 100; Y is 1 for
    the class and -1 elsewhere. Solved in whichever of its primal and dual form is smaller: N x N or D x D. The constant
    feature is orthogonal to those that have no mean, and so has a solution of its own.

    Args:
        x: float64 [N, D].
        labels: int64 [N].
        classes: K.
    """

    def __init__(self, x: Tensor, labels: Tensor, classes: int) -> None:
        self._mean = x.mean(0)
        self._std = x.std(0, correction=0) + STD_FLOOR
        z = (x - self._mean) / self._std
        self._examples = len(z)
        counts = torch.bincount(labels, minlength=classes).to(x)
        # Sums over examples of Y.
        self._targets = 2 * counts - len(z)
        # W is left (gram + lambda)^-1 right; in the primal form left is the identity.
        self._left: Tensor | None = None
        if len(z) >= z.shape[1]:
            self._gram = z.T @ z
            of_class = torch.zeros(classes, z.shape[1], dtype=x.dtype).index_add_(0, labels, z)
            self._right = 2 * of_class.T - z.sum(0)[:, None]
        else:
            self._gram, self._left = z @ z.T, z.T
            self._right = torch.full((len(z), classes), -1.0, dtype=x.dtype)
            self._right[torch.arange(len(z)), labels] = 1.0

    def solve(self, l2: float) -> tuple[Tensor, Tensor]:
        """Weight [D, K] and bias [K] for a lambda over 0, for features as they come; float64."""
        inner = self._solved(l2)
        weight = (inner if self._left is None else self._left @ inner) / self._std[:, None]
        bias = BIAS**2 * self._targets / (BIAS**2 * self._examples + l2)
        return weight, bias - self._mean @ weight

    def _solved(self, l2: float) -> Tensor:
        """(gram + lambda)^-1 right, by Cholesky: a tenth of what eigenvalues cost, so that a few lambdas cost less."""
        shifted = self._gram.clone()
        shifted.diagonal().add_(l2)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not int(failed):
            return torch.cholesky_solve(self._right, factor)
        # A lambda so small that rounding leaves the matrix without a root.
        values, vectors = torch.linalg.eigh(self._gram)
        # Those that are zero may come out a rounding below it.
        solved: Tensor = vectors @ ((vectors.T @ self._right) / (values.clamp(min=0) + l2)[:, None])
        return solved


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
