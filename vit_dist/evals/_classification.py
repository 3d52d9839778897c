"""Sums over a validation set, which stay on the device until its last batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.data.manifest import ShardManifest
from vit_dist.data.stream import EvalBatches
from vit_dist.evals import EvalContext
from vit_dist.evals._pace import paced

_TOP = 5


@dataclass(frozen=True)
class Wanted:
    """What is summed beside correct examples and losses.

    Attributes:
        top5: examples with a label among the five highest logits.
        bins: of confidences, for calibration; 0: none.
        confusion: examples by label and prediction.
    """

    top5: bool = False
    bins: int = 0
    confusion: bool = False


@dataclass(frozen=True)
class Found:
    """Of a set, over all ranks.

    Attributes:
        top1, top5: fractions of its examples.
        loss: mean softmax cross-entropy.
        ece: expected calibration error.
        confusion: int64 [K, K]: examples by label (row) and prediction, on the CPU; None where it was not wanted.
    """

    top1: float
    loss: float
    top5: float
    ece: float
    confusion: Tensor | None


def measured(context: EvalContext, manifest: ShardManifest, wanted: Wanted = Wanted()) -> Found:
    """What a head says of a set, over all ranks; the same on each. A collective.

    Each example counts once, on whatever number of ranks: those of a rank's short last batch, and of none at all, are
    not filled up. Examples without a label are left out.
    """
    recipe, engine = context.recipe, context.engine
    device, size, classes = engine.device, recipe.data.image_size, recipe.data.num_classes
    # In double precision counts are exact, and sums of losses depend on the order in their last bits alone.
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    bins = torch.zeros(3, wanted.bins, dtype=torch.float64, device=device)
    confusion = torch.zeros(classes**2 if wanted.confusion else 0, dtype=torch.int64, device=device)
    for batch in paced(EvalBatches(manifest, recipe.data, context.world, recipe.eval.batch), device):
        # This rank has none left, but under ZeRO-3 a forward pass gathers weights from all ranks: it takes part with
        # an image whose result nobody uses.
        if batch is None:
            engine.predict(torch.zeros(1, 3, size, size, dtype=torch.uint8))
            continue
        labels, weights = (whole.to(device, non_blocking=True) for whole in (batch.labels, batch.weights))
        logits = engine.predict(batch.images)
        sums[:3] += batch_sums(logits, labels, weights)
        if wanted.top5:
            sums[3] += among_top(logits, labels, _TOP)
        if wanted.bins:
            bins += confidences(logits, labels, wanted.bins)
        if wanted.confusion:
            add_confusion(confusion, logits, labels)
    if context.world.size > 1:
        for whole in (sums, bins, confusion):
            if whole.numel():
                torch.distributed.all_reduce(whole)
    # The numbers that are read: here the host waits for the device.
    correct, loss, examples, top5 = sums.tolist()
    matrix = confusion.view(classes, classes).cpu() if wanted.confusion else None
    ece = calibration_error(bins) if wanted.bins else 0.0
    return Found(correct / examples, loss / examples, top5 / examples, ece, matrix)


def batch_sums(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """float64 [3] on their device: correct examples, their summed softmax cross-entropy, their number.

    Args:
        logits: float32 [B, K].
        labels: int64 [B, L]; -1 where an example has fewer. An example without any does not count.
        weights: float32 [B, L] of the labels.
    """
    correct = (labels == logits.argmax(1, keepdim=True)).sum(dtype=torch.float64)
    examples = (labels[:, 0] >= 0).sum(dtype=torch.float64)
    if labels.shape[1] == 1:
        losses = functional.cross_entropy(logits, labels[:, 0], ignore_index=-1, reduction="none")
    else:
        # Of K log-probabilities only those of the labels count: no [B, K] of targets.
        own = functional.log_softmax(logits, dim=1).gather(1, labels.clamp(min=0))
        losses = -torch.where(labels >= 0, own * weights, 0.0).sum(1) / weights.sum(1).clamp(min=1e-12)
    return torch.stack([correct, losses.sum(dtype=torch.float64), examples])


def among_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """float64 []: examples with a label among the classes of the k highest logits."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (labels[:, :, None] == best[:, None, :]).any(2).any(1).sum(dtype=torch.float64)


def confidences(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """float64 [3, bins]: examples, summed confidences and correct examples, by confidence.

    The confidence is the highest softmax probability; bin b of M has those in (b / M, (b + 1) / M].
    """
    highest, guess = logits.double().softmax(1).max(1)
    known = (labels >= 0).any(1)
    correct = (labels == guess[:, None]).any(1)
    place = (highest * bins).ceil().long().sub(1).clamp(0, bins - 1)
    rows = torch.stack([torch.ones_like(highest), highest, correct.to(highest)]) * known
    return torch.zeros(3, bins, dtype=torch.float64, device=logits.device).index_add_(1, place, rows)


def calibration_error(bins: Tensor) -> float:
    """Sum over bins of n_b / n |accuracy_b - mean confidence_b| (Guo et al., arXiv:1706.04599, equation 3).

    Args:
        bins: float64 [3, M] as `confidences` gives them.
    """
    examples, confidence, correct = bins
    return float((correct - confidence).abs().sum() / examples.sum().clamp(min=1))


def add_confusion(counts: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Count examples by label and prediction.

    Of several labels the predicted one counts where it is among them, else the first.

    Args:
        counts: int64 [K K], added to.
        logits: [B, K].
        labels: int64 [B, L].
    """
    guess = logits.argmax(1)
    row = torch.where((labels == guess[:, None]).any(1), guess, labels[:, 0])
    known = (labels >= 0).any(1)
    counts.index_add_(0, row.clamp(min=0) * logits.shape[1] + guess, known.to(counts))
