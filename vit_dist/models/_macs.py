"""Multiply-adds of a model, counted on the model itself; models/costs.py gives the same by arithmetic."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vit_dist.models import ModelConfig
from vit_dist.models.costs import Cost


def count_cost(config: ModelConfig, num_classes: int, image_size: int, *, training: bool = False) -> Cost:
    """Parameters, and multiply-adds of one forward pass of one image, of a model that is not built yet."""
    with torch.device("meta"):
        model = config.build(num_classes=num_classes, image_size=image_size)
    return Cost(
        sum(parameter.numel() for parameter in model.parameters()), macs_of(model, image_size, training=training)
    )


def count_macs(config: ModelConfig, num_classes: int, image_size: int, *, training: bool = False) -> int:
    """Multiply-adds of one forward pass of one image of a model that is not built yet; see `macs_of`."""
    return count_cost(config, num_classes, image_size, training=training).macs


def macs_of(model: nn.Module, image_size: int, *, training: bool = False) -> int:
    """Multiply-adds of one forward pass of one image, by torch's FlopCounterMode; the model lies on the meta device.

    On a real CPU the counter would not see fused attention. The counter hooks into backward passes, and fails on a
    parameter that is expanded (attention pooling) unless nothing wants a gradient.

    Args:
        model: on the meta device; left in the mode that it is in.
        image_size: of the image, in pixels.
        training: count the forward pass of a training step, where patch dropout leaves patches out.
    """
    before = model.training
    wants = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train(training).requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, image_size, image_size, device="meta"))
    model.train(before)
    for parameter in wants:
        parameter.requires_grad_(True)
    return int(counter.get_total_flops()) // 2
