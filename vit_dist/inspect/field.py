"""Effective receptive fields: which pixels a unit in the middle of a feature map depends on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_dist.core.errors import ConfigError
from vit_dist.inspect.tokens import inner, tokens_of

WITHIN = 1 - 0.9545
"""A pixel counts whose gradient is more than this fraction of the largest (arXiv 1701.04128: two standard deviations
of a Gaussian)."""
_MOST = 6
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Field:
    """The effective receptive field of one layer.

    Attributes:
        layer: its name.
        gradient: how much the middle unit changes with each pixel, mean over images, the largest is 1. [S, S]
        size: side of a square of as many pixels as count, in pixels.
    """

    layer: str
    gradient: Tensor
    size: float


def field_size(gradient: Tensor) -> float:
    """Square root of the number of pixels whose gradient is over `WITHIN` of the largest."""
    return math.sqrt(int((gradient > WITHIN * gradient.max()).sum()))


def receptive_fields(
    forward: Callable[[Tensor], object],
    images: Tensor,
    layers: list[tuple[str, nn.Module, Callable[[Tensor], Tensor]]],
    *,
    batch: int = 8,
) -> list[Field]:
    """The effective receptive field of the middle unit of some layers.

    The gradient of the unit, summed over its channels, with respect to the pixels of each image; its size, summed over
    the colours; the mean over images, each of which counts alike: arXiv 1701.04128, sections 2 and 3. (There,
    one channel and random images.)

    Args:
        forward: runs the model on a batch of images.
        images: float [N, 3, S, S].
        layers: name, module, and what makes [B, C] of its middle unit out of its output: see `layers_of`.
        batch: images at once.
    """
    sums = [torch.zeros(images.shape[2:], dtype=torch.float64) for _ in layers]
    outputs: dict[int, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _part, _inputs, output, i=i: outputs.__setitem__(i, output))
        for i, (_, part, _) in enumerate(layers)
    ]
    try:
        for start in range(0, len(images), batch):
            some = images[start : start + batch].detach().requires_grad_()
            with torch.enable_grad():
                forward(some)
                for i, (name, _, middle) in enumerate(layers):
                    if i not in outputs:
                        raise ConfigError(f"{name} of the model is not run as a whole, so nothing comes out of it")
                    unit = middle(outputs[i]).float().sum()
                    (found,) = torch.autograd.grad(unit, some, retain_graph=True)
                    each = found.abs().double().sum(1).cpu()
                    # A flat image, which a norm blows up, would else hide all others.
                    sums[i] += (each / each.sum((1, 2), keepdim=True).clamp(min=_TINY)).sum(0)
            outputs.clear()
    finally:
        for hook in hooks:
            hook.remove()
    fields = []
    for (name, _, _), total in zip(layers, sums, strict=True):
        gradient = (total / total.max().clamp(min=_TINY)).float()
        fields.append(Field(name, gradient, field_size(gradient)))
    return fields


def layers_of(
    model: nn.Module, image_size: int, name: str = ""
) -> list[tuple[str, nn.Module, Callable[[Tensor], Tensor]]]:
    """Up to six layers of a model, the first and the last among them, each with what picks its middle unit.

    Stages of a ResNet; of a ViT its blocks, whose unit is the patch in the middle; of a hybrid its ResNet and blocks.

    Raises:
        ConfigError: neither stages nor blocks are found.
    """
    net = inner(model)
    found: list[tuple[str, nn.Module, Callable[[Tensor], Tensor]]] = []
    blocks = getattr(net, "blocks", None)
    if isinstance(blocks, nn.ModuleList | nn.Sequential) and getattr(net, "patch_embed", None) is not None:
        tokens = tokens_of(model, image_size, name)
        row, column = tokens.grid[0] // 2, tokens.grid[1] // 2
        place = tokens.prefix + row * tokens.grid[1] + column
        backbone = getattr(net.patch_embed, "backbone", None)
        if isinstance(backbone, nn.Module):
            found.append(("ResNet", backbone, _middle_of_map))
        found += [(f"block {i + 1}", block, lambda output: output[:, place]) for i, block in enumerate(blocks)]
    else:
        stages = getattr(net, "stages", None)
        if isinstance(stages, nn.ModuleList | nn.Sequential):
            listed = list(stages)
        else:
            # timm's first ResNets name them so.
            listed = [getattr(net, f"layer{i}") for i in range(1, 5) if hasattr(net, f"layer{i}")]
        found = [(f"stage {i + 1}", _last_block(stage), _middle_of_map) for i, stage in enumerate(listed)]
    if not found:
        raise ConfigError(
            f"{name or type(net).__name__} has neither `stages` (or `layer1`...) nor `blocks` over patches, whose "
            f"middle unit could be looked at"
        )
    if len(found) <= _MOST:
        return found
    return [found[round(i * (len(found) - 1) / (_MOST - 1))] for i in range(_MOST)]


def _last_block(stage: nn.Module) -> nn.Module:
    """What gives a stage's feature map: models may run its blocks one by one, and never the stage as such."""
    blocks = getattr(stage, "blocks", None)
    return blocks[-1] if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) else stage


def _middle_of_map(output: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C]."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise ConfigError("a stage of the model gives no feature map [B, C, H, W], in which a middle could be found")
    return output[:, :, output.shape[2] // 2, output.shape[3] // 2]
