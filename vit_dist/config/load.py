"""From YAML text and dotted overrides to a resolved Recipe, with one clear line for each mistake."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vit_dist.config.blame import Sources
from vit_dist.config.loss import with_model
from vit_dist.config.mistakes import describe
from vit_dist.config.plugins import anchored, load_plugins
from vit_dist.config.safe_yaml import BoundedLoader, parse_yaml
from vit_dist.config.schema import DataConfig, Recipe, dump, dump_identity, identity_hash
from vit_dist.config.sections import SECTIONS, layer, lost, merge, missing_keys, spelt_out, value_text
from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.places import Place, Takes
from vit_dist.core.registry import EVALUATORS, MODELS, Plugin, Registry
from vit_dist.core.scratch import in_scratch
from vit_dist.core.text import read_text
from vit_dist.core.urls import local_path

C = TypeVar("C", bound=BaseModel)

_DEFAULTS = {"engine": {"name": "deepspeed"}, "evaluators": ["classification"]}
"""Plug-ins of a recipe that names none; the schema cannot say them, since it does not know the plug-ins."""


def config_dirs() -> list[Path]:
    """Where shipped files are looked for: `configs/` of a checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent.parent
    return [d for d in (package.parent / "configs", package / "_configs") if d.is_dir()]


def find_config(name: str, kind: str) -> Path:
    """The file of a recipe, study, cluster or dataset given by path, or by the name of a shipped file.

    Args:
        name: 'demo', 'demo.yaml' or a path.
        kind: folder under configs/: 'recipes', 'studies', 'clusters' or 'data'.

    Raises:
        ConfigError: no such file; the nearest names are given.
    """
    what = {"recipes": "recipe", "studies": "study", "clusters": "cluster", "data": "dataset"}[kind]
    try:
        path = local_path(Place(Takes.LOCAL, empty=True)(name))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
    if path.suffix in {".yaml", ".yml"} and _exists(path.is_file):
        return path
    for base in config_dirs():
        for candidate in (base / kind / name, base / kind / f"{name}.yaml"):
            if _exists(candidate.is_file):
                return candidate
    if _exists(path.is_dir):
        raise ConfigError(f"{name} is a directory; give a YAML file or the name of a file in configs/{kind}")
    known = [p.stem for base in config_dirs() for p in sorted((base / kind).glob("*.yaml"))]
    raise ConfigError(
        f"no {what} {name[:200]!r}: not a file, and not in configs/{kind}{did_you_mean(path.stem, known)}"
    )


def _exists(check: Callable[[], bool]) -> bool:
    """What `Path.is_file` and the like say; a name that no file can have is none."""
    try:
        return check()
    except OSError:
        return False


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping.
    """
    try:
        text = read_text(path)
    except DataError as error:
        raise ConfigError(str(error)) from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, got {type(value).__name__}")
    return value


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        name: path of a YAML file, or the name of one in configs/recipes.
        overrides: 'key.path=value' texts, applied last, values read as YAML.

    Raises:
        ConfigError: every mistake, a line each.
    """
    path = find_config(name, "recipes")
    files: list[Path] = []
    raw = read_recipe_file(path, files=files)
    return resolve(raw, overrides, where=Sources(str(path), overrides, files))


def sources_of(name: str, overrides: Sequence[str], recipe: Recipe) -> Sources | None:
    """Where the values of a recipe come from, for what turns out to be wrong once they are used.

    None of one that a command of ours has written for another, such as a cell of a study: it is gone afterwards.

    Args:
        name: of the recipe, as it was loaded.
        overrides: over it.
        recipe: what they make of it.
    """
    path, files = find_config(name, "recipes"), list[Path]()
    if in_scratch(path):
        return None
    read_recipe_file(path, files=files)
    dataset = recipe.data.dataset
    sections = {} if dataset == "custom" else {"data": find_config(dataset, "data")}
    return Sources(str(path), overrides, files, sections)


def dropped(name: str, overrides: Sequence[str], recipe: Recipe) -> str:
    """What overrides that name another plug-in have taken out of a recipe, in words for a warning; '' for nothing.

    Args:
        name: of the recipe.
        overrides: over it.
        recipe: what they make of it.
    """
    said = []
    given = parse_overrides(overrides)
    raw = merge({}, merge(_DEFAULTS, read_recipe_file(find_config(name, "recipes"))))
    # Not of the model: what its name does not say are shapes of another model.
    for key in SECTIONS.keys() & given.keys() - {"model"}:
        # Those of files are left to who wrote them.
        raw[key] = dict(spelt_out(key, raw.get(key)) or {})
        plugin = getattr(recipe, key)
        kept = dump(plugin)
        gone = {k: v for k, v in lost(merge(raw, given)[key], key, type(plugin)).items() if kept[k] != v}
        if gone:
            words = shlex.join(f"{key}.{k}={value_text(v)}" for k, v in gone.items())
            said.append(f"{key}.name={plugin.name} keeps no key of the recipe's {key}; to keep those too, add: {words}")
    return "\n".join(sorted(said))


def read_recipe_file(path: Path, seen: tuple[Path, ...] = (), files: list[Path] | None = None) -> dict[str, Any]:
    """A recipe file with its `base:` files merged below it, but for what those say `about` themselves.

    Paths of plug-ins count from the file that names them.

    Args:
        path: of the file.
        seen: those that have it as their base.
        files: is given the paths of all that were read, the one that wins first.
    """
    if files is not None:
        files.append(path)
    raw = anchored(read_mapping(path), path.parent)
    base = raw.pop("base", None)
    if base is None:
        return raw
    if path in seen:
        raise ConfigError(f"{path}: `base:` goes round in a circle: {' -> '.join(map(str, (*seen, path)))}")
    local = path.parent / f"{base}.yaml"
    parent = local if _exists(local.is_file) else find_config(str(base), "recipes")
    below = read_recipe_file(parent, (*seen, path), files)
    # What was reported of one recipe is not true of another that changes it.
    below.pop("about", None)
    return merge(below, raw)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """'a.b=1' texts as one nested mapping, later ones winning.

    Raises:
        ConfigError: a text without '=', or one that digs into a plain value.
    """
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise ConfigError(f"override {text!r}: expected key=value, such as optim.lr=1e-3")
        pairs.append((key.strip(), parse_yaml(value, f"override {text!r}") if value.strip() else ""))
    return layer(pairs)


def shipped_set(recipe: Recipe) -> Path | None:
    """The file in configs/data whose images a recipe trains on; None where it trains on others.

    A recipe goes on naming that file where `data.train` is another set: whose name it is not.
    Files of sets that have no place of their own, such as the paper's, are always meant.
    """
    if recipe.data.dataset == "custom":
        return None
    path = find_config(recipe.data.dataset, "data")
    place = read_mapping(path).get("train", "")
    return path if place in {"", recipe.data.train} else None


def resolve(raw: Mapping[str, Any], overrides: Iterable[str] = (), *, where: str | Sources = "recipe") -> Recipe:
    """Check plain data and make it a Recipe.

    Args:
        raw: the data.
        overrides: over it.
        where: what the data is, for errors: a file, or which lines and overrides say what.

    Raises:
        ConfigError: every mistake, a line each, with the path, the value and the nearest valid name.
    """
    overrides = tuple(overrides)
    sources = where if isinstance(where, Sources) else Sources(where, overrides)
    data = merge(merge(_DEFAULTS, raw), parse_overrides(overrides))
    problems: list[str] = []
    # First: they may define whatever follows.
    data["plugins"] = load_plugins(data.get("plugins", ()), sources.of("plugins"))
    section = spelt_out("data", data.get("data"))
    if isinstance(section, Mapping) and isinstance(section.get("dataset"), str) and section["dataset"] != "custom":
        path = find_config(section["dataset"], "data")
        data["data"] = {**read_mapping(path), **section, "dataset": path.stem}
    for key, registry in SECTIONS.items():
        if key in data:
            data[key] = _plugin(data[key], registry, key, problems)
    data |= with_model(data.get("loss"), lambda name: _plugin(name, MODELS, "loss.teacher.model", problems))
    if isinstance(data.get("evaluators"), list):
        data["evaluators"] = tuple(
            _plugin(item, EVALUATORS, f"evaluators[{i}]", problems) for i, item in enumerate(data["evaluators"])
        )
    if isinstance(data.get("data"), Mapping):
        try:
            DataConfig.model_validate(data["data"])
        except ValidationError as error:
            problems += describe(error, DataConfig, "data")
            data["data"] = DataConfig(num_classes=1)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        said = {_section(problem) for problem in problems}  # a section that is wrong is also wrong as a part
        problems += [p for p in describe(error, Recipe, "") if _section(p) not in said]
    if problems or recipe is None:
        raise ConfigError("\n".join(map(sources.blame, problems)))
    return recipe


def _section(problem: str) -> str:
    return re.split(r"[.\[:]", problem, maxsplit=1)[0]


def _plugin(value: Any, registry: Registry, path: str, problems: list[str]) -> Any:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        problems.append(f"{path}: expected the name of a {registry.kind}, or a mapping with `name`; got {value!r}")
        return None
    try:
        cls, defaults = registry.lookup(value["name"])
    except ConfigError as error:
        problems.append(f"{path}.name: {error}")
        return None
    try:
        return cls.model_validate(merge(defaults, value))
    except ValidationError as error:
        absent = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing" and len(e["loc"]) == 1]
        if absent:
            problems.append(missing_keys(path, value, cls, absent))
        problems += [line for line in describe(error, cls, path) if not _is_missing(line, path, absent)]
        return None


def _is_missing(line: str, path: str, absent: Sequence[str]) -> bool:
    return any(line.startswith(f"{path}.{name}: is required and missing") for name in absent)


def validate(cls: type[C], raw: Any, where: str | Sources) -> C:
    """Check plain data against any config class (a study, a cluster).

    Args:
        cls: the class.
        raw: the data.
        where: what the data is, for errors: a file, or which lines and overrides say what.

    Raises:
        ConfigError: every mistake, a line each.
    """
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        sources = where if isinstance(where, Sources) else Sources(where)
        raise ConfigError("\n".join(map(sources.blame, describe(error, cls, "")))) from None


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Plain data as YAML that this module reads back to the same values."""
    return yaml.dump(dict(plain), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes floats that every YAML 1.2 reader takes as floats, and quotes text that looks like a number."""

    yaml_implicit_resolvers = BoundedLoader.yaml_implicit_resolvers


def _represent_float(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


_Dumper.add_representer(float, _represent_float)


def identity(recipe: Recipe) -> dict[str, Any]:
    """What two attempts must share to be the same run, as plain data. Sites, cadences and names are not in it."""
    plain = dump_identity(recipe)
    if recipe.init is None:  # a key that says nothing must not rename the runs of before there was one
        del plain["init"]
    return plain


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits that name `identity(recipe)`."""
    return identity_hash(identity(recipe))


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it again gives the same recipe and hash."""
    return to_yaml(dump(recipe))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Where two identities differ: 'optim.lr: 0.001 here, 0.003 there', one line each."""
    return [f"{path}: {a!r} here, {b!r} there" for path, a, b in differing(ours, theirs)]


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Where two identities differ: dotted path and both values, None for one that is not there."""
    found = list[tuple[str, Any, Any]]()
    for key in sorted({*ours, *theirs}):
        a, b, path = ours.get(key), theirs.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, f"{path}.")
        elif a != b:
            found.append((path, a, b))
    return found


__all__ = [
    "Plugin",
    "differences",
    "differing",
    "dropped",
    "find_config",
    "identity",
    "load_recipe",
    "merge",
    "recipe_hash",
    "recipe_yaml",
    "resolve",
    "sources_of",
    "to_yaml",
    "validate",
]
