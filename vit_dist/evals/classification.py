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
        if not recipe.data.is_validated and recipe.data.is_named:
            return {}
        return {VAL_TOP1: ACCURACY, VAL_LOSS: LOSS}

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig. Yields nothing without a validation set."""
        if context.val is None:
            return
        from vit_dist.evals._classification import correct_and_loss

        correct, loss, examples = correct_and_loss(context, context.val)
        yield VAL_TOP1, correct / examples
        yield VAL_LOSS, loss / examples
