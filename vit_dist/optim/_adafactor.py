"""Adafactor in torch. timm's adds bf16 momentum up in bf16; big_vision's, and this, in fp32 before it is rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vit_dist.optim._across import weights_with_gradients

_TINY = 1e-30
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Adafactor(torch.optim.Optimizer):
    """See AdafactorConfig; groups have its settings.

    Args:
        params: groups with every setting in them.
    """

    keeps_other_shapes = True
    """Of what it keeps of a weight not all has the weight's shape."""

    def __init__(self, params: Iterable[Mapping[str, Any]]) -> None:
        super().__init__([dict(group) for group in params], {})

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in weights_with_gradients(group):
                update = self._momentum(group, weight, self._scaled(group, weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _scaled(self, group: dict[str, Any], weight: Tensor) -> Tensor:
        """The gradient over the root of the second mean."""
        assert weight.grad is not None
        state, sides = self.state[weight], factored_sides(weight.shape, group["min_factored"])
        # A number of Python's: it costs no operation, and no wait where a step is counted on the device.
        state["step"] = step = float(state.get("step", 0)) + 1
        new = 1 - min(group["beta2_cap"], 1 - step ** -group["decay_rate"])
        square = weight.grad.square().add_(_TINY)
        if sides is None:
            return weight.grad * _mean(state, "exp_avg_sq", square, new).rsqrt()
        rows, columns = sides
        of_rows = _mean(state, "exp_avg_sq_row", square.mean(columns, keepdim=True), new)
        of_columns = _mean(state, "exp_avg_sq_col", square.mean(rows, keepdim=True), new)
        return weight.grad * (of_rows / of_rows.mean(rows, keepdim=True)).rsqrt() * of_columns.rsqrt()

    def _momentum(self, group: dict[str, Any], weight: Tensor, update: Tensor) -> Tensor:
        state = self.state[weight]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(weight, dtype=_DTYPES[group["momentum_dtype"]])
        mean: Tensor = state["exp_avg"].to(update.dtype).lerp(update, 1 - group["momentum"])
        state["exp_avg"].copy_(mean)
        return mean


def factored_sides(shape: torch.Size, least: int) -> tuple[int, int] | None:
    """The second longest and the longest side of a shape; None where there are no two of `least`."""
    order = sorted(range(len(shape)), key=lambda side: shape[side])
    return (order[-2], order[-1]) if len(shape) > 1 and shape[order[-2]] >= least else None


def _mean(state: dict[str, Any], key: str, value: Tensor, new: float) -> Tensor:
    """A running mean of the state, which begins at zero."""
    if key not in state:
        state[key] = torch.zeros_like(value)
    mean: Tensor = state[key].lerp_(value, new)
    return mean
