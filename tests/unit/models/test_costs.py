"""The arithmetic of costs gives what torch counts on the model itself."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.places import GOLDEN
from vit_dist.core.registry import MODELS
from vit_dist.models.costs import model_cost, training_flops

SMALL = {"R50x1": 224, "R50+ViT-B/16": 224, "ViT-b/32": 224, "vit-demo": 28, "bit-demo": 28, "hybrid-demo": 28}
ODD = {"R50x1": 225, "bit-demo": 33, "bit-test": 31}
POSITIONS = ("learned", "learned-2d", "relative", "sincos", "rope", "conditional", "none")


def compare(name: str, image_size: int, **changes: Any) -> None:
    from vit_dist.models._macs import count_macs

    cls, defaults = MODELS.lookup(name)
    config: Any = cls.model_validate({**defaults, **changes})
    with torch.device("meta"):
        model = config.build(num_classes=1000, image_size=image_size)
    cost = model_cost(config, num_classes=1000, image_size=image_size)
    assert cost is not None
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.macs == count_macs(config, 1000, image_size)
    trained = model_cost(config, num_classes=1000, image_size=image_size, training=True)
    assert trained is not None
    assert trained.params == cost.params
    if changes.get("patch_dropout"):
        assert trained.macs == count_macs(config, 1000, image_size, training=True) < cost.macs
    else:
        assert trained == cost


@pytest.mark.parametrize(("name", "image_size"), [*SMALL.items(), *ODD.items()])
def test_parameters_and_multiply_adds_are_those_that_torch_counts(name: str, image_size: int) -> None:
    compare(name, image_size)


def test_the_options_of_a_vit_are_counted_too() -> None:
    for positions, pool in itertools.product(POSITIONS, ("cls", "mean", "map")):
        compare("vit-test", 28, position_embedding=positions, pool=pool, representation=True)
    compare("vit-test", 28, position_embedding="conditional", positions_at="layers")
    compare("vit-test", 28, position_embedding="relative", positions_at="shared", mlp_dim=48)
    compare("vit-test", 28, layer_scale=0.1, qk_norm=True)
    for pool in ("cls", "mean", "map"):
        compare("vit-test", 28, registers=3, pool=pool)
        compare("vit-test", 28, mlp="swiglu", pool=pool)
        compare("vit-test", 28, patch_dropout=0.4, registers=2, pool=pool)
    compare("hybrid-test", 28, patch_dropout=0.5)


def test_parameters_of_every_preset_are_those_of_the_golden() -> None:
    import json

    counts = json.loads((GOLDEN / "parameter_counts.json").read_text())
    for name, params in counts.items():
        cls, defaults = MODELS.lookup(name)
        small = name.endswith(("demo", "test"))
        cost = model_cost(
            cls.model_validate(defaults), num_classes=10 if small else 1000, image_size=28 if small else 224
        )
        assert cost is not None
        assert cost.params == params, name


def test_the_rule_of_the_papers_table_6_holds_for_vit_l16() -> None:
    cls, defaults = MODELS.lookup("ViT-L/16")
    cost = model_cost(cls.model_validate({**defaults, "representation": True}), num_classes=18291, image_size=224)
    assert cost is not None
    assert training_flops(cost.macs, 7 * 303_000_000) / 1e18 == pytest.approx(783, rel=0.005)


def test_a_model_of_another_kind_has_no_cost_here() -> None:
    assert model_cost(object(), num_classes=10, image_size=28) is None
