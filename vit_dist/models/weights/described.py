"""What a file says of its model, and what it may say: a config found in a file is held within limits before it is one.

A recipe is yours and may ask for a model of any size. A file's header is a stranger's: a billion layers would be built
before the first tensor was missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_dist.config.load import validate
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.registry import MODELS
from vit_dist.core.small_files import DamagedError, is_texts, parse_json, shown
from vit_dist.models import ModelConfig

MAX_IMAGE_SIZE = 16_384
"""Pixels of a side, of images that a file's model is for."""

MAX_LAYERS = 1_000
"""Of all stages together."""

LIMITS = {
    "width": 32_768,
    "backbone_width": 32_768,
    "groups": 32_768,
    "width_factor": 64,
    "num_heads": 4_096,
    "patch_size": MAX_IMAGE_SIZE,
}
_LAYERS = ("depth", "layers", "blocks", "stages")
_MOST_WHOLE = 2**18
_MOST_REAL = 1e6
_MOST_TEXT = 1_000
_MOST_NAME = 200
_MOST_VALUES = 1_000
_MOST_STAGES = 8
_MOST_LEVELS = 4
# Arguments of timm.create_model that lead to other files, or change what is built after it.
_NOT_OF_A_MODEL = ("pretrained", "checkpoint", "cache_dir", "scriptable", "exportable", "no_jit", "features_only")

FACTS = ("recipe", "recipe_hash", "step", "examples", "seed", "name", "average_steps")
"""What a file of ours may say beside the model; average_steps: how many steps count in it, of an average."""
EVALUATION = "evaluation"
"""Of notes and headers: how evaluation sees images, as `viewed.said_beside` has it."""
_COUNTS = ("step", "examples", "seed", "average_steps")
_MOST_DIGITS = 18


@dataclass(frozen=True)
class Stated:
    """What a header of ours says: the model as plain data or None, pixels or 0, names of classes, `FACTS`, and how
    evaluation sees images where no recipe among these says it, as plain data or None.
    """

    model: Any
    image_size: int
    classes: tuple[str, ...]
    facts: dict[str, str]
    evaluation: Any


def stated(metadata: Mapping[str, str], where: str) -> Stated:
    """What the header of a safetensors file says beside its tensors.

    Raises:
        DataError: something that cannot be, with its key.
    """
    facts = {key: metadata[key] for key in FACTS if key in metadata}
    for key in (key for key in _COUNTS if key in facts):
        _count(key, facts[key], where)
    model, classes, evaluation = (_json(metadata, key, where) for key in ("model", "classes", EVALUATION))
    if classes is not None and not is_texts(classes):
        raise DataError(f"{_damaged(where)}: classes={shown(classes)}; expected a list of texts")
    size = check_image_size(_count("image_size", metadata.get("image_size", "0"), where), where)
    return Stated(model, size, tuple(classes or ()), facts, evaluation)


def check_image_size(size: int, where: str) -> int:
    """The size itself, unless no image has it.

    Raises:
        DataError: names the limit.
    """
    if size > MAX_IMAGE_SIZE:
        raise DataError(f"{where}: image_size={shown(size)}; at most {MAX_IMAGE_SIZE:,} pixels are read from a file")
    return size


def _damaged(where: str) -> str:
    return f"{where}: what its header says of the model is damaged"


def _count(key: str, text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise DataError(f"{_damaged(where)}: {key}={shown(text)}; expected a whole number from 0")
    return int(text)


def _json(metadata: Mapping[str, str], key: str, where: str) -> Any:
    try:
        return parse_json(metadata.get(key, "null"))
    except DamagedError as error:
        raise DataError(f"{_damaged(where)}: {key}: {error}") from None


def config_of(described: object, where: str) -> ModelConfig:
    """A model's config from plain data of a file.

    Raises:
        ConfigError: of a model that this version does not know, or beyond a limit; names file, key, value and limit.
    """
    if not isinstance(described, dict):
        raise ConfigError(f"{where}: its model is no mapping but {shown(described)}")
    name = described.get("name")
    if not isinstance(name, str) or len(name) > _MOST_NAME:
        raise ConfigError(f"{where}: its model: name={shown(name)}; expected the name of a model")
    check_limits(described, f"{where}: its model")
    try:
        cls, defaults = MODELS.lookup(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: its model: {error}") from None
    config = validate(cls, {**defaults, **described}, f"{where}: its model")
    assert isinstance(config, ModelConfig)
    return config


def check_limits(described: Mapping[str, Any], where: str, called: Mapping[str, str] | None = None) -> None:
    """Hold the plain data of a config within limits; what kind a value must be is for the config to say.

    Args:
        described: key of a config -> plain value.
        where: the file, for errors.
        called: key of a config -> what the file calls it.

    Raises:
        ConfigError: names file, key, value and limit.
    """
    called, left = called or {}, _MOST_VALUES
    level: list[tuple[str, str, Any]] = [("", "", described)]
    for _ in range(_MOST_LEVELS):
        below: list[tuple[str, str, Any]] = []
        for key, path, value in level:
            problem = _beyond(key, value)
            if problem:
                raise ConfigError(f"{where}: {path}={shown(value)}; {problem}")
            for name, part in _parts(key, value):
                # An entry of a list is held to what its key says of each.
                inside = called.get(name, name) if isinstance(value, Mapping) else name
                below.append((name if isinstance(value, Mapping) else key, f"{path}.{inside}".lstrip("."), part))
        level, left = below, left - len(below)
        if left < 0:
            raise ConfigError(f"{where}: more than {_MOST_VALUES:,} values; no model has so many settings")
    if level:
        raise ConfigError(f"{where}: {level[0][1]}: nested more than {_MOST_LEVELS} levels deep")


def _parts(key: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name)[: _MOST_NAME + 1], part) for name, part in value.items()]
    return [(str(i), part) for i, part in enumerate(value)] if isinstance(value, list | tuple) and key else []


def _beyond(key: str, value: Any) -> str:
    """Why a value is beyond a limit, or ''."""
    if len(key) > _MOST_NAME:
        return f"a key has at most {_MOST_NAME} characters"
    if key.startswith(_NOT_OF_A_MODEL):
        return "a file may not say this of its model"
    if isinstance(value, list | tuple):
        if len(value) > _MOST_VALUES:
            return f"at most {_MOST_VALUES:,} values are read from a file"
        if any(word in key for word in _LAYERS):
            return _too_many_layers(value)
        return ""
    most: float = LIMITS.get(key, _MOST_WHOLE if isinstance(value, int) else _MOST_REAL)
    if any(word in key for word in _LAYERS):
        most = MAX_LAYERS
    elif "multiplier" in key:
        most = LIMITS["width_factor"]
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= most):
        return f"at most {most:,.0f} is read from a file"
    return f"at most {_MOST_TEXT:,} characters are read" if isinstance(value, str) and len(value) > _MOST_TEXT else ""


def _too_many_layers(value: list[Any] | tuple[Any, ...]) -> str:
    if len(value) > _MOST_STAGES:
        return f"at most {_MOST_STAGES} stages are read from a file"
    layers = sum(abs(n) for n in value if isinstance(n, int))
    return f"at most {MAX_LAYERS:,} layers are read from a file" if layers > MAX_LAYERS else ""
