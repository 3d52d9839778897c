"""Every key that a file may have, read from its schema: value, default, meaning, and what hangs on it. No torch."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from vit_dist.config.lengths import Share, parse_length_or_share
from vit_dist.config.schema import Recipe
from vit_dist.config.sections import SECTIONS, meaning_of, value_text
from vit_dist.core.marks import Layout, NonIdentity
from vit_dist.core.registry import EVALUATORS, Plugin, Registry
from vit_dist.core.units import Duration, format_bytes, format_count, parse_bytes, parse_count, parse_length, parse_span

KINDS: dict[str, Registry] = {**SECTIONS, "evaluators": EVALUATORS}
"""Sections of a recipe whose keys a plug-in brings."""

REQUIRED = "required"

_READERS: dict[Callable[..., Any], tuple[str, str]] = {
    parse_count: ("count", "k, M, B"),
    parse_bytes: ("size", "MiB, GiB, MB, GB"),
    parse_length: ("length", "steps, examples, epochs"),
    parse_length_or_share: ("length, or share of the run", "steps, examples, epochs, %"),
    parse_span: ("span of time", "s, min, h"),
}
_PLAIN: dict[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "anything"}
_ANY_DURATION = ("duration", "steps, examples, epochs, s, min, h")


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: dotted; NAME stands for a name of the user's, [] for each of a list.
        value: what it may be: a type with its bounds, or the values that there are.
        unit: that a number is written with; '' for none.
        default: as it is written in a file; REQUIRED where there is none.
        meaning: one line; '' where the schema says none, which a test refuses.
        identity: whether a run with another value is another run.
        layout: whether a checkpoint says it, for it decides how results are rounded.
        plugins: names of those that have it; () for a key that hangs on no plug-in.
    """

    path: str
    value: str
    unit: str
    default: str
    meaning: str
    identity: bool
    layout: bool
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class PluginKeys:
    """One plug-in and its keys.

    Attributes:
        kind: the section of a recipe, such as 'model'.
        names: under which it is registered; the first stands for all.
        summary: the first line of its docstring.
        keys: of the section.
    """

    kind: str
    names: tuple[str, ...]
    summary: str
    keys: tuple[Key, ...]


def recipe_keys() -> list[Key]:
    """Those of every recipe, without what plug-ins bring; sections too."""
    defaults = {"engine": "deepspeed", "evaluators": "[classification]"}
    found = keys_of(Recipe)
    return [replace(key, default=defaults.get(key.path, key.default)) for key in found]


def plugin_keys(kind: str, *, outside: bool = True) -> list[PluginKeys]:
    """Those that each plug-in of a kind brings.

    Args:
        kind: one of KINDS.
        outside: those from outside the package too.
    """
    registry, prefix = KINDS[kind], f"{kind}[]." if kind == "evaluators" else f"{kind}."
    field = Recipe.model_fields[kind]
    found = []
    foreign = registry.from_outside()
    for cls, names in registry.classes().items():
        if names[0] in foreign and not outside:
            continue
        keys = keys_of(cls, prefix, identity=not _marked(field, NonIdentity))
        named = (replace(key, plugins=(names[0],)) for key in keys)
        found.append(PluginKeys(kind, tuple(names), summary_of(cls), tuple(named)))
    return found


def of_name(kind: str, name: str) -> list[Key]:
    """The keys of one plug-in, with the defaults of a name of it: 'model', 'ViT-B/16'.

    Raises:
        ConfigError: there is no such name.
    """
    cls, defaults = KINDS[kind].lookup(name)
    (plugin,) = (p for p in plugin_keys(kind) if KINDS[kind].lookup(p.names[0])[0] is cls)
    keys = []
    for key in plugin.keys:
        own = key.path.rpartition(".")[2]
        keys.append(replace(key, default=_shown(defaults[own], key.value), plugins=(name,)) if own in defaults else key)
    return keys


def together(plugins: Iterable[PluginKeys]) -> list[Key]:
    """The keys of several plug-ins of a kind, those that are alike once; a key that all have names none of them."""
    plugins = list(plugins)
    merged: dict[Key, list[str]] = {}
    for plugin in plugins:
        for key in plugin.keys:
            merged.setdefault(replace(key, plugins=()), []).append(plugin.names[0])
    order = {path: i for i, path in enumerate(dict.fromkeys(key.path for key in merged))}
    keys = [replace(key, plugins=tuple(names) if len(names) < len(plugins) else ()) for key, names in merged.items()]
    return sorted(keys, key=lambda key: order[key.path])


def keys_of(cls: type[BaseModel], prefix: str = "", *, identity: bool = True) -> list[Key]:
    """The keys of a config class and of the sections in it, in the order of its fields.

    Args:
        cls: of a file, or of a section.
        prefix: of the paths, with its dot.
        identity: whether what lies in it counts for the identity, where it is not marked.
    """
    found: list[Key] = []
    for name, field in cls.model_fields.items():
        counts = identity and not _marked(field, NonIdentity)
        value, unit = _value(field.annotation, field.metadata)
        default = _default(field, value)
        layout, meaning = _marked(field, Layout), meaning_of(cls, name)
        found.append(Key(f"{prefix}{name}", value, unit, default, meaning, counts, layout))
        for inner, where in _sections(field.annotation, f"{prefix}{name}"):
            found += keys_of(inner, where, identity=counts)
    return found


def summary_of(cls: type[BaseModel]) -> str:
    """The first paragraph of a class' docstring, in one line."""
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def _marked(field: FieldInfo, mark: type) -> bool:
    return any(isinstance(item, mark) for item in field.metadata)


def _sections(annotation: Any, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Config classes in an annotation, and the beginning of their keys."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A plug-in's keys are those of whichever is named.
        if not issubclass(annotation, Plugin):
            yield annotation, f"{path}."
    elif origin is dict:
        yield from _sections(args[1], f"{path}.NAME")
    elif origin is tuple:
        yield from _sections(args[0], f"{path}[]")
    else:
        for arg in args if origin is not typing.Literal else ():
            yield from _sections(arg, path)


def _value(annotation: Any, metadata: Iterable[Any]) -> tuple[str, str]:
    """What a value may be, and its unit."""
    metadata = list(metadata)
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *marks = typing.get_args(annotation)
        more = [m for mark in marks for m in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
        return _value(inner, [*more, *metadata])
    for mark in metadata:
        if isinstance(mark, BeforeValidator) and mark.func in _READERS:
            word, unit = _READERS[mark.func]
            return f"{word}{_bounds(metadata)}", unit
        if isinstance(mark, BeforeValidator) and getattr(mark.func, "__name__", "") in _NAMED_READERS:
            return _NAMED_READERS[mark.func.__name__], ""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(str(arg).lower() if isinstance(arg, bool) else str(arg) for arg in args), ""
    if origin in (typing.Union, types.UnionType):
        parts = [_value(arg, [m for m in metadata if not isinstance(m, BeforeValidator)]) for arg in args]
        words = dict.fromkeys(word for word, _ in parts if word)
        return " | ".join(words), next((unit for _, unit in parts if unit), "")
    if annotation is type(None):
        return "null", ""
    if annotation is Duration:
        return _ANY_DURATION
    if origin is tuple:
        parts = [_value(arg, ()) for arg in args if arg is not Ellipsis]
        count = f"{len(args)} of " if Ellipsis not in args else ""
        inner = ", ".join(dict.fromkeys(word for word, _ in parts))
        return f"list: {count}{inner}{_length(metadata)}", next((unit for _, unit in parts if unit), "")
    if origin is dict:
        return f"mapping: NAME -> {_value(args[1], ())[0]}", ""
    if isinstance(annotation, type) and issubclass(annotation, Plugin):
        return "plug-in", ""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section", ""
    word = _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{word}{_bounds(metadata)}", ""


_NAMED_READERS = {
    "slurm_time": "time limit",
    "_length": "length, or amount of compute",
    "_subset": "count, or all",
    "spelt_augment": "section, or a crop",
    "parse_held_out": "share in %, or count",
}
"""Readers of values that may be written in another way, some of them of rooms above this one, by their names."""


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
"""Attributes of the marks of a field -> how a bound is written."""


def _bounds(metadata: Iterable[Any]) -> str:
    marks = list(metadata)
    found = [f"{sign} {getattr(m, name)}" for name, sign in _SIGNS.items() for m in marks if hasattr(m, name)]
    return f" {', '.join(found)}" if found else ""


def _length(metadata: Iterable[Any]) -> str:
    least = next((m.min_length for m in metadata if getattr(m, "min_length", 0)), 0)
    return f", at least {least}" if least else ""


def _default(field: FieldInfo, value: str) -> str:
    if field.is_required():
        return REQUIRED
    return _shown(field.get_default(call_default_factory=True), value)


def _shown(default: Any, value: str) -> str:
    """A default as a file writes it."""
    if default is None:
        return "left out"
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, int) and value.startswith("count"):
        return format_count(default)
    if isinstance(default, int) and value.startswith("size"):
        return format_bytes(default).replace(".0 ", " ")
    if isinstance(default, Duration | Share):
        return str(default)
    if isinstance(default, tuple | list):
        return f"[{', '.join(value_text(_plain(item)) for item in default)}]"
    if isinstance(default, Mapping):
        return value_text({k: _plain(v) for k, v in default.items()})
    return value_text(default) or '""'


def _plain(item: Any) -> Any:
    return item.model_dump(mode="json") if isinstance(item, BaseModel) else item


def search(query: str, keys: Iterable[Key]) -> list[Key]:
    """The keys of a path, or below it; [] for none. `evaluators.shots` finds `evaluators[].shots`."""
    wanted = query.replace("[]", "").strip(".").lower()
    return [key for key in keys if f"{key.path.replace('[]', '').lower()}.".startswith(f"{wanted}.")]
