"""Small recipes for the data laws, and the global batches that streams give, put together from all ranks."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import torch

from vit_dist.config.load import resolve
from vit_dist.config.schema import Recipe
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream


def recipe(manifest: str, *overrides: str) -> Recipe:
    """Three epochs of one set of four classes."""
    return recipe_of({"num_classes": 4, "train": manifest}, *overrides, horizon="3 epochs")


def recipe_of(data: dict[str, Any], *overrides: str, **fields: Any) -> Recipe:
    """A recipe of the smallest ViT, from the fields of its data section and others."""
    return resolve(
        {
            "global_batch": 12,
            "seed": 3,
            "model": "vit-test",
            "data": {"image_size": 28, "augment": "inception", **data},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            **fields,
        },
        overrides,
    )


def global_batches(config: Recipe, world_size: int, position: int, steps: int) -> list[tuple[torch.Tensor, ...]]:
    """Ordinals, labels and images of `steps` global batches, put together from all ranks."""
    data = open_training_set(config)
    parts = []
    for rank in range(world_size):
        with TrainStream(data, config, World(rank, world_size), position) as stream:
            parts.append([b for b, _ in itertools.islice(stream, steps)])
    batches = []
    for step in range(steps):
        shape = (config.global_batch,)
        ordinals = torch.empty(shape, dtype=torch.int64)
        labels = torch.empty(shape, dtype=torch.int64)
        images = torch.empty((*shape, 3, 28, 28), dtype=torch.uint8)
        for rank in range(world_size):
            part = parts[rank][step]
            ordinals[rank::world_size], images[rank::world_size] = part.ordinals, part.images
            labels[rank::world_size] = part.labels[:, 0]
        batches.append((ordinals, labels, images))
    return batches


def digest(batches: list[tuple[torch.Tensor, ...]]) -> str:
    total = hashlib.sha256()
    for tensors in batches:
        for tensor in tensors:
            total.update(tensor.numpy().tobytes())
    return total.hexdigest()
