"""Several datasets in one go: one table of transfer, and its mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from vit_dist.core.errors import VitDistError
from vit_dist.core.metrics import ACCURACY, Metric
from vit_dist.core.registry import EVALUATORS, AnyPlace, Config
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.evals import EvalContext, EvaluatorConfig
from vit_dist.evals.fewshot import FewShotConfig
from vit_dist.evals.knn import KnnConfig
from vit_dist.evals.linear import LinearConfig
from vit_dist.evals.transfer import SetName, TransferConfig

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.data.manifest import ShardManifest

_BY: dict[str, type[TransferConfig]] = {"fewshot": FewShotConfig, "knn": KnnConfig, "linear": LinearConfig}
_GIVEN = ("name", "every", "set", "train", "test")
_MEAN = "mean"


class SuiteSet(Config):
    """One dataset of a suite."""

    train: Annotated[AnyPlace, Field(min_length=1)] = Field(description="URL of the manifest that is learned from")
    test: Annotated[AnyPlace, Field(min_length=1)] = Field(description="URL of the manifest that is classified")
    settings: dict[str, Any] = Field({}, description="of the evaluator, for this set alone, such as {crop: 1.0}")


@EVALUATORS.register("suite")
class SuiteConfig(EvaluatorConfig):
    """`suite/<set>_mean`: the mean of top-1 over several datasets, and `suite/<set>_<dataset>` of each.

    As the paper's averages over transfer tasks (arXiv:2010.11929, Table 2 and Figure 2) and VTAB's table
    (arXiv:1910.04867), but with frozen features: each dataset is looked at by one of the evaluators fewshot, knn and
    linear. `groups` have means of their own, as VTAB's natural, specialized and structured. One CSV holds the table.
    """

    scores_head: ClassVar[bool] = False

    set: SetName = Field("suite", description="its name in the tags")
    by: Literal["fewshot", "knn", "linear"] = Field("linear", description="the evaluator that looks at each dataset")
    settings: dict[str, Any] = Field({}, description="of that evaluator, for all datasets, such as {shots: [10]}")
    sets: Annotated[dict[SetName, SuiteSet], Field(min_length=1)] = Field(
        description="the datasets by name: {pets: {train: URL, test: URL}, ...}"
    )
    groups: dict[SetName, Annotated[tuple[str, ...], Field(strict=False, min_length=1)]] = Field(
        {}, description="means of some of them, such as {natural: [pets, flowers]}"
    )

    @field_validator("sets")
    @classmethod
    def _no_mean(cls, value: dict[str, SuiteSet]) -> dict[str, SuiteSet]:
        if _MEAN in value:
            raise ValueError(f"a dataset cannot be called {_MEAN!r}: the tag of the mean is")
        return value

    @model_validator(mode="after")
    def _possible(self) -> SuiteConfig:
        for name, group in self.groups.items():
            unknown = [one for one in group if one not in self.sets]
            if unknown:
                raise ValueError(f"groups: {name}: no dataset {unknown[0]!r}; there are {', '.join(self.sets)}")
            if name in self.sets:
                raise ValueError(f"groups: {name!r} is a dataset's name too; call one of them otherwise")
        self.parts  # noqa: B018 - their settings are checked
        return self

    @cached_property
    def parts(self) -> dict[str, TransferConfig]:
        """The evaluator of each dataset."""
        return {name: self._part(name, one) for name, one in self.sets.items()}

    def _part(self, name: str, one: SuiteSet) -> TransferConfig:
        from vit_dist.config.mistakes import describe

        settings = {**self.settings, **one.settings}
        for key in _GIVEN:
            if key in settings:
                raise ValueError(f"sets.{name}: settings: {key} is not one of them: it is given beside them")
        cls = _BY[self.by]
        try:
            return cls.model_validate({**settings, "name": self.by, "set": name, "train": one.train, "test": one.test})
        except ValidationError as error:
            raise ValueError("; ".join(describe(error, cls, f"sets.{name}: settings"))) from None

    def check(self, recipe: Recipe) -> None:
        """See EvaluatorConfig."""
        for part in self.parts.values():
            part.check(recipe)

    def own_sets(self) -> Mapping[str, str]:
        """See EvaluatorConfig."""
        return {f"sets.{name}.{key}": url for name, one in self.sets.items() for key, url in _places(one).items()}

    def check_sets(self, recipe: Recipe) -> None:
        """See EvaluatorConfig: of every dataset, before the first is looked at."""
        for name, part in self.parts.items():
            try:
                part.check_sets(recipe)
            except VitDistError as error:
                text = str(error).removeprefix("evaluators: ")
                raise type(error)(f"evaluators: suite of {self.set!r}: sets.{name}: {text}") from None

    def measures_on(self, recipe: Recipe, val: ShardManifest | None) -> MeasuredOn | None:
        """See EvaluatorConfig: all datasets together, with what each is looked at by."""
        found = {name: part.measures_on(recipe, val) for name, part in self.parts.items()}
        known = {name: on for name, on in found.items() if on is not None}
        keys = json.dumps({name: [on.key, self.parts[name].headline] for name, on in sorted(known.items())})
        return MeasuredOn(
            name=self.set,
            fingerprint=hashlib.sha256(keys.encode()).hexdigest()[:16],
            examples=sum(on.examples for on in known.values()),
            image_size=recipe.data.image_size,
            crop=next(iter(known.values())).crop,
            settings={"by": self.by},
        )

    def metrics(self, recipe: Recipe) -> Mapping[str, Metric]:  # noqa: ARG002
        """See EvaluatorConfig."""
        return dict.fromkeys((self._tag(name) for name in (*self.sets, *self.groups, _MEAN)), ACCURACY)

    def _tag(self, name: str) -> str:
        return f"suite/{self.set}_{name}"

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        """See EvaluatorConfig."""
        values = {name: dict(part.run(context))[part.headline] for name, part in self.parts.items()}
        means = {name: sum(values[one] for one in group) / len(group) for name, group in self.groups.items()}
        means[_MEAN] = sum(values.values()) / len(values)
        if context.world.is_main:
            self._tell(context, values, means)
        yield from ((self._tag(name), value) for name, value in {**values, **means}.items())

    def _tell(self, context: EvalContext, values: Mapping[str, float], means: Mapping[str, float]) -> None:
        """The table, as lines and as a file."""
        from vit_dist.core.files import write_bytes
        from vit_dist.core.log import log
        from vit_dist.core.tables import csv_text

        width = max(len(name) for name in (*values, *means))
        lines = [f"  {name:<{width}}  {100 * value:5.1f}%" for name, value in {**values, **means}.items()]
        log("\n".join([f"  suite {self.set!r} by {self.by}, top-1:", *lines]))
        if context.outputs is None:
            return
        rows: list[tuple[object, ...]] = []
        for name, part in self.parts.items():
            train, test = part.open_sets(context.recipe)
            rows.append((name, part.headline, train.num_samples, test.num_samples, test.num_classes, values[name]))
        rows += [(name, "mean", None, None, None, value) for name, value in means.items()]
        heads = ("dataset", "metric", "train_examples", "test_examples", "classes", "top1")
        write_bytes(str(context.outputs / f"suite-{self.set}.csv"), csv_text([heads, *rows]).encode())


def _places(one: SuiteSet) -> dict[str, str]:
    return {"train": one.train, "test": one.test}
