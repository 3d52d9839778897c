"""Layers of a recipe over each other: what wins, and what a section keeps when another plug-in takes its place.

A section that names another plug-in than the one below keeps none of its keys: a learning rate of AdamW is none of SGD,
a width of a ViT none of a ResNet, and recipes that were trained so keep their identity. What is lost that way is said.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from vit_dist.config.augment import spelt_augment
from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import ENGINES, MODELS, OPTIMIZERS, SCHEDULES, Registry

SECTIONS: dict[str, Registry] = {"model": MODELS, "optim": OPTIMIZERS, "schedule": SCHEDULES, "engine": ENGINES}


class Replacing(dict[str, Any]):
    """A section that has taken the place of another plug-in's, which is `before`."""

    before: Mapping[str, Any]

    def __init__(self, section: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        super().__init__(section)
        self.before = before


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge, `above` winning. A section that names another plug-in replaces the one below whole."""
    return _merge(below, above, of_one_layer=False)


def layer(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Dotted keys and values as one nested mapping, later ones winning; a name and its section's keys in any order."""
    tree: dict[str, Any] = {}
    for key, value in pairs:
        first, *rest = key.split(".")
        for part in reversed(rest):
            value = {part: value}
        tree = _merge(tree, {first: value}, of_one_layer=True)
    return tree


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], *, of_one_layer: bool) -> dict[str, Any]:
    merged = Replacing(below, below.before) if isinstance(below, Replacing) else dict(below)
    for key, given in above.items():
        value, old = spelt_out(key, given), spelt_out(key, merged.get(key))
        if key == "augment" and (isinstance(value, Mapping) or (of_one_layer and isinstance(old, Mapping))):
            # A text alone takes the place of all that was below; beside keys of the section it is one of them.
            value, old = spelt_augment(value), spelt_augment(old)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping):
            merged[key] = value
        elif _is_another(key, value, old, of_one_layer=of_one_layer):
            merged[key] = Replacing(value, old)
        else:
            merged[key] = _merge(old, value, of_one_layer=of_one_layer)
    return merged


def _is_another(key: str, value: Mapping[str, Any], old: Mapping[str, Any], *, of_one_layer: bool) -> bool:
    if key not in SECTIONS or "name" not in value:
        return False
    # `optim.lr=0.1 optim.name=sgd`: who gives both means both.
    return bool(value["name"] != old.get("name") and not (of_one_layer and "name" not in old))


def spelt_out(key: str, value: Any) -> Any:
    """`model: ViT-B/16` is short for `model: {name: ViT-B/16}`, `data: demo` for `data: {dataset: demo}`."""
    if isinstance(value, str) and key in SECTIONS:
        return {"name": value}
    if isinstance(value, str) and key == "data":
        return {"dataset": value}
    return value


def missing_keys(path: str, section: Mapping[str, Any], cls: type[BaseModel], names: Sequence[str]) -> str:
    """One line for the keys that a plug-in's section lacks, with what to give where another had them.

    Args:
        path: of the section.
        section: as it was given, with its name.
        cls: the config of its plug-in.
        names: the keys, without the section.
    """
    said = f"{path}.{names[0]}: is required and missing{meaning(cls, names[0])}"
    if len(names) > 1:
        said = f"{path}: {', '.join(names[:-1])} and {names[-1]} are required and missing"
    if not isinstance(section, Replacing):
        return said
    shared = lost(section, path, cls)
    untold = [name for name in names if name not in shared]
    words = [f"{path}.name={section['name']}"]
    words += [f"{path}.{key}={value_text(value)}" for key, value in shared.items()]
    command = shlex.join(words)
    more = f", and {', '.join(f'{path}.{name}' for name in untold)}" if untold else ""
    return (
        f"{said}: {path}.name={section['name']} takes the place of {section.before.get('name', 'what was there')}, of "
        f"which no key is kept. To keep those that both have: {command}{more}"
    )


def lost(section: Mapping[str, Any], path: str, cls: type[BaseModel]) -> dict[str, Any]:
    """Keys that the plug-in before had, in the recipe or by its name, that this one has too and was not given.

    Args:
        section: as it was given.
        path: which section.
        cls: the config of its plug-in.
    """
    if not isinstance(section, Replacing):
        return {}
    try:
        defaults = SECTIONS[path].lookup(str(section.before.get("name")))[1] if path in SECTIONS else {}
    except ConfigError:
        defaults = {}
    before = {**defaults, **section.before}
    return {key: before[key] for key in cls.model_fields if key in before and key not in section and key != "name"}


def value_text(value: Any) -> str:
    """A value as an override writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def meaning_of(cls: type[BaseModel], name: str) -> str:
    """What a key means: what its class says, or a class that it inherits; '' where none does."""
    fields = (getattr(base, "model_fields", {}).get(name) for base in cls.__mro__)
    return next((field.description for field in fields if field is not None and field.description), "")


def meaning(cls: type[BaseModel], name: str) -> str:
    """What a key means, in brackets for behind an error; '' where nothing says it."""
    said = meaning_of(cls, name)
    return f" ({said})" if said else ""
