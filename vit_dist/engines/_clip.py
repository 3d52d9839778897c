"""Clipping of each layer's gradient by a norm of its own, without a number that the host reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Named = Sequence[tuple[str, Tensor]]
"""Weights by name, and the gradient of each, or a rank's part of it."""


class LayerClip:
    """Bounds the norm of each layer's gradient.

    Args:
        layers: the layer of each weight, from 0.
        limit: of each norm.
    """

    def __init__(self, layers: Mapping[str, int], limit: float) -> None:
        self._layers, self._limit = layers, limit
        self._place: tuple[list[str], Tensor] | None = None

    def squares(self, named: Named) -> Tensor:
        """[layers] float64: sums of squares, of which those of all ranks' parts add up to a layer's squared norm."""
        names = [name for name, _ in named]
        each = torch.stack(torch._foreach_norm([gradient for _, gradient in named])).double().square()
        # Made once, in the first step: a copy from the host would wait for the device.
        if self._place is None or self._place[0] != names:
            self._place = names, torch.tensor([self._layers[name] for name in names], device=each.device)
        return each.new_zeros(max(self._layers.values()) + 1).index_add_(0, self._place[1], each)

    def scale(self, named: Named, squares: Tensor) -> None:
        """Scale gradients in place, by `squares` of the whole ones."""
        factors = list((self._limit / squares.sqrt()).clamp(max=1).float().unbind())
        torch._foreach_mul_([gradient for _, gradient in named], [factors[self._layers[name]] for name, _ in named])


def layer_clip(layers: Mapping[str, int] | None, limit: float | None) -> LayerClip | None:
    """None where one norm of all is bounded, or none."""
    return None if layers is None or limit is None else LayerClip(layers, limit)
