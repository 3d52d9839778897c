"""A study file is a grid (family x subset x seed) over one recipe; planning makes each cell a resolved recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from vit_dist.config.blame import Sources
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
from vit_dist.config.plugins import anchored
from vit_dist.config.schema import CheckpointConfig, Recipe
from vit_dist.config.sections import layer
from vit_dist.core.errors import ConfigError, did_you_mean
from vit_dist.core.files import join_url
from vit_dist.core.metrics import Metric
from vit_dist.core.registry import Config, LocalPath, Plugin
from vit_dist.core.run.log import VAL_TOP1
from vit_dist.core.units import Duration, parse_count
from vit_dist.study.branches import BranchRule, branch_of, checkpoint_in, grown_from
from vit_dist.study.duration import DurationRule

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
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


class CellRule(Config):
    """Overrides for the cells that match every key given in `when`; no key matches all."""

    when: dict[Literal["family", "subset", "seed"], Any] = Field(
        default_factory=dict, description="which cells: values of family, subset and seed; left out: all"
    )
    set: Overrides = Field(description="keys of the recipe for these cells")

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

    name: Annotated[str, Field(pattern=_LABEL, max_length=60)] = Field(
        description="of the study, and of its directory of runs"
    )
    recipe: LocalPath = Field(description="name of a recipe in configs/recipes, or a path")
    models: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="names of models, each a family of its own; short for families: {NAME: {model: NAME}}"
    )
    families: dict[str, Overrides] = Field({}, description="label in figures -> what makes the family: model, lr, ...")
    subsets: Annotated[tuple[Subset, ...], Field(strict=False)] = Field(description="training examples; 'all' for all")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = Field(
        (0,), description="a run each, of every family and size"
    )
    duration: DurationRule | None = Field(None, description="replaces the recipe's horizon")
    metric: str = Field(VAL_TOP1, description="what the report draws first; the runs must measure it")
    metrics: dict[str, Metric] = Field(
        {}, description="how metrics are read that no evaluator declares: {TAG: {better: lower, range: [0, 1]}}"
    )
    overrides: Overrides = Field(default_factory=dict, description="keys of the recipe for every cell")
    cells: Annotated[tuple[CellRule, ...], Field(strict=False)] = Field((), description="overrides for some cells")
    branches: dict[Annotated[str, Field(pattern=_LABEL, max_length=40)], BranchRule] = Field(
        {}, description="label -> a branch of each run of the grid, which is its trunk and is trained once"
    )
    evaluations: Annotated[tuple[str | dict[str, Any], ...], Field(strict=False)] = Field(
        (), description="evaluators that look at each run once it is done, in jobs of their own on a cluster"
    )
    # Texts of the command line that are keys of the recipe, for errors.
    _typed: tuple[str, ...] = PrivateAttr(())
    # What was validated, as plain data.
    _read: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def as_read(self) -> dict[str, Any]:
        """The file's content, with the overrides, as plain data."""
        return self._read

    @model_validator(mode="before")
    @classmethod
    def _models_are_families(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("models"), list | tuple):
            return value
        named = {name: {"model": name} for name in value["models"] if isinstance(name, str)}
        given = value.get("families") or {}
        return {**value, "families": {**named, **given}} if isinstance(given, Mapping) else value

    @field_validator("families")
    @classmethod
    def _some_families(cls, value: dict[str, Overrides]) -> dict[str, Overrides]:
        if not value:
            raise ValueError("a study needs at least one family: give `models` or `families`")
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
    """One run of a study. `subset` is None for the whole set; `evaluations` look at the run once it is done.

    Of a branch `label` is the name among the study's branches, and `trunk` the run that it begins from; else ''.
    """

    study: str
    family: str
    subset: int | None
    seed: int
    recipe: Recipe
    evaluations: tuple[Plugin, ...] = ()
    label: str = ""
    trunk: str = ""

    @property
    def name(self) -> str:
        """The run's name and directory, such as vit-2000-s0."""
        return self.recipe.name

    @property
    def line(self) -> str:
        """The row of a table that it belongs to: its family, and the branch that it is."""
        return f"{self.family}, {self.label}" if self.label else self.family

    @property
    def begins_after(self) -> int:
        """Steps that its trunk has trained; 0 of what is no branch."""
        return self.recipe.branch.step if self.recipe.branch is not None else 0

    @property
    def branched(self) -> dict[str, Any]:
        """What a record says of a branch; {} of what is none."""
        return {"branch": self.label, "trunk": self.trunk, "begins_after": self.begins_after} if self.label else {}

    def within(self, directory: Path) -> Cell:
        """The cell where the runs of its study lie in a directory: a branch knows its trunk's checkpoint there."""
        if self.recipe.branch is None or not self.label:
            return self
        place = checkpoint_in(str(directory.absolute()), self.trunk, self.recipe.branch.step)
        branch = self.recipe.branch.model_copy(update={"checkpoint": place})
        return replace(self, recipe=self.recipe.model_copy(update={"branch": branch}))

    @cached_property
    def hash(self) -> str:
        """Identity of the run; see `recipe_hash`."""
        return recipe_hash(self.recipe)

    @property
    def planned_examples(self) -> int | None:
        """Examples the run itself will see; None where that hangs on the size of the whole set."""
        horizon, batch = self.recipe.horizon, self.recipe.global_batch
        if self.subset is None and horizon.unit == "epochs":
            return None
        seen = round(horizon.examples(global_batch=batch, epoch_examples=self.subset or 0))
        return max(0, seen - self.begins_after * batch)


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
    raw = _anchored(read_mapping(path), path.parent)
    of_study: list[str] = []
    of_recipe: list[str] = []
    for text in overrides:
        key = re.split(r"[.=]", text, maxsplit=1)[0].strip()
        (of_study if key in StudyConfig.model_fields else of_recipe).append(text)
    raw = merge(raw, parse_overrides(of_study))
    if of_recipe:
        # The last rule, and one that matches every cell: what the command line says wins over the whole file.
        rules = raw.get("cells", [])
        raw["cells"] = [*(rules if isinstance(rules, list) else [rules]), {"set": parse_overrides(of_recipe)}]
    study = validate(StudyConfig, raw, Sources(str(path), of_study, [path]))
    study._typed, study._read = tuple(of_recipe), raw
    return study


def _anchored(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A study file in `folder`: paths of plug-ins in its layers count from there."""

    def layer(value: Any) -> Any:
        return anchored(value, folder) if isinstance(value, dict) else value

    found = {key: layer(value) if key == "overrides" else value for key, value in raw.items()}
    if isinstance(raw.get("families"), dict):
        found["families"] = {label: layer(value) for label, value in raw["families"].items()}
    if isinstance(raw.get("branches"), dict):
        found["branches"] = {
            label: {**b, "set": layer(b["set"])} if isinstance(b, dict) and "set" in b else b
            for label, b in raw["branches"].items()
        }
    if isinstance(raw.get("cells"), list):
        found["cells"] = [
            {**c, "set": layer(c["set"])} if isinstance(c, dict) and "set" in c else c for c in raw["cells"]
        ]
    return found


def plan(study: StudyConfig) -> list[Cell]:
    """Every cell of a study, resolved: seed by seed, small subsets first, so that a stopped study is a smaller one.

    Raises:
        ConfigError: the recipe or an override is wrong; cells of one name; a metric that the runs do not measure.
    """
    base = read_recipe_file(find_config(study.recipe, "recipes"))
    if isinstance(base.get("data"), str):
        base["data"] = {"dataset": base["data"]}
    # Equal compute is a horizon only once the model is known: `_resolve` replaces this one.
    if study.duration is not None:
        base["horizon"] = study.duration.length if study.duration.equal != "compute" else Duration.parse("1 epoch")
    base = _layer(base, study.overrides, "overrides")
    families = {label: _layer(base, overrides, f"families.{label}") for label, overrides in study.families.items()}
    subsets = sorted(study.subsets, key=lambda n: (n is None, n or 0))
    evaluations = _evaluations(study, next(iter(families.values())))
    resolved: dict[tuple[str, tuple[int, ...]], Recipe] = {}
    branched: dict[tuple[str, tuple[int, ...], int | None, str], Recipe] = {}
    unmeasured: dict[str, None] = {}
    cells: dict[str, Cell] = {}
    for seed in study.seeds:
        for subset in subsets:
            for family, raw in families.items():
                name = f"{_slug(family)}-{'all' if subset is None else subset}-s{seed}"
                if name in cells:
                    raise ConfigError(
                        f"study {study.name}: the families {cells[name].family!r} and {family!r} both make a run "
                        f"called {name!r}; rename one"
                    )
                # Cells that differ in seed and subset alone are checked once: a study of thousands plans in a second.
                rules = tuple(i for i, rule in enumerate(study.cells) if rule.matches(family, subset, seed))
                if (family, rules) not in resolved:
                    resolved[family, rules] = _resolve(study, name, family, subset, seed, raw, rules)
                    unmeasured |= _unmeasured(study, resolved[family, rules], evaluations)
                recipe = resolved[family, rules]
                data = recipe.data.model_copy(update={"subset": subset})
                copies = _own_copies(recipe, name)
                recipe = recipe.model_copy(update={"name": name, "seed": seed, "data": data, "checkpoint": copies})
                cells[name] = trunk = Cell(study.name, family, subset, seed, recipe, evaluations)
                for label in study.branches:
                    # Where it begins may hang on the subset.
                    known = (family, rules, subset, label)
                    if known not in branched:
                        of_all = resolved[family, rules].model_copy(update={"data": data})
                        branched[known] = _branch(study, of_all, label)
                        unmeasured |= _unmeasured(study, branched[known], evaluations)
                    cell = _grown(trunk, branched[known], label)
                    if cell.name in cells:
                        raise ConfigError(f"study {study.name}: two runs are called {cell.name!r}; rename the branch")
                    cells[cell.name] = cell
    if unmeasured:
        raise ConfigError("\n".join(unmeasured))
    return list(cells.values())


def _branch(study: StudyConfig, trunk: Recipe, label: str) -> Recipe:
    """The checked recipe of one branch of a cell's run."""
    rule = study.branches[label]
    tree = _layer({}, rule.set, f"branches.{label}.set")
    return branch_of(trunk, label, rule, tree, f"study {study.name}, {trunk.name}")


def _grown(trunk: Cell, recipe: Recipe, label: str) -> Cell:
    """The branch of a cell."""
    name = f"{trunk.name}-{label}"
    data = recipe.data.model_copy(update={"subset": trunk.subset})
    saves = _own_copies(recipe, name)
    grown = grown_from(recipe, trunk.recipe, name=name, seed=trunk.seed, data=data, checkpoint=saves)
    return replace(trunk, recipe=grown, label=label, trunk=trunk.name)


def _unmeasured(study: StudyConfig, recipe: Recipe, evaluations: Sequence[Plugin]) -> dict[str, None]:
    """Why the study's metric cannot be had of a run, in words, as a key; {} where it can."""
    try:
        recipe.metric(study.metric, "metric", evaluations)
    except ValueError as error:
        return {f"study {study.name}, family {recipe.family}: {error}": None}
    return {}


def _evaluations(study: StudyConfig, raw: dict[str, Any]) -> tuple[Plugin, ...]:
    if not study.evaluations:
        return ()
    # They save nothing, and may not measure what the runs keep their best checkpoints by.
    alone = {"evaluators": list(study.evaluations), "data": {"subset": None}, "checkpoint": {"keep_best": ""}}
    raw = merge(raw, alone)
    return resolve(raw, where=f"study {study.name}, evaluations as").evaluators


def _own_copies(recipe: Recipe, name: str) -> CheckpointConfig:
    """Where a cell's copies go: in one place two runs would take each other's for old ones of their own."""
    remote = recipe.checkpoint.remote
    return recipe.checkpoint.model_copy(update={"remote": join_url(remote, name) if remote else ""})


def _slug(family: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+]+", "-", family).strip("-") or "family"


def _resolve(
    study: StudyConfig,
    name: str,
    family: str,
    subset: int | None,
    seed: int,
    raw: dict[str, Any],
    rules: Sequence[int],
) -> Recipe:
    """The checked recipe of one cell."""
    for i in rules:
        raw = _layer(raw, study.cells[i].set, f"cells.{i}.set")
    # Into the recipe: a run says in its log how its metrics are read.
    raw = merge({"metrics": {tag: metric.model_dump() for tag, metric in study.metrics.items()}}, raw)
    identity = {"name": name, "study": study.name, "family": family, "seed": seed, "data": {"subset": subset}}
    recipe = resolve(merge(raw, identity), where=Sources(f"study {study.name}, {name}", study._typed))
    if study.duration is not None and study.duration.equal == "compute":
        recipe = recipe.model_copy(update={"horizon": study.duration.horizon(recipe)})
    return recipe


def _layer(below: Mapping[str, Any], overrides: Overrides, where: str) -> dict[str, Any]:
    """Overrides, nested or dotted, over a raw recipe; keys that the grid itself sets are refused."""
    tree = layer(overrides.items())
    for key in _OF_THE_GRID:
        node: Any = tree
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is not _ABSENT:
            raise ConfigError(f"{where}: {key!r} is set by the grid itself (families, subsets, seeds); leave it out")
    return merge(below, tree)


_ABSENT = object()
