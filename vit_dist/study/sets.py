"""The sets that the cells of a study read: what is there, and what is not. Each place is looked at once; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import DataError, MissingError
from vit_dist.core.registry import Plugin
from vit_dist.data.manifest import read_manifest
from vit_dist.data.sets import how_to_pack
from vit_dist.study.grid import Cell


@dataclass(frozen=True)
class DatasetSize:
    """How many samples a dataset has, in how many bytes, of how many classes (0: it has no labels)."""

    samples: int
    num_bytes: int
    classes: int


@dataclass(frozen=True)
class SetsOfCells:
    """What the cells of a study will find.

    Attributes:
        sizes: of the sets that are there, by URL.
        unread: why one cannot be read, by URL.
    """

    sizes: Mapping[str, DatasetSize]
    unread: Mapping[str, str]

    def missing(self, cell: Cell) -> tuple[str, ...]:
        """Why a cell cannot be trained or evaluated for want of a set, a line each."""
        if not cell.recipe.data.is_named:
            return ("data.train is empty: give the URL of a set, made by `vit-dist data pack`",)
        named = places(cell.recipe, cell.evaluations)
        return tuple(dict.fromkeys(f"{key}: {self.unread[url]}" for key, url in named if url in self.unread))


def places(recipe: Recipe, evaluations: Sequence[Plugin] = ()) -> list[tuple[str, str]]:
    """Key and URL of every set that a run, and evaluations of it, will read; without those that are not named."""
    data = recipe.data
    named = [(f"data.mixture.{name}.train", part.train) for name, part in sorted(data.mixture.items())]
    named += [("data.train", "" if data.mixture else data.train), ("data.val", data.val)]
    for key, evaluators in (("evaluators", recipe.evaluators), ("evaluations", evaluations)):
        for evaluator in evaluators:
            own = evaluator.own_sets()  # type: ignore[attr-defined]
            named += [(f"{key}: {evaluator.name}: {field}", url) for field, url in own.items()]
    return [(key, url) for key, url in named if url]


def look_at_sets(cells: Iterable[Cell]) -> SetsOfCells:
    """Read the manifest of every set that the cells name, each place once."""
    sizes: dict[str, DatasetSize] = {}
    unread: dict[str, str] = {}
    for cell in cells:
        for key, url in places(cell.recipe, cell.evaluations):
            if url in sizes or url in unread:
                continue
            try:
                manifest = read_manifest(url)
            except DataError as error:
                to_pack = how_to_pack(cell.recipe) if key == "data.train" and isinstance(error, MissingError) else ""
                unread[url] = f"{error}{to_pack}"
            else:
                sizes[url] = DatasetSize(manifest.num_samples, int(manifest.sizes.sum()), manifest.num_classes)
    return SetsOfCells(sizes, unread)
