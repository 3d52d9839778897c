"""A study file is a grid (family x subset x seed) over one recipe; planning makes each cell a resolved recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vit_dist.config.load import (
    find_config,
    merge,
    parse_overrides,
    read_mapping,
    read_recipe_file,
    recipe_hash,
    resolve,
    validate,
)
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, did_you_mean
from vit_dist.core.registry import Config
from vit_dist.core.runlog import VAL_TOP1
from vit_dist.core.units import Duration, parse_count

_OF_THE_GRID = ("name", "study", "family", "seed", "data.subset")


def _subset(value: object) -> int | None:
    if value is None or value == "all":
        return None
    try:
        count = parse_count(value)
    except ValueError:
        raise ValueError(f"expected a count such as 2000 or '2k', or 'all'; got {value!r}") from None
    if count == 0:
        raise ValueError("a subset of 0 examples cannot be trained on; write 'all' for the whole set")
    return count


Subset = Annotated[int | None, BeforeValidator(_subset)]
Overrides = dict[str, Any]


class DurationRule(Config):
    """What is held equal over the cells, and how much of it: each pass over its subset, or each example seen."""

    equal: Literal["epochs", "examples"]
    length: Duration

    @model_validator(mode="after")
    def _fits(self) -> DurationRule:
        if self.length.unit != self.equal:
            raise ValueError(f"equal {self.equal} need a length in {self.equal}, such as '{_EXAMPLE[self.equal]}'")
        return self


_EXAMPLE = {"epochs": "20 epochs", "examples": "40k examples"}


class CellRule(Config):
    """Overrides for the cells that match every key given in `when`; no key matches all."""

    when: dict[Literal["family", "subset", "seed"], Any] = Field(default_factory=dict)
    set: Overrides

    def matches(self, family: str, subset: int | None, seed: int) -> bool:
        """True for a cell of this family, subset and seed."""
        cell = {"family": family, "subset": subset, "seed": seed}
        return all(cell[key] in self.wanted(key) for key in self.when)

    def wanted(self, key: Literal["family", "subset", "seed"]) -> list[Any]:
        """The values of one key of `when` that match."""
        values = self.when[key] if isinstance(self.when[key], list) else [self.when[key]]
        return [_subset(value) for value in values] if key == "subset" else values


class StudyConfig(Config):
    """A grid over a recipe. Later overrides win: `overrides`, then the family's, then matching `cells`, in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=60)]
    recipe: str = Field(description="name of a recipe in configs/recipes, or a path")
    families: dict[str, Overrides] = Field(description="label in figures -> what makes the family: model, lr, ...")
    subsets: Annotated[tuple[Subset, ...], Field(strict=False)] = Field(description="training examples; 'all' for all")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = (0,)
    duration: DurationRule | None = Field(None, description="replaces the recipe's horizon")
    metric: str = VAL_TOP1
    overrides: Overrides = Field(default_factory=dict)
    cells: Annotated[tuple[CellRule, ...], Field(strict=False)] = ()

    @field_validator("families")
    @classmethod
    def _some_families(cls, value: dict[str, Overrides]) -> dict[str, Overrides]:
        if not value:
            raise ValueError("a study needs at least one family")
        return value

    @field_validator("subsets", "seeds")
    @classmethod
    def _some_and_different(cls, value: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if not value:
            raise ValueError("a study needs at least one")
        twice = sorted({str(v) for v in value if value.count(v) > 1})
        if twice:
            raise ValueError(f"given twice: {', '.join(twice)}")
        return value

    @model_validator(mode="after")
    def _matchable(self) -> StudyConfig:
        known: dict[str, Sequence[object]] = {
            "family": list(self.families),
            "subset": self.subsets,
            "seed": self.seeds,
        }
        for i, rule in enumerate(self.cells):
            for key in rule.when:
                for value in rule.wanted(key):
                    if value not in known[key]:
                        hint = did_you_mean(str(value), map(str, known[key]))
                        raise ValueError(f"cells.{i}.when.{key}: the study has no {key} {value!r}{hint}")
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a study. `subset` is None for the whole set."""

    study: str
    family: str
    subset: int | None
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The run's name and directory, such as vit-2000-s0."""
        return self.recipe.name

    @property
    def hash(self) -> str:
        """Identity of the run; see `recipe_hash`."""
        return recipe_hash(self.recipe)

    @property
    def planned_examples(self) -> int | None:
        """Examples the run will see; None where that hangs on the size of the whole set."""
        horizon = self.recipe.horizon
        if self.subset is None and horizon.unit == "epochs":
            return None
        return round(horizon.examples(global_batch=self.recipe.global_batch, epoch_examples=self.subset or 0))


def load_study(name: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read and check a study file.

    Args:
        name: path of a YAML file, or the name of one in configs/studies.
        overrides: 'key=value' texts. Keys of the study change the study (`seeds=[0]`); all others are keys of the
            recipe and hold for every cell, over everything the file says (`optim.lr=1e-4`).

    Raises:
        ConfigError: every mistake, a line each.
    """
    path = find_config(name, "studies")
    raw = read_mapping(path)
    mine: list[str] = []
    recipes: list[str] = []
    for text in overrides:
        (mine if re.split(r"[.=]", text, maxsplit=1)[0].strip() in StudyConfig.model_fields else recipes).append(text)
    raw = merge(raw, parse_overrides(mine))
    if recipes:
        below = raw.get("cells", [])
        raw["cells"] = [*(below if isinstance(below, list) else [below]), {"set": parse_overrides(recipes)}]
    return validate(StudyConfig, raw, str(path))


def plan(study: StudyConfig) -> list[Cell]:
    """Every cell of a study, resolved: seed by seed, small subsets first, so that a stopped study is a smaller one.

    Raises:
        ConfigError: the recipe or an override is wrong; cells of one name.
    """
    base = read_recipe_file(find_config(study.recipe, "recipes"))
    if isinstance(base.get("data"), str):
        base["data"] = {"dataset": base["data"]}
    if study.duration is not None:
        base["horizon"] = study.duration.length
    base = _layer(base, study.overrides, "overrides")
    families = {label: _layer(base, overrides, f"families.{label}") for label, overrides in study.families.items()}
    subsets = sorted(study.subsets, key=lambda n: (n is None, n or 0))
    cells: dict[str, Cell] = {}
    for seed in study.seeds:
        for subset in subsets:
            for family, raw in families.items():
                cell = _cell(study, family, subset, seed, raw)
                if cell.name in cells:
                    raise ConfigError(
                        f"study {study.name}: the families {cells[cell.name].family!r} and {family!r} both make a run "
                        f"called {cell.name!r}; rename one"
                    )
                cells[cell.name] = cell
    return list(cells.values())


def _cell(study: StudyConfig, family: str, subset: int | None, seed: int, raw: dict[str, Any]) -> Cell:
    for i, rule in enumerate(study.cells):
        if rule.matches(family, subset, seed):
            raw = _layer(raw, rule.set, f"cells.{i}.set")
    slug = re.sub(r"[^A-Za-z0-9._+]+", "-", family).strip("-") or "family"
    name = f"{slug}-{'all' if subset is None else subset}-s{seed}"
    mine = {"name": name, "study": study.name, "family": family, "seed": seed, "data": {"subset": subset}}
    raw = merge(raw, mine)
    return Cell(study.name, family, subset, seed, resolve(raw, where=f"study {study.name}, {name}"))


def _layer(below: Mapping[str, Any], overrides: Overrides, where: str) -> dict[str, Any]:
    """Overrides, nested or dotted, over a raw recipe; keys that the grid itself sets are refused."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        tree = merge(tree, {key.split(".")[0]: value})
    for key in _OF_THE_GRID:
        node: Any = tree
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is not _ABSENT:
            raise ConfigError(f"{where}: {key!r} is set by the grid itself (families, subsets, seeds); leave it out")
    return merge(below, tree)


_ABSENT = object()

__all__ = ["Cell", "CellRule", "DurationRule", "StudyConfig", "load_study", "plan"]
