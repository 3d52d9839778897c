"""What evaluators share that fit a classifier of their own: the set it learns from, and the set it is tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.registry import AnyPlace
from vit_dist.core.units import counted
from vit_dist.evals import EvaluatorConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vit_dist.config.schema import Recipe
    from vit_dist.data.manifest import ShardManifest

_SHOWN = 5

SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A set's name in tags."""


class TransferConfig(EvaluatorConfig):
    """Base of evaluators that fit a classifier to a model's frozen features: its sets, and whether they go together."""

    scores_head: ClassVar[bool] = False

    set: SetName = Field("val", description="its name in the tags")
    train: AnyPlace = Field("", description="URL of the manifest that is learned from; empty: the recipe's data.train")
    test: AnyPlace = Field("", description="URL of the manifest that is classified; empty: the recipe's data.val")

    @property
    def headline(self) -> str:
        """The tag of the one value that stands for the set in a table."""
        raise NotImplementedError

    def check(self, recipe: Recipe) -> None:
        """See EvaluatorConfig. A recipe that names no data yet is to be completed."""
        problem = self._unnamed(recipe) if recipe.data.is_named else ""
        if problem:
            raise ValueError(problem)

    def sources(self, recipe: Recipe) -> tuple[str, str]:
        """URLs of the manifests that are learned from and tried on.

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
                    f"evaluators: {self.name} of {self.set!r} has no {key} set: give it `{key}: URL`, or the recipe a "
                    f"data.{of_recipe}"
                )
        return ""

    def own_sets(self) -> Mapping[str, str]:
        """See EvaluatorConfig."""
        return {key: url for key, url in (("train", self.train), ("test", self.test)) if url}

    def check_sets(self, recipe: Recipe) -> None:
        """See EvaluatorConfig: reads both manifests and the labels of both sets."""
        train, test = self.open_sets(recipe)
        sources = self.sources(recipe)
        check_classes(train, test, sources, f"evaluators: {self.name} of {self.set!r}")

    def open_sets(self, recipe: Recipe) -> tuple[ShardManifest, ShardManifest]:
        """The set that is learned from, and the test set with labels as the first counts them.

        Raises:
            ConfigError: one is not named, has no labels, or the test set has classes that the other has not.
            DataError: a manifest cannot be read.
        """
        from vit_dist.data.classes import Classes, counted_as

        what = f"evaluators: {self.name} of {self.set!r}"
        train, test = (
            _manifest(url, f"{what}: {key}") for key, url in zip(("train", "test"), self.sources(recipe), strict=True)
        )
        if not train.num_classes:
            raise ConfigError(
                f"{what}: its train set {train.name!r} has no labels; index its tars by "
                f"`vit-dist data index --labels EXT`"
            )
        known = Classes.of(train, "its train set")
        return train, counted_as(test, known, f"{what}: its test set")


def _manifest(url: str, key: str) -> ShardManifest:
    from vit_dist.data.manifest import read_manifest

    try:
        return read_manifest(url)
    except VitDistError as error:
        raise type(error)(f"{key}: {error}") from None


def check_classes(train: ShardManifest, test: ShardManifest, sources: tuple[str, str], what: str) -> None:
    """Refuse a test set with examples of classes of which there is nothing to learn from.

    Args:
        train: the set that is learned from.
        test: the other, with labels as the first counts them.
        sources: URLs of the two.
        what: whose they are, for errors.

    Raises:
        ConfigError: says which classes.
        DataError: an index cannot be read.
    """
    import numpy as np

    numbers = None if test.numbers is None else np.array(test.numbers, np.int64)
    tried = classes_of(sources[1])
    tried = tried if numbers is None else np.unique(numbers[tried])
    alone = np.setdiff1d(tried, classes_of(sources[0])).tolist()
    if not len(tried):
        raise ConfigError(f"{what}: no example of its test set {test.name!r} has a label")
    # Of several labels of one example another may be known.
    if alone and test.max_labels == 1:
        named = [f"{i} ({train.classes[i]})" if i < len(train.classes) else str(i) for i in alone[:_SHOWN]]
        more = ", ..." if len(alone) > _SHOWN else ""
        raise ConfigError(
            f"{what}: {counted(len(alone), 'class', 'classes')} of its test set {test.name!r} without any example in "
            f"its train set {train.name!r}: {', '.join(named)}{more}; no example of them can be classified rightly. "
            f"Give sets with the same classes"
        )


@lru_cache(maxsize=16)
def classes_of(url: str) -> NDArray[np.int64]:
    """The classes of which a set has examples, by its own numbers, ascending.

    Raises:
        DataError: the manifest or an index cannot be read.
    """
    import numpy as np

    from vit_dist.data.manifest import read_manifest

    manifest = read_manifest(url)
    found: Sequence[Any] = [np.unique(manifest.read_index(shard).labels) for shard in range(len(manifest.shards))]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
