"""Plug-ins for tests: their configs by name, and models with weights from a fixed seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vit_dist.core.registry import MODELS, Plugin, Registry
from vit_dist.models import ModelConfig
from vit_dist.models._base import ImageModel


def plugin_config(registry: Registry, name: str, **settings: Any) -> Plugin:
    """The config of a plug-in, with settings over its preset; pydantic's ValidationError where they do not fit."""
    cls, defaults = registry.lookup(name)
    return cls.model_validate({**defaults, **settings})


def model_config(name: str, **settings: Any) -> ModelConfig:
    """The config of a model, with settings over its preset."""
    config = plugin_config(MODELS, name, **settings)
    assert isinstance(config, ModelConfig)
    return config


def build_model(
    name: str, image_size: int = 28, *, seed: int = 0, num_classes: int = 10, head_std: float = 1.0, **settings: Any
) -> Any:
    """A model whose head is not zero, unless `head_std` is, so that gradients reach what is below it."""
    torch.manual_seed(seed)
    model: ImageModel = model_config(name, **settings).build(num_classes=num_classes, image_size=image_size)
    if head_std:
        nn.init.normal_(model.head.weight, std=head_std)
    return model
