"""Keys of large ViTs (LayerScale, QK-norm, registers, SwiGLU, patch dropout, rotary positions), held to timm's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.layers import LayerNorm, SwiGLUPacked
from torch import Tensor, nn
from torch.nn import functional

from tests.plugins import build_model, model_config
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights
from vit_dist.optim._groups import decay_groups


def scattered(model: nn.Module) -> None:
    """Every parameter away from where it begins: factors of 1, zero registers and the like would hide a fault."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))


def timms(**changes: Any) -> nn.Module:
    shape: dict[str, Any] = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
    settings = {"num_classes": 10, "act_layer": "gelu_tanh", "fc_norm": False}
    model: nn.Module = timm.models.VisionTransformer(**{**shape, **settings, **changes})
    return model.eval()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"layer_scale": 0.1}, {"init_values": 0.1}),
        ({"qk_norm": True}, {"qk_norm": True}),
        (
            {"qk_norm": True, "layer_scale": 0.3, "pool": "mean"},
            {"qk_norm": True, "init_values": 1, "class_token": False},
        ),
        ({"registers": 4, "position_embedding": "none"}, {"reg_tokens": 4, "pos_embed": "none"}),
        ({"registers": 3, "pool": "mean"}, {"reg_tokens": 3, "class_token": False, "no_embed_class": True}),
        ({"registers": 3, "pool": "map"}, {"reg_tokens": 3, "class_token": False, "no_embed_class": True}),
        (
            {"mlp": "swiglu", "mlp_dim": 40},
            {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 80.5 / 32},
        ),
    ],
)
def test_logits_are_timms_for_the_same_weights(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    model = build_model("vit-test", **ours).eval()
    scattered(model)
    pooled = {"mean": "avg", "map": "map"}.get(ours.get("pool", "cls"), "token")
    other = timms(global_pool=pooled, **theirs)
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 28, 28)
    torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)


def test_layer_scale_begins_as_asked_and_nothing_new_decays() -> None:
    model = build_model("vit-test", layer_scale=1e-4, qk_norm=True)
    names = {id(p): name for name, p in model.named_parameters()}
    gammas = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert [p.shape for p in gammas] == [(32,)] * 4
    assert all((p == 1e-4).all() for p in gammas)
    decays, stays = decay_groups(model, 0.1, "kernels")
    assert decays["weight_decay"] == 0.1
    new = ("gamma", "q_norm.weight", "k_norm.weight", "q_norm.bias", "k_norm.bias")
    still = [names[id(p)] for p in stays["params"]]
    assert sum(name.endswith(new) for name in still) == 4 + 8
    assert not any(names[id(p)].endswith(new) for p in decays["params"])
    registers = build_model("vit-test", registers=4)
    # With the stem, where rates fall from layer to layer.
    assert registers.weight_layers()["reg_token"] == registers.weight_layers()["cls_token"] == 0
    assert any(p is registers.reg_token for p in decay_groups(registers, 0.1, "kernels")[1]["params"])


def test_queries_and_keys_of_relative_positions_are_normalised_too() -> None:
    model = build_model("vit-test", position_embedding="relative", qk_norm=True).eval()
    attention, x = model.blocks[0].attn, 10 * torch.randn(2, 17, 32)
    table = model.pos_relative[0]
    seen: list[Tensor] = []
    attention.k_norm.register_forward_hook(lambda _m, _given, key: seen.append(key))
    before = attention(x, attn_mask=table)
    assert seen[0].square().mean(-1).sub(1).abs().max() < 1e-3
    # What is normalised does not grow with what comes in: the values alone do.
    with torch.no_grad():
        attention.qkv.weight[:64] *= 7
    torch.testing.assert_close(attention(x, attn_mask=table), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0, -1e-4])
def test_layer_scale_of_nothing_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="layer_scale"):
        model_config("vit-test", layer_scale=float(value))


@pytest.mark.parametrize("positions", ["learned", "learned-2d", "sincos", "relative", "conditional"])
@pytest.mark.parametrize("places", ["stem", "layers"])
def test_registers_have_no_positions_and_change_none_of_the_patches(positions: str, places: str) -> None:
    if (positions, places) in {("relative", "stem"), ("sincos", "layers")}:
        places = "shared"
    settings: dict[str, Any] = {"position_embedding": positions, "positions_at": places}
    plain, model = build_model("vit-test", **settings).eval(), build_model("vit-test", registers=2, **settings).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 28, 28)
    assert model.reg_token.shape == (1, 2, 32)
    assert not torch.equal(*model.reg_token[0])
    tokens, others = model.embed(x), plain.embed(x)
    assert torch.equal(torch.cat([tokens[:, :1], tokens[:, 3:]], 1), others)
    assert torch.equal(tokens[:, 1:3], model.reg_token.expand(2, -1, -1))
    if positions != "conditional":
        # Before any block: two registers of one content are one and the same, wherever they stand.
        with torch.no_grad():
            model.reg_token[:] = 0.7
        encoded = model.encode(x)
        torch.testing.assert_close(encoded[:, 1], encoded[:, 2])
        assert not torch.allclose(encoded[:, 3], encoded[:, 4])


@pytest.mark.parametrize("no_embed_class", [True, False])
def test_timms_positions_of_registers_are_read_into_them(no_embed_class: bool, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = timms(reg_tokens=4, no_embed_class=no_embed_class)
    scattered(theirs)
    save_file(theirs.state_dict(), tmp_path / "dino.safetensors")
    config = model_config("vit-test", registers=4)
    read = read_weights(tmp_path / "dino.safetensors", LoadOptions(config))
    assert read.image_size == 28
    ours = config.build(num_classes=10, image_size=28).eval()
    ours.load_state_dict(read.state)
    x = torch.randn(3, 3, 28, 28)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    # For images of another size positions are resampled, and registers come along.
    larger = read_weights(tmp_path / "dino.safetensors", LoadOptions(config, image_size=42))
    assert larger.state["pos_embed"].shape == (1, 37, 32)
    assert torch.equal(larger.state["reg_token"], read.state["reg_token"])


def test_positions_that_could_be_of_either_grid_are_refused_unless_the_file_says_its_size(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    # 10 rows: a class token and 9 patches, or a class token, 5 registers and 4 patches.
    config = model_config("vit-test", registers=5)
    ours = config.build(num_classes=10, image_size=21)
    save_file(ours.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="its 10 positions could be those of 9 or of 4 patches"):
        read_weights(tmp_path / "w.safetensors", LoadOptions(config))
    save_file(ours.state_dict(), tmp_path / "w.safetensors", {"image_size": "21"})
    assert read_weights(tmp_path / "w.safetensors", LoadOptions(config)).image_size == 21


@pytest.mark.parametrize("ending", ["npz", "folder/"])
@pytest.mark.parametrize(
    "setting",
    [{"layer_scale": 0.1}, {"qk_norm": True}, {"registers": 2}, {"mlp": "swiglu"}, {"position_embedding": "rope"}],
)
def test_forms_that_cannot_say_a_key_refuse_it(setting: dict[str, Any], ending: str, tmp_path: Path) -> None:
    config = model_config("vit-test", **setting)
    state = config.build(num_classes=10, image_size=28).state_dict()
    with pytest.raises(ConfigError, match=r"write \.safetensors"):
        write_weights(Weights(dict(state), config, 10, 28), f"{tmp_path}/w.{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("width", "hidden"), [(1536, 4096), (768, 2048), (32, 88), (64, 176)])
def test_swiglu_is_two_thirds_as_wide_unless_told_otherwise(width: int, hidden: int) -> None:
    # 4096: DINOv2's ViT-g.
    with torch.device("meta"):
        model = model_config("vit-test", width=width, depth=1, mlp="swiglu").build(num_classes=2, image_size=28)
    assert model.get_parameter("blocks.0.mlp.fc1.weight").shape == (2 * hidden, width)
    assert model.get_parameter("blocks.0.mlp.fc2.weight").shape == (width, hidden)


def test_swiglu_is_the_papers_formula_and_begins_as_three_matrices() -> None:
    mlp = build_model("vit-test", width=256, num_heads=4, mlp="swiglu", mlp_dim=512).blocks[0].mlp.double()
    x = torch.randn(5, 256, dtype=torch.float64)
    (w, v), (b, c) = mlp.fc1.weight.chunk(2), mlp.fc1.bias.chunk(2)
    gate = x @ w.T + b
    expected = (gate / (1 + torch.exp(-gate)) * (x @ v.T + c)) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected)
    bound = (6 / (256 + 512)) ** 0.5
    for matrix in (w, v, mlp.fc2.weight):
        assert 0.99 * bound < matrix.abs().max() <= bound
    assert mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.2)


def test_a_gelu_beside_swiglu_is_refused_where_nothing_has_one() -> None:
    with pytest.raises(ValidationError, match="mlp=swiglu has no GELU"):
        model_config("vit-test", mlp="swiglu", gelu="exact")
    model_config("vit-test", mlp="swiglu", gelu="exact", pool="map")


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_patches_that_stay_are_those_of_timm_and_evaluation_sees_all(pool: str) -> None:
    model = build_model("vit-test", patch_dropout=0.3, pool=pool, registers=2)
    other = timms(
        patch_drop_rate=0.3,
        reg_tokens=2,
        class_token=pool == "cls",
        global_pool="token" if pool == "cls" else "avg",
        no_embed_class=pool == "mean",
    )
    state = model.state_dict()
    if pool == "cls":
        table = state["pos_embed"]
        state["pos_embed"] = torch.cat([table[:, :1], torch.zeros(1, 2, 32), table[:, 1:]], dim=1)
    other.load_state_dict(state)
    x = torch.randn(3, 3, 28, 28)
    for mode in (model.train, other.train):
        mode(True)
    torch.manual_seed(5)
    dropped = model(x)
    torch.manual_seed(5)
    torch.testing.assert_close(dropped, other(x), rtol=1e-5, atol=1e-5)
    assert model.encode(x).shape[1] == model.prefix + 11
    torch.manual_seed(6)
    assert not torch.allclose(model(x), dropped)
    model.eval()
    assert model.encode(x).shape[1] == model.prefix + 16


@pytest.mark.parametrize("positions", ["learned", "learned-2d"])
def test_patches_that_stay_keep_their_positions_in_every_layer(positions: str) -> None:
    settings: dict[str, Any] = {"position_embedding": positions, "positions_at": "layers"}
    model = build_model("vit-test", patch_dropout=0.5, **settings).train()
    scattered(model)
    x = torch.randn(2, 3, 28, 28)
    kept: list[Tensor] = []
    model.patch_drop.register_forward_hook(lambda _m, _given, result: kept.append(result[1]))
    encoded = model.encode(x)
    # The same by hand: each example's patches, with their rows of the tables, through the blocks.
    tokens = model.embed(x)
    for b in range(2):
        rows = torch.cat([torch.zeros(1, dtype=torch.long), 1 + kept[0][b]])
        t = tokens[b : b + 1, rows]
        for i, block in enumerate(model.blocks):
            t = block(t + model.positions(i)[rows])
        torch.testing.assert_close(encoded[b : b + 1], t)


def test_recomputed_blocks_see_the_patches_that_were_kept() -> None:
    model = build_model("vit-test", patch_dropout=0.5, dropout=0.1, layer_scale=0.5, qk_norm=True).train()
    gradients = []
    for mode in ("none", "full"):
        model.set_activation_checkpointing(mode)
        model.zero_grad()
        torch.manual_seed(3)
        model(torch.ones(2, 3, 28, 28)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("positions", ["relative", "conditional"])
def test_patch_dropout_is_refused_where_all_patches_must_be_there(positions: str) -> None:
    with pytest.raises(ValidationError, match=f"patch_dropout=0.5: position_embedding={positions} needs all patches"):
        model_config("vit-test", patch_dropout=0.5, position_embedding=positions)


def test_at_least_one_patch_stays() -> None:
    assert model_config("vit-test", patch_dropout=0.99).patches_kept(16) == 1
    assert model_config("vit-test").patches_kept(16) == 16


def rotary(**changes: Any) -> tuple[nn.Module, nn.Module]:
    """Ours, and timm's EVA with DINOv3's rotary positions and the same weights."""
    settings = {"position_embedding": "rope", "registers": 2, "qk_norm": True, "layer_scale": 0.2, "gelu": "exact"}
    ours = build_model("vit-test", 35, num_heads=4, **{**settings, **changes}).eval()
    scattered(ours)
    theirs = timm.models.Eva(
        img_size=35, patch_size=7, embed_dim=32, depth=2, num_heads=4, num_classes=10, global_pool="token",
        num_reg_tokens=2, init_values=0.2, use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3",
        rope_rotate_half=True, rope_temperature=100.0, rope_grid_offset=0.0, use_fc_norm=False, attn_type="rope",
        qk_norm=True, qkv_bias=True, norm_layer=LayerNorm,
    ).eval()  # fmt: skip
    names = {name: name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for name in ours.state_dict()}
    theirs.load_state_dict({names[name]: tensor for name, tensor in ours.state_dict().items()})
    return ours, theirs


def test_rotary_positions_are_those_of_timms_dinov3() -> None:
    ours, theirs = rotary()
    x = torch.randn(3, 3, 35, 35)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).isfinite().all()


def test_rotary_positions_are_the_formula_in_float64() -> None:
    model = build_model("vit-test", 42, position_embedding="rope", registers=1).eval().double()
    attention, x = model.blocks[1].attn, torch.randn(2, 38, 32, dtype=torch.float64)
    q, k, v = attention.qkv(x).reshape(2, 38, 3, 2, 16).permute(2, 0, 3, 1, 4)
    out = []
    for heads in (q, k):
        turned = heads.clone()
        for patch in range(36):
            place = [(2 * (n + 0.5) / 6 - 1) for n in divmod(patch, 6)]
            # Pairs (i, i + 8) as complex numbers: four frequencies by the row, four by the column.
            angles = [2 * math.pi * p / 100 ** (i / 4) for p in place for i in range(4)]
            for i, angle in enumerate(angles):
                turn = complex(math.cos(angle), math.sin(angle))
                pair = torch.complex(heads[:, :, 2 + patch, i], heads[:, :, 2 + patch, i + 8]) * turn
                turned[:, :, 2 + patch, i], turned[:, :, 2 + patch, i + 8] = pair.real, pair.imag
        out.append(turned)
    weights = torch.softmax(out[0] @ out[1].transpose(-2, -1) / 4, dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 38, 32))
    # The table of sines is float32.
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


def test_rotary_positions_follow_the_patches_that_stay_and_fit_any_size() -> None:
    model = build_model("vit-test", position_embedding="rope", patch_dropout=0.5)
    x = torch.randn(2, 3, 28, 28)
    kept: list[Tensor] = []
    model.patch_drop.register_forward_hook(lambda _m, _given, result: kept.append(result[1]))
    tokens = model.embed(x)
    encoded = model.train().encode(x)
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.long), 1 + kept[0]], dim=1)
    for b in range(2):
        hidden = torch.full((17, 17), -torch.inf)
        hidden[:, rows[b]] = 0
        t = tokens[b : b + 1]
        for block in model.blocks:
            # All patches in their places, of which none looks at those that are left out.
            at = block.attn
            q, k, v = at.qkv(block.norm1(t)).reshape(1, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
            q, k = at.q_turn(q, *at.rotations), at.k_turn(k, *at.rotations)
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
            t = t + at.proj(mixed.transpose(1, 2).reshape(1, 17, 32))
            t = t + block.mlp(block.norm2(t))
        torch.testing.assert_close(encoded[b], t[0, rows[b]], rtol=1e-5, atol=1e-5)
    larger = model_config("vit-test", position_embedding="rope").build(num_classes=10, image_size=56)
    larger.load_state_dict(model.state_dict())
    assert not any("rotations" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 36, "num_heads": 6}, "rope needs heads of a width that 4 divides; width=36 over num_heads=6 is 6"),
        ({"positions_at": "stem"}, "positions_at=stem: rope turns queries and keys of every layer alike"),
        ({"positions_at": "layers"}, "choose shared"),
    ],
)
def test_rotary_positions_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        model_config("vit-test", position_embedding="rope", **changes)
