"""Keys of large ViTs (LayerScale, QK-norm, registers, SwiGLU, patch dropout, rotary positions), held to timm's forms."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.plugins import build_model, model_config
from vit_dist.optim._groups import decay_groups


def scattered(model: nn.Module) -> None:
    """Every parameter away from where it begins: factors of 1, zero registers and the like would hide a fault."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))


def timms(**changes: Any) -> nn.Module:
    shape: dict[str, Any] = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
    settings = {"num_classes": 10, "act_layer": "gelu_tanh", "fc_norm": False, "weight_init": "skip"}
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
