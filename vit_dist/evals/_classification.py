"""Sums over a validation set, which stay on the device until its last batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.data.manifest import ShardManifest
from vit_dist.data.stream import EvalBatches
from vit_dist.evals import EvalContext
from vit_dist.evals._pace import paced


def correct_and_loss(context: EvalContext, manifest: ShardManifest) -> tuple[float, float, float]:
    """Correct examples, summed loss and examples of a set, over all ranks; the same on each. A collective.

    Each example counts once, on whatever number of ranks: those of a rank's short last batch, and of none at all, are
    not filled up.
    """
    recipe, engine = context.recipe, context.engine
    device, size = engine.device, recipe.data.image_size
    # In double precision counts are exact, and sums of losses depend on the order in their last bits alone.
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in paced(EvalBatches(manifest, recipe.data, context.world, recipe.eval.batch), device):
        # This rank has none left, but under ZeRO-3 a forward pass gathers weights from all ranks: it takes part with
        # an image whose result nobody uses.
        if batch is None:
            engine.predict(torch.zeros(1, 3, size, size, dtype=torch.uint8))
            continue
        labels, weights = (whole.to(device, non_blocking=True) for whole in (batch.labels, batch.weights))
        sums += batch_sums(engine.predict(batch.images), labels, weights)
    if context.world.size > 1:
        torch.distributed.all_reduce(sums)
    # The one number that is read: here the host waits for the device.
    correct, loss, examples = sums.tolist()
    return correct, loss, examples


def batch_sums(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """float64 [3] on their device: correct examples, their summed softmax cross-entropy, their number.

    Args:
        logits: float32 [B, K].
        labels: int64 [B, L]; -1 where an example has fewer.
        weights: float32 [B, L] of the labels.
    """
    correct = (labels == logits.argmax(1, keepdim=True)).any(1).sum(dtype=torch.float64)
    targets = torch.zeros_like(logits).scatter_add_(1, labels.clamp(min=0), weights)
    targets /= targets.sum(1, keepdim=True).clamp(min=1e-12)
    loss = functional.cross_entropy(logits, targets, reduction="none").sum(dtype=torch.float64)
    return torch.stack([correct, loss, torch.full_like(loss, len(logits))])
