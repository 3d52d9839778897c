"""The Vision Transformer as a module. Parameters have timm's names, so that its tools and weights fit."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import (
    AttentionPoolLatent,
    GluMlp,
    HybridEmbed,
    LayerNorm,
    Mlp,
    PatchDropoutWithIndices,
    PatchEmbed,
    SwiGLUPacked,
    lecun_normal_,
)
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional

from vit_dist.models._base import ImageModel, init_conv, zero_head
from vit_dist.models._positions import (
    ConditionalPositions,
    RelativeAttention,
    RotaryAttention,
    crossed,
    num_offsets,
    sincos_positions,
)

if TYPE_CHECKING:
    from vit_dist.models.vit import ViTConfig


_ATTENTION = {"relative": RelativeAttention, "rope": RotaryAttention}


class Patches(PatchEmbed):  # type: ignore[misc]
    """timm's embedding of patches; off the CPU by one matrix product, which takes a tenth of a convolution's time."""

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] of the size that it was made for -> [B, L, D]."""
        if images.device.type != "cpu" and images.shape[2:] == self.img_size:
            return self.product(images)
        embedded: Tensor = super().forward(images)
        return embedded

    def product(self, images: Tensor) -> Tensor:
        """The same, whatever the device: each patch's pixels times the kernel's."""
        (rows, columns), (height, width) = self.grid_size, self.patch_size
        patches = images.reshape(len(images), -1, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return functional.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class ViT(ImageModel):
    """Patches -> tokens -> blocks -> pool -> head.

    L is the number of patches, T = P + L that of tokens, D the width. P counts what stands before the patches: the
    class token, where there is one, then the registers.

    Args:
        config: shape and regularisation.
        patch_embed: images [B, 3, H, W] -> patches [B, L, D], with `grid_size` and a final convolution `proj`.
        num_classes: outputs of the head.
    """

    def __init__(self, config: ViTConfig, patch_embed: PatchEmbed | HybridEmbed, num_classes: int) -> None:
        super().__init__()
        width = config.width
        rows, columns = patch_embed.grid_size
        self.class_tokens, self.registers = 1 if config.pool == "cls" else 0, config.registers
        self.prefix = prefix = self.class_tokens + self.registers
        act = partial(nn.GELU, approximate="tanh" if config.gelu == "tanh" else "none")
        gated, self.pool = config.mlp == "swiglu", config.pool

        self.patch_embed: PatchEmbed | HybridEmbed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if self.class_tokens else None
        self.reg_token = nn.Parameter(torch.empty(1, self.registers, width)) if self.registers else None
        self._make_positions(config, (rows, columns))
        self.pos_drop = nn.Dropout(config.dropout)
        # What it draws is a function of (seed, step, rank), as dropout's is: see train/loop.py.
        self.patch_drop = PatchDropoutWithIndices(config.patch_dropout, prefix) if config.patch_dropout else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                # timm counts the two products of SwiGLU, which are one matrix, together.
                mlp_ratio=mlp_ratio(config.hidden * (2 if gated else 1), width),
                mlp_layer=SwiGLUPacked if gated else Mlp,
                qkv_bias=True,
                qk_norm=config.qk_norm,
                init_values=config.layer_scale,
                proj_drop=config.dropout,
                drop_path=config.stochastic_depth * i / max(1, config.depth - 1),
                act_layer=nn.SiLU if gated else act,
                norm_layer=LayerNorm,
                attn_layer=_ATTENTION.get(config.position_embedding, Attention),
            )
            for i in range(config.depth)
        )
        for block in self.blocks:
            if isinstance(block.attn, RelativeAttention | RotaryAttention):
                block.attn.place((rows, columns), prefix)
        self.norm = LayerNorm(width)
        self.attn_pool: AttentionPoolLatent | None = (
            AttentionPoolLatent(
                width,
                num_heads=config.num_heads,
                mlp_ratio=mlp_ratio(config.hidden, width),
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

    def _make_positions(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        """Tables have one entry for each place where they are used: the stem, all layers together, or each layer."""
        kind, width = config.position_embedding, config.width
        self.grid, self.positions_at, self.rotary = grid, config.places, kind == "rope"
        places = config.depth if config.places == "layers" else 1
        self.pos_embed: Tensor | None = None
        self.pos_embed_x = self.pos_embed_y = self.pos_relative = None
        self.peg: nn.ModuleList | None = None
        if kind == "learned":
            self.pos_embed = nn.Parameter(torch.empty(places, self.class_tokens + grid[0] * grid[1], width))
        elif kind == "sincos":
            del self.pos_embed
            self.register_buffer("pos_embed", sincos_positions(*grid, width, self.class_tokens), persistent=False)
        elif kind == "learned-2d":
            self.pos_embed_x = nn.Parameter(torch.empty(places, grid[1], width // 2))
            self.pos_embed_y = nn.Parameter(torch.empty(places, grid[0], width // 2))
        elif kind == "relative":
            self.pos_relative = nn.Parameter(torch.empty(places, num_offsets(grid), width // config.num_heads))
        elif kind == "conditional":
            # Behind the last block the class token would see nothing of it.
            behind = 1 if places == 1 else config.depth - 1
            self.peg = nn.ModuleList(ConditionalPositions(grid, self.prefix, width) for _ in range(behind))

    def positions(self, layer: int = 0) -> Tensor | None:
        """What is added to the tokens before a layer (all but 'layers': any), [T, D]; None where nothing is."""
        if self.pos_embed_x is not None and self.pos_embed_y is not None:
            place = min(layer, len(self.pos_embed_x) - 1)
            return crossed(self.pos_embed_x[place], self.pos_embed_y[place], self.prefix)
        if self.pos_embed is None:
            return None
        # A fixed table is a buffer, which an engine that casts the parameters leaves in float32.
        table = self.pos_embed[min(layer, len(self.pos_embed) - 1)].to(self.norm.weight.dtype)
        if not self.registers:
            return table
        nowhere = table.new_zeros(self.registers, table.shape[1])
        return torch.cat([table[: self.class_tokens], nowhere, table[self.class_tokens :]])

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, T, D], patches last; with positions where the stem adds them."""
        x: Tensor = self.patch_embed(images)
        before = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if before:
            x = torch.cat([*before, x], dim=1)
        table = self.positions() if self.positions_at == "stem" else None
        if table is not None:
            x = x + table
        # Under autocast a float32 table would make what all blocks add to, and keep, twice as large as in bf16 weights.
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        dropped: Tensor = self.pos_drop(x)
        return dropped

    def weight_layers(self) -> dict[str, int]:
        """See ImageModel. Positions that several layers share go with the last, as in BEiT's optim_factory.py."""
        behind = len(self.blocks) + 1

        def layer(name: str) -> int:
            part, _, rest = name.partition(".")
            if part in {"blocks", "peg"}:
                return int(rest.partition(".")[0]) + 1
            in_stem = part in {"patch_embed", "cls_token", "reg_token"}
            in_stem = in_stem or (part.startswith("pos_") and self.positions_at == "stem")
            return 0 if in_stem else behind

        return {name: layer(name) for name, _ in self.named_parameters()}

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, T, D] after the last block, before the final LayerNorm.

        In training T may be less, by what patch dropout has left out, and patches stand in no order.
        """
        x, kept = self.embed(images), None
        if self.patch_drop is not None:
            x, kept = self.patch_drop(x)
        for i, block in enumerate(self.blocks):
            table = self.positions(i) if self.positions_at != "stem" else None
            if table is not None and kept is not None:
                table = torch.cat([table[: self.prefix].expand(len(x), -1, -1), table[self.prefix :][kept]], dim=1)
            x = self._run_block(self._layer, x, block, i, table, kept)
        return x

    def _layer(self, x: Tensor, block: nn.Module, i: int, table: Tensor | None, kept: Tensor | None) -> Tensor:
        """One block and the positions that belong to it."""
        if table is not None:
            x = x + table
        if self.pos_relative is not None:
            x = block(x, attn_mask=self.pos_relative[min(i, len(self.pos_relative) - 1)])
        elif self.rotary:
            x = block(x, attn_mask=kept)
        else:
            x = block(x)
        if self.peg is not None and (i == 0 or (self.positions_at != "stem" and i < len(self.blocks) - 1)):
            x = self.peg[min(i, len(self.peg) - 1)](x)
        return x

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, D]: the pooled tokens, through the representation layer where there is one."""
        tokens = self.encode(images)
        # Each token is normalised by itself: where one is looked at, the others need not be.
        looked_at = tokens[:, self.registers :] if self.registers else tokens
        x: Tensor = self.norm(tokens[:, 0] if self.pool == "cls" else looked_at)
        if self.attn_pool is not None:
            x = self.attn_pool(x)
        elif self.pool == "mean":
            x = x.mean(dim=1)
        return x if self.pre_logits is None else self.pre_logits(x)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The initial weights of the paper's public code (google-research/vision_transformer, models_vit.py)."""
        init_conv(self.patch_embed.proj)
        if self.reg_token is not None:
            # facebookresearch/dinov2, models/vision_transformer.py. All of them zero would stay alike for ever.
            nn.init.normal_(self.reg_token, std=1e-6)
        for table in (self.pos_embed, self.pos_embed_x, self.pos_embed_y, self.pos_relative):
            if isinstance(table, nn.Parameter):
                nn.init.normal_(table, std=0.02)
        for peg in self.peg or ():
            assert isinstance(peg, ConditionalPositions)
            init_conv(peg.proj)
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
    return ViT(config, Patches(image_size, config.patch_size, embed_dim=config.width), num_classes)


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio for which timm makes MLPs of this hidden width."""
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


def _init_mlp(mlp: Mlp | GluMlp) -> None:
    # What SwiGLU's gate and its value are made by are two matrices, as q, k and v are three.
    for layer, parts in ((mlp.fc1, 2 if isinstance(mlp, GluMlp) else 1), (mlp.fc2, 1)):
        _init_dense(layer, parts)
        nn.init.normal_(layer.bias, std=1e-6)
