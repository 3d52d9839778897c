"""Which parameters decay."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

Decay = Literal["kernels", "all"]


def decay_groups(model: nn.Module, weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """The trainable parameters in a group that decays and one that does not, each in the order of the model.

    Args:
        model: whose `named_parameters` are divided.
        weight_decay: of the first group.
        decay: `kernels`: matrices and convolution kernels decay; biases, norms, positions, class tokens and lookup
            tables do not. `all`: everything decays.

    Returns:
        Parameter groups of a torch optimizer, without empty ones.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kernel = name.rpartition(".")[2] == "weight" and parameter.ndim > 1 and id(parameter) not in tables
        groups[weight_decay if decay == "all" or kernel else 0.0].append(parameter)
    return [{"params": params, "weight_decay": rate} for rate, params in groups.items() if params]
