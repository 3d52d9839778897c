"""Position embeddings: what each of them is, and what becomes of them at another image size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import zoom
from torch import Tensor, nn
from torch.nn import functional

from tests.plugins import build_model
from vit_dist.models._positions import RelativeAttention, relative_index, resample, resize_positions
from vit_dist.models._vit import ViT

KINDS = ["learned", "learned-2d", "relative", "sincos", "conditional", "none"]
IMPOSSIBLE = {("relative", "stem"), ("sincos", "layers")}
CHOICES = [(k, at) for k in KINDS[:-1] for at in ("stem", "layers", "shared") if (k, at) not in IMPOSSIBLE]


def build(image_size: int = 28, **changes: Any) -> ViT:
    """A small ViT whose positions are not zero."""
    model: ViT = build_model("vit-test", image_size, **changes)
    for name, parameter in model.named_parameters():
        if name.startswith("pos_"):
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("kind", "at"), CHOICES)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_moved_patches_are_told_apart(kind: str, at: str, pool: str) -> None:
    model = build(position_embedding=kind, positions_at=at, pool=pool).eval()
    x = torch.randn(2, 3, 28, 28)
    assert not torch.allclose(model(x), model(x.roll(7, dims=3)), atol=1e-3)


@pytest.mark.parametrize(("kind", "at"), CHOICES)
def test_every_position_learns_and_recomputed_activations_give_the_same_gradients(kind: str, at: str) -> None:
    gradients = []
    for mode in ("none", "full"):
        model = build(position_embedding=kind, positions_at=at)
        model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
        functional.cross_entropy(model(torch.ones(4, 3, 28, 28).cumsum(2)), torch.arange(4)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert [name for name, gradient in gradients[0].items() if gradient is None or not gradient.abs().sum() > 0] == []
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize(
    ("kind", "at", "added"),
    [
        ("learned", "stem", 17 * 32),
        ("learned", "shared", 17 * 32),
        ("learned", "layers", 2 * 17 * 32),
        ("learned-2d", "stem", 8 * 16),
        ("learned-2d", "layers", 2 * 8 * 16),
        ("relative", "shared", 49 * 16),
        ("relative", "layers", 2 * 49 * 16),
        ("relative", None, 2 * 49 * 16),
        ("sincos", "shared", 0),
        ("conditional", "stem", 32 * 10),
        ("conditional", "layers", 32 * 10),
    ],
)
def test_positions_cost_as_many_parameters_as_they_say(kind: str, at: str | None, added: int) -> None:
    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    with_positions = build(position_embedding=kind, positions_at=at)
    assert count(with_positions) - count(build(position_embedding="none")) == added


def test_positions_of_every_layer_are_added_to_what_enters_it() -> None:
    own, none = (
        build(position_embedding="learned", positions_at="layers").eval(),
        build(position_embedding="none").eval(),
    )
    none.load_state_dict({n: t for n, t in own.state_dict().items() if n != "pos_embed"})
    x = torch.randn(2, 3, 28, 28)
    tokens = none.embed(x)
    assert torch.equal(own.embed(x), tokens)
    assert own.pos_embed is not None
    for table, block in zip(own.pos_embed, none.blocks, strict=True):
        tokens = block(tokens + table)
    torch.testing.assert_close(own.encode(x), tokens)


def test_two_dimensional_positions_are_a_half_by_column_and_a_half_by_row() -> None:
    model = build(position_embedding="learned-2d")
    table = model.positions()
    assert table is not None
    assert model.pos_embed_x is not None
    assert model.pos_embed_y is not None
    assert table.shape == (17, 32)
    assert not table[0].any()
    row, column = 2, 3
    expected = torch.cat([model.pos_embed_x[0, column], model.pos_embed_y[0, row]])
    assert torch.equal(table[1 + 4 * row + column], expected)


def test_relative_attention_is_content_plus_the_querys_product_with_the_offset() -> None:
    model = build(position_embedding="relative", positions_at="shared").eval()
    attention: RelativeAttention = model.blocks[0].attn
    assert model.pos_relative is not None
    table, x = model.pos_relative[0], torch.randn(1, 17, 32)
    q, k, v = (
        part.reshape(17, 2, 16).transpose(0, 1)
        for part in functional.linear(x[0], *attention.qkv.parameters()).split(32, -1)
    )
    logits = q @ k.transpose(1, 2) / 4
    for a in range(16):
        for b in range(16):
            rows, columns = a // 4 - b // 4, a % 4 - b % 4
            logits[:, 1 + a, 1 + b] += q[:, 1 + a] @ table[(rows + 3) * 7 + columns + 3] / 4
    expected = attention.proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(17, 32))
    torch.testing.assert_close(attention(x, table)[0], expected, rtol=1e-4, atol=1e-5)


def test_offsets_are_numbered_alike_wherever_two_patches_lie() -> None:
    index = relative_index((2, 3))
    assert index.shape == (6, 6)
    assert index[0, 1] == index[3, 4] == index[1, 2] != index[1, 0]
    assert (index.min(), index.max()) == (0, 3 * 5 - 1)
    assert len(index.unique()) == 15


def test_conditional_positions_leave_the_class_token_alone() -> None:
    model = build(position_embedding="conditional")
    assert model.peg is not None
    tokens = torch.randn(2, 17, 32)
    placed = model.peg[0](tokens)
    assert torch.equal(placed[:, 0], tokens[:, 0])
    grid = tokens[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4)
    expected = grid + model.peg[0].proj(grid)
    torch.testing.assert_close(placed[:, 1:], expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("kind", "at"), sorted(IMPOSSIBLE))
def test_positions_where_they_mean_nothing_are_refused_with_where_they_do(kind: str, at: str) -> None:
    with pytest.raises(ValidationError, match=f"positions_at={at}: .* choose .*shared"):
        build(position_embedding=kind, positions_at=at)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((6, 6), (4, 4)), ((3, 5), (7, 2))])
def test_public_resampling_is_scipys_zoom_as_in_the_public_code(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(old[0] * old[1], 8)
    grid = table.reshape(*old, 8).numpy()
    expected = zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    found = resample(table, old, new, "public").reshape(*new, 8)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_bicubic_resampling_is_timms() -> None:
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, 17, 8)
    expected = resample_abs_pos_embed(table, (6, 6), (4, 4), num_prefix_tokens=1)
    found = resize_positions("pos_embed", table, (4, 4), (6, 6), prefix=1, method="bicubic")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kind", "at"), [*CHOICES, ("none", None)])
def test_weights_fit_the_model_of_another_image_size_and_prefix_tokens_stay(kind: str, at: str | None) -> None:
    small = build(28, position_embedding=kind, positions_at=at)
    large = build(56, position_embedding=kind, positions_at=at)
    moved = {n: resize_positions(n, t, small.grid, large.grid, prefix=1) for n, t in small.state_dict().items()}
    large.load_state_dict(moved)
    if kind == "learned":
        assert torch.equal(moved["pos_embed"][:, 0], small.state_dict()["pos_embed"][:, 0])
    back = {n: resize_positions(n, t, large.grid, small.grid, prefix=1) for n, t in moved.items()}
    small.load_state_dict(back)


def test_fused_attention_gives_what_the_plain_one_gives() -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        model = build(pool="map").to(dtype).eval()
        x: Tensor = torch.randn(2, 3, 28, 28).to(dtype)
        tokens, pooled = model.encode(x), model.features(x)
        assert model.attn_pool is not None
        for attention in (*(block.attn for block in model.blocks), model.attn_pool):
            assert attention.fused_attn
            attention.fused_attn = False
        torch.testing.assert_close(tokens, model.encode(x), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(pooled, model.features(x), rtol=tolerance, atol=tolerance)
