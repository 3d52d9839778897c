"""Accuracy, loss and calibration on the validation set, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vit_dist.core.marks import NON_IDENTITY, WHEN_SET
from vit_dist.core.metrics import ACCURACY, LOSS, Metric
from vit_dist.core.registry import EVALUATORS
from vit_dist.core.run.log import VAL_LOSS, VAL_TOP1
from vit_dist.evals import EvalContext, EvaluatorConfig

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe

Measure = Literal["top1", "loss", "top5", "ece"]
_DEFAULT: tuple[Measure, ...] = ("top1", "loss")
_MOST_CLASSES = 4096
_TOP5 = "val/top5"
_ERROR = Metric(better="lower", range=(0, 1))


@EVALUATORS.register("classification")
class ClassificationConfig(EvaluatorConfig):
    """`val/top1`: fraction of examples whose highest logit is a label of theirs; `val/loss`: softmax cross-entropy.

    With `measure`, `val/top5`: fraction with a label among the five highest, and `val/ece_<bins>bins`: expected
    calibration error. An image may have several labels, of which each is right, as in ImageNet-ReaL (arXiv:2006.07159);
    one without any is left out. `confusion: true` draws which classes are taken for which.
    """

    measure: Annotated[tuple[Measure, ...], Field(strict=False, min_length=1), NON_IDENTITY, WHEN_SET] = Field(
        _DEFAULT, description="which values: top1, loss, top5, ece"
    )
    bins: Annotated[int, Field(ge=2, le=1000), NON_IDENTITY, WHEN_SET] = Field(
        15, description="of equal width, of the confidence, for `ece`; part of its tag"
    )
    confusion: Annotated[bool, NON_IDENTITY, WHEN_SET] = Field(
        False, description="write confusion.csv, .png and .svg to the run's evaluations/step-*"
    )

    def check(self, recipe: Recipe) -> None:
        """See EvaluatorConfig."""
        classes = recipe.data.num_classes
        if "top5" in self.measure and classes <= 5:
            raise ValueError(
                f"evaluators: classification: measure: top5 is always 1 of {classes} classes; leave it out"
            )
        if self.confusion and classes > _MOST_CLASSES:
            raise ValueError(
                f"evaluators: classification: confusion: a picture of {classes:,} classes would have {classes**2:,} "
                f"cells; at most {_MOST_CLASSES:,} classes are drawn"
            )

    def _tags(self) -> dict[Measure, tuple[str, Metric]]:
        return {
            "top1": (VAL_TOP1, ACCURACY),
            "loss": (VAL_LOSS, LOSS),
            "top5": (_TOP5, ACCURACY),
            "ece": (f"val/ece_{self.bins}bins", _ERROR),
        }

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric]:
        """See EvaluatorConfig. Nothing where the recipe names its data, and no validation set with it."""
        if not recipe.data.is_validated and recipe.data.is_named:
            return {}
        return dict(tag for measure, tag in self._tags().items() if measure in self.measure)

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig. Yields nothing without a validation set."""
        if context.val is None:
            return
        from vit_dist.evals._classification import Wanted, measured

        draws = self.confusion and context.outputs is not None
        wanted = Wanted("top5" in self.measure, self.bins if "ece" in self.measure else 0, draws)
        found = measured(context, context.val, wanted)
        if found.confusion is not None and context.outputs is not None and context.world.is_main:
            from vit_dist.evals._confusion import write_confusion

            write_confusion(found.confusion.numpy(), context.val.classes, context.val.name, context.outputs)
        for measure, (tag, _) in self._tags().items():
            if measure in self.measure:
                yield tag, getattr(found, measure)
