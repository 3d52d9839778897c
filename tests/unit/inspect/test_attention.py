"""Attention is seen as it is computed, in models of ours and of timm's, and changes nothing by being looked at."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_dist.core.errors import ConfigError
from vit_dist.inspect.attention import attention_weights, watched_attention
from vit_dist.inspect.maps import attention_maps, distances_between, mean_distance, rolled_out, uniform_distance
from vit_dist.inspect.tokens import Tokens, tokens_of
from vit_dist.models.vit import ViTConfig

GRID = (3, 5)
PLAIN = Tokens(GRID, 0, False, "mean", (4.0, 2.0))
WITH_REGISTERS = Tokens(GRID, 3, True, "cls", (4.0, 2.0))


def vit(seed: int = 0, **settings: object) -> nn.Module:
    torch.manual_seed(seed)
    shape = {"patch_size": 7, "width": 32, "depth": 3, "num_heads": 2}
    return ViTConfig(name="vit", **{**shape, **settings}).build(num_classes=3, image_size=28).eval()


def images(count: int = 3, size: int = 28) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(2))},
        {"attn_mask": torch.ones(6, 6, dtype=torch.bool).triu()},
        {"enable_gqa": True},
    ],
    ids=["plain", "scale", "causal", "bias", "mask", "grouped"],
)
def test_the_weights_are_what_the_kernel_gives_values_that_name_their_keys(more: dict[str, object]) -> None:
    draw = torch.Generator().manual_seed(0)
    heads = 2 if "enable_gqa" in more else 4
    q, k = torch.randn(2, 4, 6, 8, generator=draw), torch.randn(2, heads, 6, 8, generator=draw)
    by_key = functional.scaled_dot_product_attention(q, k, torch.eye(6).expand(2, heads, 6, 6), **more)
    torch.testing.assert_close(attention_weights(q, k, None, **more), by_key)


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        (lambda: vit(), 3),
        (lambda: vit(position_embedding="relative"), 3),
        (lambda: vit(pool="map"), 4),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).eval(), 2),
        (lambda: timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2, num_classes=0).eval(), 2),
    ],
    ids=["ours", "relative", "map", "timm", "rotary"],
)
def test_every_layer_is_seen_and_the_model_gives_the_same_bits(model: object, calls: int) -> None:
    net, seen = model(), []  # type: ignore[operator]
    some = images(size=32 if calls == 2 and "eva" not in type(net).__module__ else 28)
    with torch.no_grad():
        before = net(some)
        with watched_attention(seen.append):
            watched = net(some)
    assert torch.equal(before, watched)
    assert len(seen) == calls
    for weights in seen:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_what_is_seen_is_the_attention_that_the_blocks_act_by() -> None:
    """Rotations, biases and norms included: the weights times the values are what leaves the attention."""
    net, seen = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=1, num_classes=0).eval(), []
    acted: list[tuple[Tensor, Tensor]] = []
    real = functional.scaled_dot_product_attention

    class Keep(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if func is real:
                acted.append((args[2], out))
            return out

    with torch.no_grad(), Keep(), watched_attention(seen.append):
        net(images())
    for weights, (values, out) in zip(seen, acted, strict=True):
        torch.testing.assert_close(weights @ values, out)


@pytest.mark.parametrize("tokens", [PLAIN, WITH_REGISTERS], ids=["patches", "class and registers"])
def test_uniform_attention_has_the_mean_distance_of_the_grid(tokens: Tokens) -> None:
    rows, columns = GRID
    # Each offset, times how many pairs of patches have it.
    total = sum(
        (rows - abs(y)) * (columns - abs(x)) * math.hypot(4.0 * y, 2.0 * x)
        for y in range(1 - rows, rows)
        for x in range(1 - columns, columns)
    )
    expected = total / (rows * columns) ** 2
    weights = torch.full((2, 3, tokens.count, tokens.count), 1 / tokens.count)
    distance, on_patches = mean_distance(weights, tokens)
    torch.testing.assert_close(distance, torch.full((2, 3), expected))
    torch.testing.assert_close(on_patches, torch.full((2, 3), 15 / tokens.count))
    assert uniform_distance(tokens) == pytest.approx(expected, rel=1e-6)


def test_attention_to_one_neighbour_has_its_distance_and_to_itself_none() -> None:
    right = torch.eye(15).roll(1, dims=1)[None, None]
    right[..., 4::5, :] = torch.eye(15)[4::5]
    distance, _ = mean_distance(right, PLAIN)
    # Four of five patches of a row look 2 pixels to the right, the last at itself.
    assert distance.item() == pytest.approx(4 / 5 * 2)
    assert mean_distance(torch.eye(15)[None, None], PLAIN)[0].item() == 0
    assert distances_between(PLAIN)[0, 14].item() == pytest.approx(math.hypot(8, 8))


def test_rollout_of_identity_is_identity_and_of_uniform_attention_what_is_left_by_halves() -> None:
    eye = torch.eye(6)
    assert torch.equal(rolled_out([eye[None, None]] * 4)[0], eye)
    uniform = torch.full((1, 2, 6, 6), 1 / 6)
    expected = (1 - 0.5**3) / 6 + 0.5**3 * eye
    torch.testing.assert_close(rolled_out([uniform] * 3)[0], expected)


def test_rollout_is_the_product_of_the_layers_last_first() -> None:
    layers = [torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(i)).softmax(-1) for i in range(3)]
    expected = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    for weights in layers:
        mixed = weights.double().mean(1) + torch.eye(5, dtype=torch.float64)
        expected = (mixed / mixed.sum(-1, keepdim=True)) @ expected
    torch.testing.assert_close(rolled_out(layers).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_a_model_without_preferences_spreads_evenly_whatever_its_head_reads(pool: str) -> None:
    net = vit(pool=pool)
    for name, weight in net.named_parameters():
        if "qkv" in name or name in ("attn_pool.q.weight", "attn_pool.q.bias"):
            nn.init.zeros_(weight)
    tokens = tokens_of(net, 28)
    seen = attention_maps(lambda some: net(some.float()), images(), tokens)
    torch.testing.assert_close(seen.distance, torch.full((3, 2), uniform_distance(tokens)))
    if pool == "cls":
        # What was not its own after three layers, over 17 tokens.
        torch.testing.assert_close(seen.rollout, torch.full((3, 16), (1 - 0.5**3) / 17))
        torch.testing.assert_close(seen.layers, torch.full((3, 3, 16), 1 / 17))
    else:
        torch.testing.assert_close(seen.rollout, torch.full((3, 16), 1 / 16))


def test_the_pooling_head_says_what_of_the_rollout_counts() -> None:
    net, kept = vit(pool="map"), []
    # Sharper than at the start, or the head would pool all alike.
    net.attn_pool.q.weight.data *= 40  # type: ignore[union-attr, operator]
    with torch.no_grad(), watched_attention(kept.append):
        net(images())
    seen = attention_maps(net, images(), tokens_of(net, 28))
    expected = (kept[-1].mean(1) @ rolled_out(kept[:-1]))[:, 0]
    torch.testing.assert_close(seen.rollout, expected)
    assert (seen.rollout - rolled_out(kept[:-1]).mean(1)).abs().max() > 1e-4


def test_in_batches_the_same_comes_out_and_only_the_first_have_maps() -> None:
    net = vit(seed=3)
    tokens, some = tokens_of(net, 28), images(7)
    whole = attention_maps(net, some, tokens, batch=7)
    parts = attention_maps(net, some, tokens, batch=3, shown=4)
    torch.testing.assert_close(parts.distance, whole.distance)
    torch.testing.assert_close(parts.spread, whole.spread)
    assert parts.num_images == 7
    torch.testing.assert_close(parts.rollout, whole.rollout[:4])
    torch.testing.assert_close(parts.layers, whole.layers[:4])


def test_attention_in_windows_a_kernel_that_is_not_torchs_and_no_patches_are_refused_by_name() -> None:
    small = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "img_size": 56, "num_classes": 0}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **small).eval()
    with pytest.raises(ConfigError, match=r"no attention was seen: .* Swin's windows"):
        attention_maps(swin, images(size=56), tokens_of(swin, 56))
    for part in swin.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = True
    with pytest.raises(ConfigError, match=r"attention in windows .* as Swin's"):
        attention_maps(swin, images(size=56), tokens_of(swin, 56))
    net = vit()
    for block in net.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False
    with pytest.raises(ConfigError, match=r"no attention was seen.*TIMM_FUSED_ATTN"):
        attention_maps(net, images(), tokens_of(net, 28))
    with pytest.raises(ConfigError, match=r"^a-net has no patches on a grid.*`field`"):
        tokens_of(nn.Linear(2, 2), 28, "a-net")


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({"registers": 4}, 5),
        ({"registers": 4, "pool": "mean"}, 4),
        ({"registers": 4, "pool": "map"}, 4),
        ({"position_embedding": "rope", "qk_norm": True, "registers": 2}, 3),
        ({"position_embedding": "relative", "qk_norm": True, "layer_scale": 0.1, "mlp": "swiglu"}, 1),
    ],
    ids=["registers", "registers, mean", "registers, map", "rope", "relative"],
)
def test_registers_rotations_and_norms_are_looked_at_as_they_are(settings: dict[str, object], prefix: int) -> None:
    net, acted = vit(**settings), list[Tensor]()
    tokens = tokens_of(net, 28)
    assert (tokens.prefix, tokens.count) == (prefix, prefix + 16)

    class Attended(torch.overrides.TorchFunctionMode):
        """The same from the kernel: which keys' values come out, where each value is its key's own unit vector."""

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is functional.scaled_dot_product_attention:
                q, k, _, *more = args
                eye = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
                acted.append(func(q, k, eye, *more, **(kwargs or {})))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Attended():
        net(images())
    seen = attention_maps(net, images(), tokens)
    mean = torch.stack([mean_distance(weights, tokens)[0].mean(0) for weights in acted[:3]])
    torch.testing.assert_close(seen.distance, mean, rtol=1e-4, atol=1e-4)
    rollout = rolled_out(acted[:3])
    if tokens.pool == "map":
        pooled = functional.pad(acted[3].mean((1, 2)), (tokens.count - acted[3].shape[-1], 0))
        expected = (pooled[:, None] @ rollout)[:, 0]
    else:
        expected = rollout[:, 0] if tokens.pool == "cls" else rollout[:, prefix:].mean(1)
    torch.testing.assert_close(seen.rollout, expected[:, prefix:], rtol=1e-4, atol=1e-5)
    assert seen.layers.shape == (3, 3, 16)
