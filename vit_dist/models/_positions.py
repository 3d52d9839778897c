"""Where a token stands: position embeddings of the paper's ablation (appendix D.4), sin-cos tables, RoPE, and CPVT's.

R rows and C columns of patches, L = R * C. P is 1 with a class token and 0 without, T = P + L. D is the width, h the
number of heads, d = D / h.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional

Grid = tuple[int, int]
Resampling = Literal["public", "bicubic"]
"""public: linear, the outermost patches stay the outermost; bicubic: antialiased, patches keep their areas."""


def sincos_positions(rows: int, columns: int, width: int, prefix: int) -> Tensor:
    """Fixed 2-D positions [1, P + L, D]: sin x, cos x, sin y, cos y, a quarter each.

    Frequencies are 1 down to 1/10000, evenly in the logarithm; prefix tokens get zeros. Source:
    google-research/big_vision, models/vit.py, and "Better plain ViT baselines" (arXiv 2205.01580).
    """
    quarter = width // 4
    frequency = 10_000.0 ** -torch.linspace(0, 1, quarter)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(prefix, width), table])[None]


def crossed(x: Tensor, y: Tensor, prefix: int) -> Tensor:
    """Columns [C, D/2] and rows [R, D/2] -> [P + L, D], each patch its column's half, then its row's; prefix zeros."""
    table = torch.cat(
        [x[None, :, :].expand(len(y), -1, -1), y[:, None, :].expand(-1, len(x), -1)],
        dim=-1,
    ).flatten(0, 1)
    return functional.pad(table, (0, 0, prefix, 0))


def num_offsets(grid: Grid) -> int:
    """How many different ways lead from one patch to another: (2R - 1)(2C - 1)."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def relative_index(grid: Grid) -> Tensor:
    """[L, L]: for a query's and a key's patch the number of the offset between them, in 0..num_offsets - 1."""
    rows, columns = grid
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
    apart = place[:, :, None] - place[:, None, :]
    return (apart[0] + rows - 1) * (2 * columns - 1) + apart[1] + columns - 1


class RelativeAttention(Attention):  # type: ignore[misc]
    """Self-attention whose logits gain the query's product with a vector for the offset between the two patches.

    The paper's "extra attention", which has the offsets' vectors as its keys. All heads share the vectors; the class
    token has no offset to anything.
    """

    index: Tensor

    def place(self, grid: Grid, prefix: int) -> None:
        """Say how the tokens lie."""
        self.prefix = prefix
        self.register_buffer("index", relative_index(grid), persistent=False)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **_: bool) -> Tensor:
        """Tokens [B, T, D] -> [B, T, D]. `attn_mask` is the table of the offsets' vectors [num_offsets, d]."""
        assert attn_mask is not None
        batch, tokens = x.shape[:2]
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(q, attn_mask))
        projected: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim)))
        return projected

    def bias(self, q: Tensor, table: Tensor) -> Tensor:
        """Queries [B, h, T, d] and vectors [num_offsets, d] -> what is added to the logits, [B, h, T, T]."""
        logits = (q[:, :, self.prefix :] * self.scale) @ table.T
        by_key = logits.gather(-1, self.index.expand(*logits.shape[:2], -1, -1))
        return functional.pad(by_key, (self.prefix, 0, self.prefix, 0))


def rotations(grid: Grid, width: int) -> Tensor:
    """Sines and cosines [2, L, d / 2] of the angles by which patches turn a head's queries and keys (axial 2-D RoPE).

    A quarter of d is the number of frequencies, from one turn over half the image down to nearly one in a hundred of
    them; the first half of the angles is the row's, the second the column's. Places are the centres of patches in an
    image that goes from -1 to 1, whatever its size: nothing has to be resampled for another one. Source: DINOv3 (arXiv
    2508.10104, section 3.2; facebookresearch/dinov3, layers/rope_position_encoding.py), without its jitter.
    """
    rows, columns = grid
    periods = 100.0 ** (torch.arange(width // 4) / (width // 4))
    y, x = (2 * (torch.arange(n) + 0.5) / n - 1 for n in (rows, columns))
    place = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * torch.pi * place[:, :, None] / periods).flatten(1)
    return torch.stack([angles.sin(), angles.cos()])


class Rotation(nn.Module):
    """Turns the patches' queries or keys by where they stand; what stands before the patches passes by.

    What comes out is what is multiplied: whoever looks at queries and keys hooks in here.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, heads: Tensor, sines: Tensor, cosines: Tensor) -> Tensor:
        """[B, h, P + L, d] with [L, d / 2] or [B, 1, L, d / 2] of sines and cosines -> the same, turned."""
        # Half a head by the other half, as timm's `rotate_half`; rounded to the heads' dtype at the end alone.
        first, second = heads[:, :, self.prefix :].chunk(2, dim=-1)
        turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
        return torch.cat([heads[:, :, : self.prefix], turned.to(heads.dtype)], dim=2)


class RotaryAttention(Attention):  # type: ignore[misc]
    """Self-attention whose queries and keys are turned by the place of their patch (RoPE, arXiv 2104.09864) in 2-D."""

    rotations: Tensor

    def place(self, grid: Grid, prefix: int) -> None:
        """Say how the tokens lie."""
        self.prefix = prefix
        self.q_turn, self.k_turn = Rotation(prefix), Rotation(prefix)
        self.register_buffer("rotations", rotations(grid, self.head_dim), persistent=False)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **_: bool) -> Tensor:
        """Tokens [B, T, D] -> [B, T, D]. `attn_mask` numbers the patches that are there, [B, T - P]; None: all are."""
        batch, tokens = x.shape[:2]
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        turns = self.rotations.float()
        turns = turns if attn_mask is None else turns[:, attn_mask].unsqueeze(2)
        q, k = self.q_turn(self.q_norm(q), *turns), self.k_turn(self.k_norm(k), *turns)
        x = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim)))
        return projected


class ConditionalPositions(nn.Module):
    """Positions from what stands around (CPVT, arXiv 2102.10882, section 3.2): a 3x3 depthwise convolution of patches.

    Its zero padding is what tells a patch how far the border is. The class token passes by.
    """

    def __init__(self, grid: Grid, prefix: int, width: int) -> None:
        super().__init__()
        self.grid, self.prefix = grid, prefix
        self.proj = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, P + L, D] -> the same, each patch with its position added."""
        patches = tokens[:, self.prefix :].transpose(1, 2).reshape(len(tokens), -1, *self.grid)
        placed = (patches + self.proj(patches)).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, : self.prefix], placed], dim=1) if self.prefix else placed


def resample(table: Tensor, old: Grid, new: Grid, method: Resampling = "public") -> Tensor:
    """Vectors on a grid -> vectors on another: [..., R * C, D] -> [..., R' * C', D], by place in two dimensions.

    `public` is what google-research/vision_transformer does (scipy's zoom of order 1), with which the published results
    were fine-tuned: straight lines between neighbours, the corners stay where they are. `bicubic` is timm's.
    """
    if old == new:
        return table
    lead, width = table.shape[:-2], table.shape[-1]
    image = table.reshape(-1, *old, width).permute(0, 3, 1, 2).float()
    if method == "public":
        image = functional.interpolate(image, new, mode="bilinear", align_corners=True)
    else:
        image = functional.interpolate(image, new, mode="bicubic", antialias=True)
    return image.permute(0, 2, 3, 1).reshape(*lead, new[0] * new[1], width).to(table.dtype)


def resize_positions(
    name: str, table: Tensor, old: Grid, new: Grid, *, prefix: int, method: Resampling = "public"
) -> Tensor:
    """A ViT's learned positions for a model of another image size; every other tensor comes back as it is.

    Args:
        name: of the parameter, such as 'pos_embed'.
        table: its value in the model it comes from.
        old: rows and columns of patches there.
        new: rows and columns here.
        prefix: tokens before the patches, whose vectors are kept.
        method: see `resample`.
    """
    if old == new:
        return table
    if name == "pos_embed":
        return torch.cat([table[:, :prefix], resample(table[:, prefix:], old, new, method)], dim=1)
    if name == "pos_embed_x":
        return resample(table, (1, old[1]), (1, new[1]), method)
    if name == "pos_embed_y":
        return resample(table, (old[0], 1), (new[0], 1), method)
    if name == "pos_relative":
        spans = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new)]
        return resample(table, spans[0], spans[1], method)
    return table
