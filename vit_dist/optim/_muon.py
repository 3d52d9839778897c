"""Muon in torch. torch's own and timm's orthogonalise in bf16 alone, and torch's has no convolutions and no AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vit_dist.optim._across import RowOptimizer, weights_with_gradients
from vit_dist.optim._groups import layers_for

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of K. Jordan's post: singular values come to lie between 0.7 and 1.2, and not at 1."""
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Muon(RowOptimizer):
    """See MuonConfig; groups with `momentum` are Muon's, those with `betas` AdamW's."""

    fused = True

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            if "momentum" not in group:
                self._adamw(group)
                continue
            for weight in weights_with_gradients(group):
                self._orthogonal(group, weight)

    def _orthogonal(self, group: dict[str, Any], weight: Tensor) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
        update = self.across.whole(weight, weight.grad.lerp(mean, group["momentum"]) if group["nesterov"] else mean)
        # A convolution is a matrix from what it reads at a place to its channels.
        matrix = update.flatten(1)
        rows, columns = matrix.shape
        wide = 0.2 * math.sqrt(max(rows, columns))
        scale = wide if group["scale"] == "rms" else math.sqrt(max(1, rows / columns))
        whole = orthogonal(matrix, group["iterations"], _DTYPES[group["orthogonal_dtype"]]).view_as(update)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(self.across.own(weight, whole).to(weight.dtype), alpha=-group["lr"] * scale)

    def _adamw(self, group: dict[str, Any]) -> None:
        weights = list(weights_with_gradients(group))
        for weight in weights:
            state = self.state[weight]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        states, (beta1, beta2) = [self.state[weight] for weight in weights], group["betas"]
        adamw(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrix: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """About the nearest orthogonal matrix, [m, n] -> [m, n], by the quintic iteration of Newton and Schulz."""
    a, b, c = _QUINTIC
    x = matrix.to(dtype)
    # Products are as small as the shorter side.
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def divided(
    model: nn.Module, groups: list[dict[str, Any]], matrices: Mapping[str, Any], rest: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Groups of hidden matrices, with the settings of `matrices`, and of all other weights, with those of `rest`.

    Raises:
        ConfigError: the model's layers cannot be told.
    """
    # Else nobody could tell which matrices are hidden.
    layers = layers_for(model, "optim.name=muon", "use optim.name=adamw")
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    hidden = {
        id(weight)
        for name, weight in model.named_parameters()
        if name.endswith(".weight")
        and weight.ndim > 1
        and id(weight) not in tables
        and layers[name] > 0
        and not name.startswith("head.")
    }
    found = []
    for group in groups:
        ours = [weight for weight in group["params"] if id(weight) in hidden]
        others = [weight for weight in group["params"] if id(weight) not in hidden]
        found += [{**group, **matrices, "params": ours}] if ours else []
        found += [{**group, **rest, "params": others}] if others else []
    return found
