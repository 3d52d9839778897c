"""Targets and losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.config.schema import LossConfig
from vit_dist.data.reader import Batch
from vit_dist.engines._protocol import LossFunction


def make_targets(batch: Batch, num_classes: int, loss: LossConfig) -> Tensor:
    """Labels [B, L] with weights -> float32 targets [B, K].

    For softmax a distribution: divided among several labels by weight. For sigmoid every label has its weight. Label
    smoothing moves its fraction to the uniform distribution (softmax) or to one half (sigmoid).
    """
    targets = torch.zeros(len(batch.labels), num_classes)
    # Rows with fewer labels are padded with label -1 of weight 0: it adds nothing to class 0.
    targets.scatter_add_(1, batch.labels.clamp(min=0), batch.weights)
    if loss.name == "softmax":
        targets = targets / targets.sum(1, keepdim=True).clamp(min=1e-12)
        return targets * (1 - loss.label_smoothing) + loss.label_smoothing / num_classes
    return targets.clamp(max=1.0) * (1 - loss.label_smoothing) + loss.label_smoothing / 2


def make_loss(config: LossConfig) -> LossFunction:
    """The loss over (logits [B, K] float32, targets [B, K]) as a scalar.

    Sigmoid cross-entropy is summed over classes and averaged over the batch, as in the public code of the ViT paper.
    """
    return _softmax if config.name == "softmax" else _sigmoid


def _softmax(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets)


def _sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    summed = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return summed / len(logits)
