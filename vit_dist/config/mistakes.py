"""Mistakes in a file or an override, in words: what pydantic found, as whoever wrote it can use it. No torch."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import BaseModel, ValidationError

from vit_dist.config.blame import key_hint
from vit_dist.config.keys import KINDS, keys_of, plugin_keys
from vit_dist.config.schema import Recipe
from vit_dist.config.sections import meaning
from vit_dist.core.errors import did_you_mean
from vit_dist.core.units import counted


def describe(error: ValidationError, cls: type[BaseModel], prefix: str) -> list[str]:
    """The mistakes of a validation, one line each: path, what is wrong, the value, the nearest valid name."""
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems:
        loc = problem["loc"]
        if problem["type"] == "too_short" and any(
            other["loc"][: len(loc)] == loc != other["loc"] for other in problems
        ):
            # Items that are wrong by themselves are said; pydantic counts what is left without them.
            continue
        path = ".".join(([prefix] if prefix else []) + [str(part) for part in loc])
        kind, shown = problem["type"], _short(problem.get("input"))
        if kind == "extra_forbidden":
            hint = _of_others(path) or key_hint(path, _fields_at(cls, loc[:-1]), _all_keys(cls, prefix))
            lines.append(f"{path}: unknown key{hint}")
        elif kind == "missing":
            lines.append(f"{path}: is required and missing{_meaning_at(cls, loc)}")
        elif kind == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {message}" if path else message)
        elif kind == "literal_error":
            # As YAML writes what Python calls True and False.
            wanted = re.sub(r"\b(True|False)\b", lambda found: found[0].lower(), problem["msg"])
            names = re.findall(r"'([^']+)'", wanted)
            # Of a single name beside true and false, the sentence has said all there is.
            hint = did_you_mean(str(problem.get("input")), names) if len(names) > 1 else ""
            lines.append(f"{path}: {wanted.replace('Input should be', 'must be')}, got {shown}{hint}")
        elif kind == "string_type" and isinstance(problem.get("input"), bool | int | float | date):
            # Unquoted, YAML takes 0, 1e3, true or 2026-01-01 for something other than the text that is meant.
            lines.append(
                f'{path}: must be text, got {shown}; write it in quotes, such as {loc[-1]}: "{_text(problem)}"'
            )
        elif kind == "too_short":
            lines.append(f"{path}: must have {counted(problem['ctx']['min_length'], 'item')} or more, got {shown}")
        elif kind in {"tuple_type", "list_type"}:
            one = problem.get("input")
            such = f" in brackets, [{one}] or [{one}, ...]" if isinstance(one, str | int | float) else ""
            lines.append(f"{path}: must be a list{such}; got {shown}")
        else:
            message = problem["msg"].replace("Input should be", "must be")
            lines.append(f"{path}: {message}, got {shown}")
    return lines


def _of_others(path: str) -> str:
    """A hint for a key that other plug-ins of the section have, and the one that is named has not; or nothing."""
    section = path.partition(".")[0]
    if section not in KINDS or section == "evaluators":
        return ""
    owners = [plugin.names[0] for plugin in plugin_keys(section) if path in {key.path for key in plugin.keys}]
    return f" here; it belongs to {' or '.join(f'{section}.name={name}' for name in owners)}" if owners else ""


def _all_keys(cls: type[BaseModel], prefix: str) -> list[str]:
    """Dotted paths of every key of the file that a class, or the section at `prefix`, is of."""
    if not prefix and cls is not Recipe:
        return [key.path for key in keys_of(cls)]
    of_plugins = (key.path for kind in KINDS for plugin in plugin_keys(kind) for key in plugin.keys)
    return [*(key.path for key in keys_of(Recipe)), *of_plugins]


def _text(problem: Mapping[str, Any]) -> str:
    value = problem.get("input")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(cls: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    found = _class_at(cls, loc)
    return list(found.model_fields) if found is not None else []


def _meaning_at(cls: type[BaseModel], loc: Sequence[int | str]) -> str:
    found = _class_at(cls, loc[:-1])
    return meaning(found, str(loc[-1])) if found is not None else ""


def _class_at(cls: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    current: Any = cls
    for part in loc:
        if typing.get_origin(current) is dict:  # a name that the user chose
            current = typing.get_args(current)[1]
            continue
        field = getattr(current, "model_fields", {}).get(part)
        current = field.annotation if field is not None else None
        if type(None) in typing.get_args(current):
            current = next(option for option in typing.get_args(current) if option is not type(None))
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None
