"""Few-shot linear evaluation: the metric of Figures 4 and 5 of the ViT paper. Closed form, nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from vit_dist.core.errors import ConfigError
from vit_dist.core.metrics import ACCURACY, FEW_SHOT, Metric
from vit_dist.core.registry import EVALUATORS, AnyPlace
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.evals import EvalContext, EvaluatorConfig, whole_set

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vit_dist.config.schema import Recipe
    from vit_dist.data.manifest import ShardManifest

Shots = Annotated[int, Field(ge=1)]


@EVALUATORS.register("fewshot")
class FewShotConfig(EvaluatorConfig):
    """`fewshot/<set>_<k>shot`: top-1 on a test set of ridge regression from k frozen features of each class.

    The protocol of google-research/big_vision (evaluators/fewshot_lsr.py), which the paper's figures follow: features
    are what the head classifies; targets are -1 and 1; the mean over draws of the shots is given.
    """

    scores_head: ClassVar[bool] = False

    set: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(description="its name in the tags")
    train: AnyPlace = Field(
        "", description="URL of the manifest that shots are drawn from; empty: the recipe's data.train"
    )
    test: AnyPlace = Field("", description="URL of the manifest that is classified; empty: the recipe's data.val")
    shots: Annotated[tuple[Shots, ...], Field(strict=False, min_length=1)] = Field(
        (1, 5, 10, 25), description="examples of each class that the classifier is fitted to; a metric each"
    )
    seeds: Annotated[int, Field(ge=1)] = Field(3, description="draws of the shots that are averaged")
    l2: Annotated[float, Field(gt=0)] = Field(1024.0, description="lambda of |XW - Y|^2 + lambda |W|^2")
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875, description="fraction of each side that is kept once the image is squashed to a square"
    )

    def check(self, recipe: Recipe) -> None:
        """See EvaluatorConfig. A recipe that names no data yet is to be completed."""
        problem = self._unnamed(recipe) if recipe.data.is_named else ""
        if problem:
            raise ValueError(problem)

    def sources(self, recipe: Recipe) -> tuple[str, str]:
        """URLs of the manifests of shots and of the test set.

        Raises:
            ConfigError: neither this evaluator nor the recipe names one.
        """
        problem = self._unnamed(recipe)
        if problem:
            raise ConfigError(problem)
        return self.train or recipe.data.train, self.test or recipe.data.val

    def _unnamed(self, recipe: Recipe) -> str:
        for key, of_recipe in ("train", "train"), ("test", "val"):
            if not getattr(self, key) and not getattr(recipe.data, of_recipe):
                return (
                    f"evaluators: fewshot of {self.set!r} has no {key} set: give it `{key}: URL`, or the recipe a "
                    f"data.{of_recipe}"
                )
        return ""

    def own_sets(self) -> Mapping[str, str]:
        """See EvaluatorConfig."""
        return {key: url for key, url in (("train", self.train), ("test", self.test)) if url}

    def check_sets(self, recipe: Recipe) -> None:
        """See EvaluatorConfig: reads both manifests, and the labels of the set of shots."""
        self.open_sets(recipe)
        draw(self.sources(recipe)[0], max(self.shots), self.seeds)

    def open_sets(self, recipe: Recipe) -> tuple[ShardManifest, ShardManifest]:
        """The set of shots, and the test set with labels as the first counts them.

        Raises:
            ConfigError: one is not named, or the test set has classes that the other has not.
            DataError: a manifest cannot be read.
        """
        from vit_dist.data.classes import Classes, counted_as
        from vit_dist.data.manifest import read_manifest

        train, test = (read_manifest(url) for url in self.sources(recipe))
        known = Classes.of(train, "its train set")
        return train, counted_as(test, known, f"evaluators: fewshot of {self.set!r}: its test set")

    def measures_on(self, recipe: Recipe, val: ShardManifest | None) -> MeasuredOn | None:  # noqa: ARG002
        """See EvaluatorConfig. How many shots there are is said by the tags, where its sets lie does not matter."""
        train, test = self.open_sets(recipe)
        settings = {"shots_from": train.fingerprint, "seeds": self.seeds, "l2": self.l2, "crop": self.crop}
        return whole_set(test, recipe.data.image_size, self.crop, settings, train)

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric]:  # noqa: ARG002
        """See EvaluatorConfig."""
        return {self._tag(shots): ACCURACY for shots in self.shots}

    def _tag(self, shots: int) -> str:
        return f"{FEW_SHOT}{self.set}_{shots}shot"

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig."""
        from vit_dist.evals._fewshot import accuracies

        for shots, top1 in accuracies(self, context).items():
            yield self._tag(shots), top1


@lru_cache(maxsize=8)
def draw(train: str, shots: int, seeds: int) -> NDArray[np.int64]:
    """Ordinals of the shots, the same wherever and whenever they are drawn. int64 [seeds, classes, shots].

    Raises:
        ConfigError: a class has too few examples.
        DataError: the manifest or an index cannot be read.
    """
    import numpy as np

    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.subset import select_shots

    manifest = read_manifest(train)
    return np.stack([select_shots(manifest, shots, seed) for seed in range(seeds)])
