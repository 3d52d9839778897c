"""Which parameters decay, and at which rates layers learn."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from vit_dist.core.errors import ConfigError
from vit_dist.optim import Decay


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


def divide_by_layers(optimizer: Optimizer, model: nn.Module, layer_decay: float) -> None:
    """Divide each group of an optimizer that has not stepped yet by layers, with the scale of each layer's rate.

    Of n blocks, layer i has the rate times layer_decay ** (n + 1 - i): 0 is the stem, n + 1 what comes behind the
    blocks, which learns at the whole rate (microsoft/unilm, beit/optim_factory.py; facebookresearch/mae, lr_decay.py).

    Args:
        optimizer: whose groups get an `lr_scale`, by which engines multiply the rate of the schedule.
        model: that says of each weight in which layer it is.
        layer_decay: below 1.

    Raises:
        ConfigError: the model's layers cannot be told.
    """
    layers = layers_for(model, f"optim.layer_decay={layer_decay:g}", "leave layer_decay out")
    behind = max(layers.values())
    of = {id(weight): layers[name] for name, weight in model.named_parameters()}
    divided = []
    for group in optimizer.param_groups:
        parts: dict[int, list[nn.Parameter]] = {}
        for weight in group["params"]:
            parts.setdefault(of[id(weight)], []).append(weight)
        scale = group.get("lr_scale", 1.0)
        divided += [
            {**group, "params": parts[layer], "lr_scale": scale * layer_decay ** (behind - layer)}
            for layer in sorted(parts)
        ]
    optimizer.param_groups[:] = divided


def layers_for(model: nn.Module, key: str, instead: str) -> dict[str, int]:
    """The layer of each weight by the model's own word.

    Args:
        model: with `weight_layers()`: see models/_base.ImageModel.
        key: that needs them, for errors.
        instead: what to do without them.

    Raises:
        ConfigError: the model's layers cannot be told.
    """
    tell: Any = getattr(model, "weight_layers", None)
    layers: dict[str, int] | None = tell() if tell is not None else None
    if layers is None:
        kind = type(getattr(model, "net", model)).__name__
        raise ConfigError(
            f"{key}: the layers of this model ({kind}) cannot be told, for it has no blocks in a row; {instead}, or "
            f"let the model say them (weight_layers, docs/plugins.md)"
        )
    return layers
