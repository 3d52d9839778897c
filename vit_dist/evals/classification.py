"""Accuracy and loss on the validation set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vit_dist.core.metrics import ACCURACY, LOSS, Metric
from vit_dist.core.registry import EVALUATORS
from vit_dist.core.run.log import VAL_LOSS, VAL_TOP1
from vit_dist.evals import EvalContext, EvaluatorConfig

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe


@EVALUATORS.register("classification")
class ClassificationConfig(EvaluatorConfig):
    """`val/top1`: fraction of examples whose highest logit is a label of theirs; `val/loss`: softmax cross-entropy."""

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric]:
        """See EvaluatorConfig. Nothing where the recipe names its data, and no validation set with it."""
        if not recipe.data.val and recipe.data.is_named:
            return {}
        return {VAL_TOP1: ACCURACY, VAL_LOSS: LOSS}

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig. Yields nothing without a validation set."""
        if context.val is None:
            return
        import torch
        from torch.nn import functional

        from vit_dist.data.stream import EvalBatches

        recipe, engine = context.recipe, context.engine
        size, classes = recipe.data.image_size, recipe.data.num_classes
        # Of this rank: correct, loss, examples.
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in EvalBatches(context.val, recipe.data, context.world, recipe.eval.batch):
            # This rank has none left, but under ZeRO-3 a forward pass gathers weights from all ranks: it takes part
            # with an image whose result nobody uses.
            if batch is None:
                engine.predict(torch.zeros(1, 3, size, size, dtype=torch.uint8))
                continue
            logits = engine.predict(batch.images).cpu()
            correct = (batch.labels == logits.argmax(1, keepdim=True)).any(1).sum()
            targets = torch.zeros(len(logits), classes).scatter_add_(1, batch.labels.clamp(min=0), batch.weights)
            targets /= targets.sum(1, keepdim=True).clamp(min=1e-12)
            loss = functional.cross_entropy(logits, targets, reduction="sum")
            sums += torch.tensor([float(correct), float(loss), float(len(logits))], dtype=torch.float64)
        if context.world.size > 1:
            device_sums = sums.to(engine.device)
            torch.distributed.all_reduce(device_sums)
            sums = device_sums.cpu()
        yield VAL_TOP1, float(sums[0] / sums[2])
        yield VAL_LOSS, float(sums[1] / sums[2])
