"""What weights show by themselves: position embeddings against each other, and filters on the image's pixels."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from vit_dist.core.errors import ConfigError
from vit_dist.inspect.tokens import Tokens, inner


def position_similarity(table: Tensor) -> Tensor:
    """Cosine similarity of the position embeddings of any two patches: [L, D] -> [L, L], in -1..1.

    Figure 7 (centre) and appendix D.4 of arXiv 2010.11929. What is added to a token has no length of its own there:
    a vector of zeros is similar to nothing, 0.
    """
    unit = torch.nn.functional.normalize(table.double(), dim=-1)
    return (unit @ unit.T).float()


def positions_of(model: nn.Module, tokens: Tokens, name: str = "") -> tuple[Tensor, bool]:
    """The vectors that a model adds to its patches, [L, D]; and whether other layers add others of their own.

    Raises:
        ConfigError: it adds none.
    """
    net: Any = inner(model)
    name = name or type(net).__name__
    if getattr(net, "pos_relative", None) is not None:
        raise ConfigError(
            f"{name}: its positions are relative: they act in attention, by the offset of two patches, and no patch "
            f"has a vector of its own that could be compared"
        )
    if getattr(net, "peg", None) is not None:
        raise ConfigError(
            f"{name}: its positions are conditional: a convolution makes them out of each image, and no patch has a "
            f"vector of its own that could be compared"
        )
    with torch.no_grad():
        found = net.positions() if callable(getattr(net, "positions", None)) else getattr(net, "pos_embed", None)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"{name} adds no position embeddings to its patches (it has none, or they turn queries and keys)"
        )
    table = found.detach().float().cpu().flatten(0, -2)
    # Class token and registers, which come first, may have none.
    if not tokens.num_patches <= len(table) <= tokens.count:
        raise ConfigError(f"{name}: {len(table)} position embeddings are not those of {tokens.grid} patches")
    return table[-tokens.num_patches :], getattr(net, "positions_at", "stem") == "layers"


def filter_components(filters: Tensor, count: int = 28) -> tuple[Tensor, Tensor]:
    """Principal components of filters, [k, C, P, Q], each of length 1; and the share of variance that each explains.

    The filters are the samples, their values the dimensions; their mean is taken off. Of the two signs the one that
    makes the largest value positive. Figure 7 (left) of arXiv 2010.11929 shows the first 28 of ViT-B/32 and L/32.

    Args:
        filters: [F, C, P, Q].
        count: components; there are no more than filters, or values of one.
    """
    samples = filters.detach().double().cpu().flatten(1)
    samples = samples - samples.mean(0)
    _, singular, components = torch.linalg.svd(samples, full_matrices=False)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    variance = singular.square()
    shares = variance / variance.sum().clamp(min=torch.finfo(torch.float64).tiny)
    kept = min(count, len(components))
    return components[:kept].reshape(kept, *filters.shape[1:]).float(), shares[:kept].float()


def first_filters(model: nn.Module, name: str = "") -> tuple[Tensor, str]:
    """The filters on the pixels of a model, [F, 3, P, Q], and the name of their layer.

    A ViT's embed patches; a ResNet's, and a hybrid's, are those of its first convolution. Where weights are
    standardised before they are used, so are these.

    Raises:
        ConfigError: no convolution stands on the pixels.
    """
    for path, part in inner(model).named_modules():
        if isinstance(part, nn.Conv2d) and part.in_channels == 3 and part.groups == 1:
            weight = part.weight.detach().float().cpu()
            if isinstance(part, StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame):
                variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
                weight = (weight - mean) / (variance + part.eps).sqrt()
            return weight, path
    raise ConfigError(f"{name or type(model).__name__} has no convolution on the three colours, so no filters to show")
