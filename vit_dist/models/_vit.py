"""The Vision Transformer as a module. Parameters have timm's names, so that its tools and weights fit."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import AttentionPoolLatent, HybridEmbed, LayerNorm, Mlp, PatchEmbed, lecun_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vit_dist.models._base import ImageModel, init_conv, zero_head

if TYPE_CHECKING:
    from vit_dist.models.vit import ViTConfig


class ViT(ImageModel):
    """Patches -> tokens -> blocks -> pool -> head.

    L is the number of patches, T = L + 1 with a class token and L without, D the width.

    Args:
        config: shape and regularisation.
        patch_embed: images [B, 3, H, W] -> patches [B, L, D], with `grid_size` and a final convolution `proj`.
        num_classes: outputs of the head.
    """

    def __init__(self, config: ViTConfig, patch_embed: PatchEmbed | HybridEmbed, num_classes: int) -> None:
        super().__init__()
        width = config.width
        rows, columns = patch_embed.grid_size
        prefix = 1 if config.pool == "cls" else 0
        act = partial(nn.GELU, approximate="tanh" if config.gelu == "tanh" else "none")
        self.pool = config.pool

        self.patch_embed: PatchEmbed | HybridEmbed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if prefix else None
        self.pos_embed: Tensor | None
        if config.position_embedding == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, prefix + rows * columns, width))
        elif config.position_embedding == "sincos":
            self.register_buffer("pos_embed", sincos_positions(rows, columns, width, prefix), persistent=False)
        else:
            self.pos_embed = None
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                mlp_ratio=_ratio(config.hidden, width),
                qkv_bias=True,
                proj_drop=config.dropout,
                drop_path=config.stochastic_depth * i / max(1, config.depth - 1),
                act_layer=act,
                norm_layer=LayerNorm,
            )
            for i in range(config.depth)
        )
        self.norm = LayerNorm(width)
        self.attn_pool: AttentionPoolLatent | None = (
            AttentionPoolLatent(
                width,
                num_heads=config.num_heads,
                mlp_ratio=_ratio(config.hidden, width),
                norm_layer=LayerNorm,
                act_layer=act,
            )
            if config.pool == "map"
            else None
        )
        self.pre_logits = (
            nn.Sequential(OrderedDict(fc=nn.Linear(width, width), act=nn.Tanh())) if config.representation else None
        )
        self.head = zero_head(width, num_classes, config.head_bias)
        self._init_weights()

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, T, D] with positions, the class token first."""
        x: Tensor = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        if self.pos_embed is not None:
            # A fixed table is a buffer, which an engine that casts the parameters leaves in float32.
            x = x + self.pos_embed.to(self.norm.weight.dtype)
        dropped: Tensor = self.pos_drop(x)
        return dropped

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, T, D] after the last block and the final LayerNorm."""
        x: Tensor = self.norm(self._through(self.blocks, self.embed(images)))
        return x

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, D]: the pooled tokens, through the representation layer where there is one."""
        tokens = self.encode(images)
        if self.attn_pool is not None:
            x: Tensor = self.attn_pool(tokens)
        else:
            x = tokens[:, 0] if self.pool == "cls" else tokens.mean(dim=1)
        return x if self.pre_logits is None else self.pre_logits(x)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The initial weights of the paper's public code (google-research/vision_transformer, models_vit.py)."""
        init_conv(self.patch_embed.proj)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            _init_block(block)
        if self.attn_pool is not None:
            # google-research/big_vision, models/vit.py: a Xavier uniform query, then as in a block.
            bound = math.sqrt(6 / (1 + self.attn_pool.latent.shape[-1]))
            nn.init.uniform_(self.attn_pool.latent, -bound, bound)
            _init_dense(self.attn_pool.q)
            _init_dense(self.attn_pool.kv, parts=2)
            _init_dense(self.attn_pool.proj)
            _init_mlp(self.attn_pool.mlp)
        if self.pre_logits is not None:
            lecun_normal_(self.pre_logits.get_parameter("fc.weight"))
            nn.init.zeros_(self.pre_logits.get_parameter("fc.bias"))


def build_vit(config: ViTConfig, *, num_classes: int, image_size: int) -> ViT:
    """A ViT whose patches are squares of pixels, embedded by one strided convolution."""
    patches = PatchEmbed(image_size, config.patch_size, embed_dim=config.width)
    return ViT(config, patches, num_classes)


def sincos_positions(rows: int, columns: int, width: int, prefix: int) -> Tensor:
    """Fixed 2-D positions [1, prefix + rows * columns, width]: sin x, cos x, sin y, cos y, a quarter each.

    Frequencies are 1 down to 1/10000, evenly in the logarithm; prefix tokens get zeros. Source:
    google-research/big_vision, models/vit.py, and "Better plain ViT baselines" (arXiv 2205.01580).
    """
    quarter = width // 4
    frequency = 10_000.0 ** -torch.linspace(0, 1, quarter)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(prefix, width), table])[None]


def _ratio(hidden: int, width: int) -> float:
    # timm takes int(width * ratio); half a unit up, no rounding of the quotient can lose the last one.
    return (hidden + 0.5) / width


def _init_dense(layer: nn.Linear, parts: int = 1) -> None:
    """Xavier uniform for each of the matrices stacked in a layer, and zero biases."""
    for matrix in layer.weight.chunk(parts):
        nn.init.xavier_uniform_(matrix)
    nn.init.zeros_(layer.bias)


def _init_block(block: Block) -> None:
    # The published q, k and v are three matrices; the bound of the fused one would be 0.707 of theirs.
    _init_dense(block.attn.qkv, parts=3)
    _init_dense(block.attn.proj)
    _init_mlp(block.mlp)


def _init_mlp(mlp: Mlp) -> None:
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(layer.bias, std=1e-6)
