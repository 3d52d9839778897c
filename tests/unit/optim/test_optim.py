"""Optimizers: which parameters decay, and what a step does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.plugins import build_model, plugin_config
from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import OptimizerConfig


def config(name: str, **changes: Any) -> OptimizerConfig:
    optimizer = plugin_config(OPTIMIZERS, name, **{"lr": 0.1, **changes})
    assert isinstance(optimizer, OptimizerConfig)
    return optimizer


def names_in(groups: list[dict[str, Any]], model: nn.Module) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_matrices_decay_and_biases_norms_positions_and_class_tokens_do_not(optimizer: str) -> None:
    model = build_model("vit-test", depth=1, num_classes=3, head_std=0)
    groups = config(optimizer, weight_decay=0.1).build(model).param_groups
    block = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed, spared = names_in(groups, model)
    assert decayed == ["patch_embed.proj.weight", *(f"blocks.0.{n}.weight" for n in block), "head.weight"]
    assert {"cls_token", "pos_embed", "norm.weight", "blocks.0.norm1.weight", "head.bias"} <= set(spared)
    assert sorted(decayed + spared) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["bit-test", "hybrid-test"])
def test_convolution_kernels_decay_and_group_norms_do_not(name: str) -> None:
    model = build_model(name, num_classes=3, head_std=0)
    decayed, spared = (
        [dict(model.named_parameters())[n] for n in group]
        for group in names_in(config("adamw").build(model).param_groups, model)
    )
    assert sum(p.ndim == 4 for p in decayed) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert not [p for p in spared if p.ndim == 4]
    assert not [p for p in decayed if p.ndim == 1]


def test_the_query_of_attention_pooling_does_not_decay() -> None:
    model = build_model("vit-test", pool="map", num_classes=3, head_std=0)
    assert "attn_pool.latent" in names_in(config("adamw").build(model).param_groups, model)[1]


def test_groups_keep_the_order_of_the_model_and_leave_out_what_is_frozen() -> None:
    model = build_model("vit-test", num_classes=3, head_std=0)
    model.get_parameter("norm.weight").requires_grad_(False)
    order = [name for name, _ in model.named_parameters()]
    for group in names_in(config("adamw").build(model).param_groups, model):
        assert group == sorted(group, key=order.index)
        assert "norm.weight" not in group


@pytest.mark.parametrize(("changes", "rate"), [({"decay": "all"}, 0.1), ({"weight_decay": 0.0}, 0.0)])
def test_an_empty_group_is_left_out(changes: dict[str, Any], rate: float) -> None:
    model = build_model("vit-test", num_classes=3, head_std=0)
    groups = config("adamw", **changes).build(model).param_groups
    assert [group["weight_decay"] for group in groups] == [rate]
    assert len(groups[0]["params"]) == len(list(model.parameters()))


def test_a_lookup_table_does_not_decay() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    assert names_in(config("adamw").build(model).param_groups, model) == [["1.weight"], ["0.weight", "1.bias"]]


def one_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_adamw_decays_by_the_rate_times_the_weight_outside_the_adaptive_step() -> None:
    layer = one_weight(2.0)
    optimizer = config("adamw", lr=0.01, weight_decay=0.3).build(layer)
    layer.weight.grad = torch.tensor([[5.0]])
    optimizer.step()
    # The first adaptive step is lr * sign(gradient), whatever the gradient's size.
    assert layer.weight.item() == pytest.approx(2.0 - 0.01 * 0.3 * 2.0 - 0.01, rel=1e-6)


def test_sgd_carries_momentum() -> None:
    layer = one_weight(1.0)
    optimizer = config("sgd", lr=0.1).build(layer)
    for _ in range(2):
        layer.weight.grad = torch.tensor([[1.0]])
        optimizer.step()
    assert layer.weight.item() == pytest.approx(1.0 - 0.1 - 0.1 * 1.9, rel=1e-6)
    assert not optimizer.param_groups[0]["nesterov"]


def test_defaults_are_the_papers_and_both_optimizers_may_be_sharded() -> None:
    adamw, sgd = config("adamw"), config("sgd")
    assert adamw.model_dump(exclude={"name", "lr"}) == {
        "clip": 1.0,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "decay": "kernels",
    }
    assert sgd.model_dump(exclude={"name", "lr"}) == {
        "clip": 1.0,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "decay": "kernels",
    }
    assert adamw.elementwise
    assert sgd.elementwise
    assert config("adamw", clip=None).clip is None


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"clip": 0.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_numbers_that_cannot_train_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config("adamw", **wrong)


@pytest.mark.parametrize(("name", "settings"), [("adamw", {}), ("sgd", {}), ("sgd", {"momentum": 0.0})])
def test_an_optimizer_keeps_as_many_moments_as_it_says(name: str, settings: dict[str, Any]) -> None:
    model = nn.Linear(6, 5)
    optimizer = config(name, **settings).build(model)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    state = optimizer.state[model.weight]
    kept = [value for value in state.values() if isinstance(value, torch.Tensor) and value.ndim]
    assert [moment.shape for moment in kept] == [model.weight.shape] * config(name, **settings).moments
