"""LAMB in torch. timm's keeps its count of steps with the groups, where no checkpoint of ours would find it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vit_dist.optim._across import RowOptimizer, weights_with_gradients


class Lamb(RowOptimizer):
    """See LambConfig; groups have `lr`, `betas`, `eps`, `weight_decay` and `adapts`."""

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        stepped = [
            (weight, self._direction(group, weight), group)
            for group in self.param_groups
            for weight in weights_with_gradients(group)
        ]
        adapting = [(weight, direction) for weight, direction, group in stepped if group["adapts"]]
        ratios = iter(self._ratios(adapting))
        for weight, direction, group in stepped:
            if group["adapts"]:
                direction.mul_(next(ratios))
            weight.add_(direction, alpha=-group["lr"])

    def _direction(self, group: dict[str, Any], weight: Tensor) -> Tensor:
        """Adam's step, and the decay."""
        assert weight.grad is not None
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        # A number of Python's: it costs no operation, and no wait where a step is counted on the device.
        state["step"] = step = float(state.get("step", 0)) + 1
        mean = state["exp_avg"].lerp_(weight.grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
        root = square.div(1 - beta2**step).sqrt_().add_(group["eps"])
        direction: Tensor = mean.div(1 - beta1**step).div_(root).add_(weight, alpha=group["weight_decay"])
        return direction

    def _ratios(self, adapting: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Norm of each weight over that of its direction; 1 where either is zero."""
        if not adapting:
            return []
        squares = torch.stack(
            [torch.stack([weight.square().sum(), direction.square().sum()]) for weight, direction in adapting]
        )
        weights, directions = self.across.summed(squares).sqrt().unbind(1)
        whole = (weights > 0) & (directions > 0)
        return list(torch.where(whole, weights / directions, 1.0).unbind())
