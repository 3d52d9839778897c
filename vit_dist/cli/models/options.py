"""What verbs that name a model share: its config by name and settings, its usual image size, bounds of numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from vit_dist.models import ModelConfig


def model_config(name: str, settings: Sequence[str] = ()) -> ModelConfig:
    """The config of a model by its name, with settings such as 'pool=map' over its preset.

    Raises:
        ConfigError: no such model (names the nearest), or a setting that it does not take.
    """
    from vit_dist.config.load import parse_overrides, validate
    from vit_dist.core.registry import MODELS
    from vit_dist.models import ModelConfig

    cls, defaults = MODELS.lookup(name)
    given = parse_overrides(list(settings))
    if given.get("name", name) != name:
        raise ConfigError(f"model {name}: name={given['name']}: a setting cannot rename the model; ask for that one")
    config = validate(cls, {**defaults, **given}, f"model {name}")
    assert isinstance(config, ModelConfig)
    return config


def usual_size(config: ModelConfig) -> int:
    """224 pixels, or 28 for the small ones that are made for such images."""
    return 28 if config.name.endswith(("-demo", "-test")) else 224


def at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Refuse options, by their names in `args`, that were given a number below 1.

    Raises:
        ConfigError: names the option.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={value}: at least 1 is needed")
