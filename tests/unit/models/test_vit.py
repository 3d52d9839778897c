"""The Vision Transformer and the hybrid, held to the paper and to timm's own."""

from __future__ import annotations

import math
from functools import partial

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.plugins import build_model, model_config
from vit_dist.core.registry import MODELS
from vit_dist.models._positions import sincos_positions
from vit_dist.models.hybrid import HybridConfig


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def patches_of(image: Tensor, size: int) -> Tensor:
    """[3, H, W] -> [L, 3 * size * size], row by row."""
    return image.unfold(1, size, size).unfold(2, size, size).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)


def test_a_256_pixel_image_in_patches_of_32_is_65_tokens_of_1024() -> None:
    model = build_model("ViT-L/32", image_size=256, depth=1)
    image = torch.randn(1, 3, 256, 256)
    patches = patches_of(image[0], 32)
    assert patches.shape == (64, 3072)
    kernel, bias = model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias
    assert kernel.shape == (1024, 3072)

    tokens = model.embed(image)
    assert tokens.shape == (1, 65, 1024)
    expected = patches @ kernel.T + bias + model.pos_embed[0, 1:]
    torch.testing.assert_close(tokens[0, 1:], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens[0, 0], model.cls_token[0, 0] + model.pos_embed[0, 0])
    assert model.encode(image).shape == (1, 65, 1024)
    assert model.features(image).shape == (1, 1024)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patches_by_one_product_are_those_of_the_convolution(memory_format: torch.memory_format) -> None:
    patches = build_model("vit-test").patch_embed
    images = torch.randn(2, 3, 28, 28).contiguous(memory_format=memory_format)
    found = []
    for embed in (patches, patches.product):
        patches.zero_grad()
        embedded = embed(images)
        embedded.square().sum().backward()
        found.append((embedded, patches.proj.weight.grad.clone(), patches.proj.bias.grad.clone()))
    for convolved, multiplied in zip(*found, strict=True):
        torch.testing.assert_close(multiplied, convolved, rtol=1e-4, atol=1e-4)


def test_under_autocast_blocks_add_to_tokens_of_its_dtype() -> None:
    model = build_model("vit-test")
    met = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, result: met.append((given[0].dtype, result.dtype)))
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        met.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model(torch.randn(2, 3, 28, 28))
        assert met == [(dtype, dtype)] * 2
        assert logits.dtype == torch.float32


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_logits_are_timms_for_the_same_weights(pool: str, gelu: str) -> None:
    ours = build_model("vit-test", pool=pool, gelu=gelu).eval()
    theirs = timm.models.VisionTransformer(
        img_size=28,
        patch_size=7,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=10,
        global_pool={"cls": "token", "mean": "avg", "map": "map"}[pool],
        class_token=pool == "cls",
        fc_norm=False,
        act_layer="gelu_tanh" if gelu == "tanh" else "gelu",
        weight_init="skip",
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 3, 28, 28)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ViT-Ti/16", "vit_tiny_patch16_224"),
        ("ViT-S/16", "vit_small_patch16_224"),
        ("ViT-B/32", "vit_base_patch32_224"),
        ("ViT-L/16", "vit_large_patch16_224"),
        ("ViT-H/14", "vit_huge_patch14_224"),
        ("ViT-g/14", "vit_giant_patch14_224"),
        ("ViT-G/14", "vit_gigantic_patch14_224"),
        ("R50+ViT-B/16", "vit_base_r50_s16_224"),
        ("R50+ViT-L/32", "vit_large_r50_s32_224"),
    ],
)
def test_weights_have_the_names_and_shapes_of_timms_model(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        expected = shapes(timm.create_model(theirs, num_classes=10))
        assert shapes(model_config(ours).build(num_classes=10, image_size=224)) == expected


def test_a_hybrids_logits_are_timms_for_the_same_weights() -> None:
    # timm has no name for this one, but for every part: three stages, then one transformer block.
    ours = build_model("hybrid", 64, stages=(1, 1, 1), width=32, depth=1, num_heads=2, gelu="exact").eval()
    from timm.models.vision_transformer_hybrid import _resnetv2

    theirs = timm.models.VisionTransformer(
        img_size=64,
        patch_size=1,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=10,
        embed_layer=partial(timm.layers.HybridEmbed, backbone=_resnetv2((1, 1, 1))),
        weight_init="skip",
    ).eval()
    for name, parameter in ours.named_parameters():
        if name.endswith("norm3.weight"):
            nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert ours.patch_embed(x).shape == (2, 16, 32)
    assert torch.equal(ours(x), theirs(x))


def test_a_new_hybrids_residual_blocks_are_their_shortcuts() -> None:
    block = build_model("hybrid-test", stages=(2,)).patch_embed.backbone.stages[0].blocks[1]
    x = torch.rand(2, 32, 8, 8)
    assert torch.equal(block(x), x)


def test_q_k_and_v_are_initialised_as_three_matrices() -> None:
    block = build_model("vit-test", width=256, num_heads=4).blocks[0]
    bound = math.sqrt(6 / (256 + 256))
    for matrix in block.attn.qkv.weight.chunk(3):
        assert 0.99 * bound < matrix.abs().max() <= bound
    assert not block.attn.qkv.bias.any()
    pool = build_model("vit-test", width=256, num_heads=4, pool="map").attn_pool
    assert pool is not None
    for matrix in (pool.q.weight, *pool.kv.weight.chunk(2), pool.proj.weight):
        assert 0.99 * bound < matrix.abs().max() <= bound
    fused = math.sqrt(6 / (256 + 1024))
    assert 0.99 * fused < block.mlp.fc1.weight.abs().max() <= fused


def test_the_other_initial_weights_are_those_of_the_public_code() -> None:
    model = build_model("vit-test", 56, width=256, num_heads=4, representation=True)
    assert isinstance(model.pos_embed, Tensor)
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[1].mlp.fc2.bias.std().item() == pytest.approx(1e-6, rel=0.2)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((3 * 7 * 7) ** -0.5, rel=0.05)
    assert not model.patch_embed.proj.bias.any()
    assert model.get_parameter("pre_logits.fc.weight").std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_dropout_is_where_the_paper_puts_it() -> None:
    model = build_model("vit-test", dropout=0.25, stochastic_depth=0.4)
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert rates.pop("pos_drop") == 0.25
    for i in range(2):
        assert rates.pop(f"blocks.{i}.attn.attn_drop") == 0.0
        assert [rates.pop(f"blocks.{i}.{n}") for n in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")] == [0.25] * 3
    assert rates == {}
    skipping = {name: m.drop_prob for name, m in model.named_modules() if hasattr(m, "drop_prob")}
    assert skipping == {"blocks.1.drop_path1": 0.4, "blocks.1.drop_path2": 0.4}


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
@pytest.mark.parametrize("kind", ["learned", "sincos", "none"])
def test_the_order_of_patches_matters_only_where_there_are_positions(kind: str, pool: str) -> None:
    model = build_model("vit-test", position_embedding=kind, pool=pool).eval()
    x = torch.randn(2, 3, 28, 28)
    alike = torch.allclose(model(x), model(x.roll(7, dims=3)), atol=1e-4)
    assert alike == (kind == "none")


def test_fixed_positions_are_two_dimensional_and_neither_trained_nor_saved() -> None:
    table = sincos_positions(2, 3, 16, 1)
    assert table.shape == (1, 7, 16)
    assert not table[0, 0].any()
    frequencies = [1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]
    row, column = 1, 2
    expected = [wave(axis * f) for axis in (column, row) for wave in (math.sin, math.cos) for f in frequencies]
    torch.testing.assert_close(table[0, 1 + row * 3 + column], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    model = build_model("vit-test", position_embedding="sincos")
    assert "pos_embed" not in model.state_dict()
    assert "pos_embed" not in dict(model.named_parameters())


def test_mean_pooling_averages_the_patches_and_has_no_class_token() -> None:
    model = build_model("vit-test", pool="mean").eval()
    x = torch.randn(2, 3, 28, 28)
    tokens = model.encode(x)
    assert tokens.shape == (2, 16, 32)
    assert "cls_token" not in model.state_dict()
    assert torch.equal(model.features(x), model.norm(tokens).mean(1))


def test_the_representation_layer_is_a_dense_layer_and_tanh_before_the_head() -> None:
    plain, model = build_model("vit-test").eval(), build_model("vit-test", representation=True).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 28, 28)
    weight, bias = model.get_parameter("pre_logits.fc.weight"), model.get_parameter("pre_logits.fc.bias")
    torch.testing.assert_close(model.features(x), torch.tanh(plain.features(x) @ weight.T + bias))


@pytest.mark.parametrize("width", [11, 56, 1280])
def test_the_mlp_is_exactly_as_wide_as_asked(width: int) -> None:
    # 11 * (15 / 11) and 56 * (61 / 56) fall short of 15 and 61 in floating point.
    for hidden in (1, 15, 61, 3 * width + 1, 5120):
        with torch.device("meta"):
            model = model_config("vit-test", width=width, num_heads=1, depth=1, mlp_dim=hidden).build(
                num_classes=2, image_size=28
            )
        assert model.get_parameter("blocks.0.mlp.fc1.weight").shape == (hidden, width)


def test_halving_the_width_of_a_preset_halves_its_mlp() -> None:
    assert (model_config("ViT-B/32").hidden, model_config("ViT-b/32").hidden) == (3072, 1536)


def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do() -> None:
    with pytest.raises(ValidationError, match=r"width=32 is not divisible by num_heads=3.*: 1, 2, 4, 8, 16, 32"):
        model_config("vit-test", num_heads=3)


def test_fixed_positions_need_a_width_that_four_divides() -> None:
    with pytest.raises(ValidationError, match="sincos needs a width"):
        model_config("vit-test", width=30, num_heads=2, position_embedding="sincos")


def test_a_bare_family_name_asks_for_its_shape() -> None:
    cls, defaults = MODELS.lookup("vit")
    with pytest.raises(ValidationError) as error:
        cls.model_validate(defaults)
    assert {e["loc"][0] for e in error.value.errors()} == {"patch_size", "width", "depth", "num_heads"}


@pytest.mark.parametrize(
    ("name", "patch", "grid"),
    [("R50+ViT-B/32", 1, 7), ("R50+ViT-B/16", 1, 14), ("R50+ViT-B/16", 2, 7), ("hybrid-demo", 1, 7)],
)
def test_a_hybrids_stride_gives_its_grid_of_patches(name: str, patch: int, grid: int) -> None:
    shape = model_config(name, patch_size=patch)
    assert isinstance(shape, HybridConfig)
    size = 28 if name == "hybrid-demo" else 224
    with torch.device("meta"):
        model = shape.build(num_classes=2, image_size=size)
    assert model.patch_embed.grid_size == (grid, grid)
    assert size // shape.stride == grid
