"""Targets and losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.config.schema import LossConfig
from vit_dist.engines._protocol import LossFunction


def make_targets(labels: Tensor, weights: Tensor, num_classes: int, loss: LossConfig) -> Tensor:
    """int64 labels [B, L] with float32 weights [B, L] -> float32 targets [B, K], on their device.

    For softmax a distribution: divided among several labels by weight. For sigmoid every label has its weight. Label
    smoothing moves its fraction to the uniform distribution (softmax) or to one half (sigmoid).
    """
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    # Rows with fewer labels are padded with label -1 of weight 0: it adds nothing to class 0, whatever the order in
    # which a device adds.
    targets.scatter_add_(1, labels.clamp(min=0), weights)
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
