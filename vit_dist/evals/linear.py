"""Linear probes on frozen features: many learning rates, layers and poolings, of which a held-out slice chooses one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

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

Pooling = Literal["head", "cls", "mean", "cls+mean"]
Blocks = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


@EVALUATORS.register("linear")
class LinearConfig(TransferConfig):
    """`linear/<set>_top1`: top-1 on a test set of the linear probe that is best on a held-out slice of the train set.

    After the linear evaluation of DINOv2 (arXiv:2304.07193; its public eval/linear.py): a probe for each learning rate,
    number of last blocks and pooling, all trained at once by SGD with momentum 0.9 and a cosine. Other than there,
    images are seen in evaluation's view alone, so that features are computed once; and the test set has no say in which
    probe is chosen. `linear/<set>_heldout` is the chosen probe's top-1 on the slice.
    """

    layers: Annotated[tuple[Blocks, ...], Field(strict=False, min_length=1)] = Field(
        (1,), description="numbers of last blocks whose outputs a probe sees side by side"
    )
    poolings: Annotated[tuple[Pooling, ...], Field(strict=False, min_length=1)] = Field(
        ("head", "mean"),
        description="head: what the model's head classifies; of the last blocks, cls: class tokens; mean: means over "
        "patches; cls+mean: class tokens, and the last block's mean",
    )
    rates: Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)] = Field(
        (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        description="learning rates for a batch of 256, from which they are scaled to `batch`",
    )
    batch: Annotated[int, Field(ge=1)] = Field(1024, description="examples of a step, on all ranks together")
    passes: Annotated[int, Field(ge=1)] = Field(
        10, description="how often each example of the train set is learned from"
    )
    heldout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the train set that no probe learns from, by which one is chosen"
    )
    refit: bool = Field(True, description="train the chosen probe anew on all of the train set, before it is tested")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the order of examples and of the held-out slice")
    train_subset: Annotated[int, BeforeValidator(parse_count), Field(ge=2)] | None = Field(
        None, description="of the train set, the first n examples of its nested order; left out: all"
    )
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875, description="fraction of the shorter side that the centre crop keeps"
    )

    @property
    def headline(self) -> str:
        """See TransferConfig."""
        return f"linear/{self.set}_top1"

    @property
    def last_blocks(self) -> int:
        """So many of a model's last blocks are looked at."""
        return max(self.layers) if set(self.poolings) != {"head"} else 0

    def check(self, recipe: Recipe) -> None:
        """See EvaluatorConfig. A model that says how many blocks it has must have as many as are asked for."""
        super().check(recipe)
        depth = getattr(recipe.model, "depth", None)
        if isinstance(depth, int) and self.last_blocks > depth:
            raise ValueError(
                f"evaluators: linear of {self.set!r}: layers={self.last_blocks}, but {recipe.model.name} has "
                f"{depth} blocks"
            )
        classless = getattr(recipe.model, "pool", "cls") != "cls"
        asked = [pooling for pooling in self.poolings if pooling.startswith("cls")]
        if asked and classless:
            raise ValueError(
                f"evaluators: linear of {self.set!r}: poolings: {asked[0]}, but {recipe.model.name} has no class token "
                f"(pool: {getattr(recipe.model, 'pool', '')}); give poolings: [head, mean]"
            )

    def check_sets(self, recipe: Recipe) -> None:
        """See EvaluatorConfig."""
        super().check_sets(recipe)
        train, _ = self.open_sets(recipe)
        if self.train_subset is not None and self.train_subset > train.num_samples:
            raise ConfigError(
                f"evaluators: linear of {self.set!r}: train_subset={self.train_subset:,}, but its train set "
                f"{train.name!r} has {train.num_samples:,} examples"
            )
        there = self.train_subset or train.num_samples
        if not 1 <= round(self.heldout * there) < there:
            raise ConfigError(
                f"evaluators: linear of {self.set!r}: heldout={self.heldout:g} of {there:,} examples of its train set "
                f"{train.name!r} leaves no example to choose by, or none to learn from"
            )

    def measures_on(self, recipe: Recipe, val: ShardManifest | None) -> MeasuredOn | None:  # noqa: ARG002
        """See EvaluatorConfig. Where its sets lie does not matter."""
        from vit_dist.config.schema import dump_identity

        train, test = self.open_sets(recipe)
        own = dump_identity(self)
        settings = {key: own[key] for key in own if key not in {"name", "set", "train", "test"}}
        settings["learns_from"] = train.fingerprint
        return whole_set(test, recipe.data.image_size, self.crop, settings, train)

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric]:  # noqa: ARG002
        """See EvaluatorConfig."""
        return {self.headline: ACCURACY, f"linear/{self.set}_heldout": ACCURACY}

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig."""
        from vit_dist.evals._linear import probed

        top1, heldout = probed(self, context)
        yield self.headline, top1
        yield f"linear/{self.set}_heldout", heldout
