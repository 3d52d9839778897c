"""Few-shot linear evaluation: the metric of Figures 4 and 5 of the ViT paper. Closed form, nothing is trained."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vit_dist.core.errors import ConfigError
from vit_dist.core.metrics import ACCURACY, FEW_SHOT, Metric
from vit_dist.core.registry import EVALUATORS
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.evals import EvalContext, whole_set
from vit_dist.evals.transfer import TransferConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vit_dist.config.schema import Recipe
    from vit_dist.data.manifest import ShardManifest

Shots = Annotated[int, Field(ge=1)]
Lambda = Annotated[float, Field(gt=0)]
Lambdas = Annotated[tuple[Lambda, ...], Field(strict=False, min_length=1)]
_SPREAD = Metric(better="lower", range=(0, 1))


@EVALUATORS.register("fewshot")
class FewShotConfig(TransferConfig):
    """`fewshot/<set>_<k>shot`: top-1 on a test set of ridge regression from k frozen features of each class.

    The protocol of google-research/big_vision (evaluators/fewshot_lsr.py), which the paper's figures follow: features
    are what the head classifies; targets are -1 and 1; the mean over draws of the shots is given. Their standard
    deviation is `fewshot_std/<set>_<k>shot`. Several `l2` share what a draw costs most, its features: the first
    has the plain tags, another one `fewshot_l2_<lambda>/<set>_<k>shot`.
    """

    shots: Annotated[tuple[Shots, ...], Field(strict=False, min_length=1)] = Field(
        (1, 5, 10, 25), description="examples of each class that the classifier is fitted to; a metric each"
    )
    seeds: Annotated[int, Field(ge=1)] = Field(3, description="draws of the shots that are averaged")
    l2: Lambda | Lambdas = Field(
        1024.0, description="lambda of |XW - Y|^2 + lambda |W|^2; of several the first is that of the plain tags"
    )
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875, description="fraction of each side that is kept once the image is squashed to a square"
    )

    @property
    def lambdas(self) -> tuple[float, ...]:
        """All of `l2`, each once, that of the plain tags first."""
        return tuple(dict.fromkeys((self.l2,) if isinstance(self.l2, float) else self.l2))

    @property
    def headline(self) -> str:
        """See TransferConfig: of the most shots."""
        return self._tag(max(self.shots))

    def check_sets(self, recipe: Recipe) -> None:
        """See EvaluatorConfig: reads both manifests, and the labels of both sets."""
        super().check_sets(recipe)
        try:
            draw(self.sources(recipe)[0], max(self.shots), self.seeds)
        except ConfigError as error:
            raise ConfigError(f"evaluators: fewshot of {self.set!r}: {error}; give fewer shots") from None

    def measures_on(self, recipe: Recipe, val: ShardManifest | None) -> MeasuredOn | None:  # noqa: ARG002
        """See EvaluatorConfig. How many shots there are is said by the tags, where its sets lie does not matter."""
        train, test = self.open_sets(recipe)
        settings = {"shots_from": train.fingerprint, "seeds": self.seeds, "l2": self.lambdas[0], "crop": self.crop}
        return whole_set(test, recipe.data.image_size, self.crop, settings, train)

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric]:  # noqa: ARG002
        """See EvaluatorConfig."""
        means = {self._tag(shots, i): ACCURACY for i in range(len(self.lambdas)) for shots in self.shots}
        return means | ({self._spread(shots): _SPREAD for shots in self.shots} if self.seeds > 1 else {})

    def _tag(self, shots: int, which: int = 0) -> str:
        """The tag of a mean, by the place of its lambda."""
        group = f"fewshot_l2_{self.lambdas[which]:g}/" if which else FEW_SHOT
        return f"{group}{self.set}_{shots}shot"

    def _spread(self, shots: int) -> str:
        return f"fewshot_std/{self.set}_{shots}shot"

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig."""
        from vit_dist.evals._fewshot import accuracies

        # [lambdas, shots, seeds]
        found = accuracies(self, context)
        for i, of_lambda in enumerate(found):
            for shots, draws in zip(self.shots, of_lambda, strict=True):
                yield self._tag(shots, i), sum(draws) / len(draws)
        if self.seeds > 1:
            for shots, draws in zip(self.shots, found[0], strict=True):
                yield self._spread(shots), statistics.stdev(draws)


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
