"""Rates that fall from layer to layer: which weights are of which layer, and what each learns at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.plugins import build_model, plugin_config
from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import OPTIMIZERS
from vit_dist.engines._protocol import set_lr
from vit_dist.models._base import ImageModel, zero_head
from vit_dist.optim import OptimizerConfig


def optimizer(model: nn.Module, name: str = "adamw", **settings: Any) -> torch.optim.Optimizer:
    config = plugin_config(OPTIMIZERS, name, **{"lr": 0.1, **settings})
    assert isinstance(config, OptimizerConfig)
    return config.over_layers(model)


def rates(model: nn.Module, built: torch.optim.Optimizer, lr: float = 1.0) -> dict[str, float]:
    set_lr(built, lr)
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {names[id(weight)]: group["lr"] for group in built.param_groups for weight in group["params"]}


def beit_layer(name: str, depth: int) -> int:
    """The layer of a weight of a ViT by what BEiT's code says (microsoft/unilm, beit/optim_factory.py)."""
    if name in {"cls_token", "mask_token", "pos_embed"} or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


def test_a_vits_layers_learn_at_the_rates_of_beit_and_mae() -> None:
    model = build_model("vit-test", depth=3)
    found = rates(model, optimizer(model, layer_decay=0.5), lr=0.8)
    expected = {name: 0.8 * 0.5 ** (4 - beit_layer(name, 3)) for name, _ in model.named_parameters()}
    assert found == pytest.approx(expected)
    assert (found["pos_embed"], found["blocks.2.mlp.fc1.weight"], found["head.bias"]) == pytest.approx((0.05, 0.4, 0.8))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_without_it_all_layers_learn_at_one_rate_in_the_groups_of_before(name: str) -> None:
    model = build_model("vit-test")
    built = optimizer(model, name)
    assert len(built.param_groups) == (2 if name == "adamw" else 1)
    assert set(rates(model, built, lr=0.3).values()) == {0.3}


def test_groups_are_divided_without_losing_a_weight_or_its_decay() -> None:
    model = build_model("vit-test", depth=2)
    whole, divided = optimizer(model), optimizer(model, layer_decay=0.75)

    def decays(built: torch.optim.Optimizer) -> dict[int, float]:
        return {id(weight): group["weight_decay"] for group in built.param_groups for weight in group["params"]}

    assert decays(divided) == decays(whole)
    assert sum(len(group["params"]) for group in divided.param_groups) == len(list(model.parameters()))
    assert len(divided.param_groups) == 2 * 4


LAYERS = {
    "bit-test": {
        "stem.conv.weight": 0,
        "stages.0.blocks.0.conv1.weight": 1,
        "stages.1.blocks.0.downsample.conv.weight": 2,
        "norm.weight": 3,
        "head.weight": 3,
    },
    "hybrid-test": {
        "patch_embed.backbone.stem.conv.weight": 0,
        "patch_embed.proj.weight": 0,
        "blocks.0.norm1.weight": 1,
        "norm.bias": 2,
    },
    "timm:mixer_s32_224": {
        "net.stem.proj.weight": 0,
        "net.blocks.0.norm1.weight": 1,
        "net.blocks.7.norm1.weight": 8,
        "net.norm.weight": 8,
        "head.bias": 9,
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_every_family(name: str) -> None:
    model = build_model(name, image_size=224 if "timm" in name else 28)
    layers = model.weight_layers()
    assert {weight: layers[weight] for weight in LAYERS[name]} == LAYERS[name]
    assert sorted(layers) == sorted(weight for weight, _ in model.named_parameters())
    assert set(layers.values()) == set(range(max(layers.values()) + 1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"position_embedding": "learned", "positions_at": "stem"}, {"pos_embed": 0}),
        ({"position_embedding": "learned", "positions_at": "layers"}, {"pos_embed": 4}),
        ({"position_embedding": "relative", "positions_at": "shared"}, {"pos_relative": 4}),
        ({"position_embedding": "conditional", "positions_at": "layers"}, {"peg.1.proj.weight": 2}),
        ({"pool": "map"}, {"attn_pool.latent": 4}),
        ({"registers": 2}, {"reg_token": 0, "cls_token": 0}),
    ],
)
def test_positions_and_tokens_belong_to_where_they_are_used(settings: dict[str, Any], expected: dict[str, int]) -> None:
    layers = build_model("vit-test", depth=3, **settings).weight_layers()
    assert {weight: layers[weight] for weight in expected} == expected


class Blockless(ImageModel):
    """A stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), zero_head(4, 3, 0.0)


class Staged(ImageModel):
    """Blocks with a layer between them, and the head made first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem = zero_head(4, 3, 0.0), nn.Linear(4, 4)
        self.one = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(2)))
        self.down = nn.Linear(4, 4)
        self.two = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
        self.norm = nn.LayerNorm(4)


def test_a_plug_ins_layers_are_its_blocks_and_what_stands_between_goes_with_the_next() -> None:
    layers = Staged().weight_layers()
    assert layers is not None
    expected = {"stem": 0, "one.0.0": 1, "one.1.0": 2, "down": 3, "two.0.0": 3, "norm": 4, "head": 4}
    assert {name.removesuffix(".weight"): layer for name, layer in layers.items() if "bias" not in name} == expected


@pytest.mark.parametrize("make", [Blockless, lambda: nn.Linear(3, 3)])
def test_layers_that_cannot_be_told_are_refused_in_words(make: Any) -> None:
    model = make()
    with pytest.raises(ConfigError, match=rf"optim\.layer_decay=0\.9: the layers .*{type(model).__name__}.*leave"):
        optimizer(model, layer_decay=0.9)
    optimizer(model)
