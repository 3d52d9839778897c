"""The recipe under which weights without a run are evaluated. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def recipe_of_weights(
    model: Mapping[str, Any], num_classes: int, image_size: int, *, name: str = "weights", crop: float = 0.875
) -> dict[str, Any]:
    """As YAML holds it, before overrides; nothing is trained by it.

    Args:
        model: its config.
        num_classes: of its head.
        image_size: pixels.
        name: for people.
        crop: fraction of the shorter side that the centre crop keeps.
    """
    return {
        "name": name,
        "horizon": "1 step",
        "global_batch": 1,
        "precision": "fp32",
        "model": dict(model),
        "data": {"num_classes": num_classes, "image_size": image_size, "val_crop": crop, "spare_outputs": True},
        "optim": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "constant", "warmup": "0 steps"},
        "engine": {"name": "plain"},
        "checkpoint": {"probe": 0},
    }
