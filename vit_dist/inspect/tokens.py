"""How the tokens of a model lie: a class token and registers first, then the patches, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vit_dist.core.errors import ConfigError

Pool = Literal["cls", "mean", "map"]
_POOLS: dict[str, Pool] = {"token": "cls", "cls": "cls", "map": "map"}
_MAX_GRID = 1 << 16


@dataclass(frozen=True)
class Tokens:
    """The tokens that a model's self-attention sees.

    Attributes:
        grid: rows and columns of patches, R and C; L = R * C.
        prefix: tokens before the patches: a class token, registers, a distillation token. T = prefix + L.
        has_class: the first of them is a class token.
        pool: what the head reads: the class token, the mean of the patches, or an attention head with a query of its
            own (map).
        patch: height and width in pixels of what a patch stands for; a hybrid's is a position of its feature map.
    """

    grid: tuple[int, int]
    prefix: int
    has_class: bool
    pool: Pool
    patch: tuple[float, float]

    @property
    def count(self) -> int:
        """T, all tokens of an image."""
        return self.prefix + self.num_patches

    @property
    def num_patches(self) -> int:
        """L."""
        return math.prod(self.grid)

    @property
    def reader(self) -> str:
        """Whose attention stands for the output, in words."""
        if self.pool == "cls":
            return "the class token"
        return "the pooling head" if self.pool == "map" else "the mean over patches"


def inner(model: nn.Module) -> nn.Module:
    """The network itself: a model of timm is wrapped in one of ours."""
    net = getattr(model, "net", None)
    return net if isinstance(net, nn.Module) else model


def tokens_of(model: nn.Module, image_size: int, name: str = "") -> Tokens:
    """How a model's tokens lie: of ours, of timm's, and of any whose `patch_embed` has a `grid_size`.

    Args:
        model: built for images of this size.
        image_size: in pixels.
        name: of the model, for the error.

    Raises:
        ConfigError: it has no patches, as a ResNet.
    """
    net: Any = inner(model)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise ConfigError(
            f"{name or type(net).__name__} has no patches on a grid, so no attention between them; of a ResNet its "
            f"counterpart is the view `field`"
        )
    rows, columns = (int(side) for side in grid)
    if not 0 < rows * columns <= _MAX_GRID:
        raise ConfigError(f"{name or type(net).__name__}: {rows} x {columns} patches cannot be looked at")
    prefix = int(getattr(net, "num_prefix_tokens", getattr(net, "prefix", 0)))
    has_class = getattr(net, "cls_token", None) is not None
    said = str(getattr(net, "pool", None) or getattr(net, "global_pool", ""))
    pool = _POOLS.get(said, "mean")
    patch = (image_size / rows, image_size / columns)
    return Tokens((rows, columns), prefix, has_class, pool if has_class or pool != "cls" else "mean", patch)
