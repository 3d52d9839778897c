"""k-nearest-neighbour classification on frozen features: nothing is fitted, and nothing is tuned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from vit_dist.core.errors import ConfigError
from vit_dist.core.metrics import ACCURACY, Metric
from vit_dist.core.registry import EVALUATORS
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.core.units import parse_count
from vit_dist.evals import EvalContext, whole_set
from vit_dist.evals.transfer import TransferConfig

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.data.manifest import ShardManifest

Neighbours = Annotated[int, Field(ge=1)]


@EVALUATORS.register("knn")
class KnnConfig(TransferConfig):
    """`knn/<set>_<k>nn`: top-1 on a test set by the votes of the k nearest examples of a train set.

    The protocol of DINO (arXiv:2104.14294; its public eval_knn.py): features are what the head classifies, divided by
    their length; each of the k examples with the largest cosine similarity s votes for its class with exp(s / T).
    """

    k: Annotated[tuple[Neighbours, ...], Field(strict=False, min_length=1)] = Field(
        (20,), description="neighbours that vote; a metric each"
    )
    temperature: Annotated[float, Field(gt=0)] = Field(0.07, description="T: a vote weighs exp(similarity / T)")
    train_subset: Annotated[int, BeforeValidator(parse_count), Field(ge=1)] | None = Field(
        None, description="of the train set, the first n examples of its nested order; left out: all"
    )
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875, description="fraction of the shorter side that the centre crop keeps"
    )

    @property
    def headline(self) -> str:
        """See TransferConfig."""
        return self._tag(self.k[0])

    def check_sets(self, recipe: Recipe) -> None:
        """See EvaluatorConfig."""
        super().check_sets(recipe)
        train, _ = self.open_sets(recipe)
        there = train.num_samples if self.train_subset is None else self.train_subset
        if self.train_subset is not None and self.train_subset > train.num_samples:
            raise ConfigError(
                f"evaluators: knn of {self.set!r}: train_subset={self.train_subset:,}, but its train set "
                f"{train.name!r} has {train.num_samples:,} examples"
            )
        if max(self.k) > there:
            raise ConfigError(
                f"evaluators: knn of {self.set!r}: k={max(self.k)} neighbours of {there:,} examples of its train set "
                f"{train.name!r}; give a smaller k"
            )

    def measures_on(self, recipe: Recipe, val: ShardManifest | None) -> MeasuredOn | None:  # noqa: ARG002
        """See EvaluatorConfig. How many neighbours vote is said by the tags."""
        train, test = self.open_sets(recipe)
        settings = {
            "neighbours_from": train.fingerprint,
            "subset": self.train_subset,
            "temperature": self.temperature,
            "crop": self.crop,
        }
        return whole_set(test, recipe.data.image_size, self.crop, settings, train)

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric]:  # noqa: ARG002
        """See EvaluatorConfig."""
        return {self._tag(k): ACCURACY for k in self.k}

    def _tag(self, k: int) -> str:
        return f"knn/{self.set}_{k}nn"

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig."""
        from vit_dist.evals._knn import accuracies

        for k, top1 in accuracies(self, context).items():
            yield self._tag(k), top1
