"""Targets and losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.config.loss import LossConfig, TeacherConfig
from vit_dist.engines._protocol import LossFunction


def make_targets(labels: Tensor, weights: Tensor, num_classes: int, loss: LossConfig) -> Tensor:
    """int64 labels [B, L] with float32 weights [B, L] -> float32 targets [B, K], on their device.

    For softmax a distribution: divided among several labels by weight. For sigmoid and bce every label has its weight.
    Label smoothing moves its fraction to the uniform distribution (softmax, bce) or to one half (sigmoid).
    """
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    # Rows with fewer labels are padded with label -1 of weight 0: it adds nothing to class 0, whatever the order in
    # which a device adds.
    targets.scatter_add_(1, labels.clamp(min=0), weights)
    if loss.name == "softmax":
        targets = targets / targets.sum(1, keepdim=True).clamp(min=1e-12)
    else:
        targets = targets.clamp(max=1.0)
    return targets * (1 - loss.label_smoothing) + loss.label_smoothing / (2 if loss.name == "sigmoid" else num_classes)


def make_loss(config: LossConfig, class_weights: Tensor | None = None) -> LossFunction:
    """The loss over (logits [B, K] float32, targets [B, K]) as a scalar, averaged over the batch.

    Sigmoid cross-entropy is summed over classes, as in the public code of the ViT paper; bce is timm's
    BinaryCrossEntropy.

    Args:
        config: of the recipe.
        class_weights: [K], on the device of the logits: factors of the classes' terms; None: none.
    """
    if config.name == "softmax":
        # Of targets that are distributions torch divides by the examples, not by their classes' weights.
        return partial(functional.cross_entropy, weight=class_weights) if class_weights is not None else _softmax
    summed = config.name == "sigmoid" or config.sum_classes
    return partial(_binary, weight=class_weights, summed=summed, threshold=config.target_threshold)


def make_training_loss(config: LossConfig, class_weights: Tensor | None = None) -> LossFunction:
    """`make_loss`, and beside it the teacher's part where the recipe has one.

    Its targets are [B, 2K] then: those of the labels, and behind them the teacher's logits. Images are the same, mixed
    ones too, and classes have no weights in the teacher's part.
    """
    own = make_loss(config, class_weights)
    return own if config.teacher is None else partial(_distilled, own=own, teacher=config.teacher)


def _distilled(logits: Tensor, targets: Tensor, *, own: LossFunction, teacher: TeacherConfig) -> Tensor:
    classes = logits.shape[1]
    labels, theirs = targets[:, :classes], targets[:, classes:]
    if teacher.hard:
        taught = functional.cross_entropy(logits, theirs.argmax(dim=1))
    else:
        at = teacher.temperature
        ours, theirs = (functional.log_softmax(given / at, dim=1) for given in (logits, theirs))
        # Gradients of the divergence fall with the square of the temperature (arXiv 1503.02531, section 2).
        taught = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * at**2
    return (1 - teacher.weight) * own(logits, labels) + teacher.weight * taught


def _softmax(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets)


def _binary(logits: Tensor, targets: Tensor, *, weight: Tensor | None, summed: bool, threshold: float | None) -> Tensor:
    if threshold is not None:
        targets = targets.gt(threshold).to(targets.dtype)
    cross_entropy: Callable[..., Tensor] = functional.binary_cross_entropy_with_logits
    if summed:
        return cross_entropy(logits, targets, weight, reduction="sum") / len(logits)
    return cross_entropy(logits, targets, weight)
