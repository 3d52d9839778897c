"""A restored model is held to the loss that was recorded; other layouts load, which is logged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vit_dist.config.schema import LossConfig
from vit_dist.core.world import World
from vit_dist.train.checkpoint.probe import Probe
from vit_dist.train.checkpoint.restore import layout_changes
from vit_dist.train.losses import make_loss

HERE = {"engine": "deepspeed", "zero_stage": 1, "torch": "2.14.1", "deepspeed": "0.19.8", "world_size": 2}


class Constant:
    """Gives the same logits whatever it sees."""

    layout: dict[str, Any] = HERE

    def __init__(self, scale: float) -> None:
        self.logits = scale * torch.arange(8.0).view(2, 4)

    def predict(self, images: Tensor) -> Tensor:
        return self.logits


def probe(precision: str = "fp32") -> Probe:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    return Probe(images, torch.eye(4)[:2], make_loss(LossConfig()), World(), precision)


def test_the_recorded_loss_must_come_out_again() -> None:
    recorded = probe().measure(Constant(1.0))  # type: ignore[arg-type]
    assert probe().judge(Constant(1.0), recorded, HERE) == ""  # type: ignore[arg-type]
    assert probe().judge(Constant(1.0 + 1e-7), recorded, HERE) == ""  # type: ignore[arg-type]
    wrong = probe().judge(Constant(1.001), recorded, HERE)  # type: ignore[arg-type]
    assert f"it was {recorded:.8g} when saved" in wrong
    nan = float("nan")
    assert probe().judge(Constant(nan), nan, HERE) == ""  # type: ignore[arg-type]
    assert probe().judge(Constant(nan), recorded, HERE) != ""  # type: ignore[arg-type]
    assert probe().judge(Constant(1.0), nan, HERE) != ""  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"engine": "plain"}, {"zero_stage": 3}, {"torch": "2.13"}])
def test_rounding_of_another_engine_is_granted_and_of_another_world_is_not(change: dict[str, Any]) -> None:
    for precision in ("fp32", "bf16"):
        same = probe(precision).tolerance(HERE, HERE)
        assert probe(precision).tolerance({**HERE, **change}, HERE) > same
        assert probe(precision).tolerance({**HERE, "world_size": 64}, HERE) == same


def test_what_another_layout_changes_is_named() -> None:
    there = {**HERE, "deepspeed": "0.18.0", "world_size": 4}
    assert layout_changes(there, HERE) == [
        "deepspeed: '0.19.8' here, '0.18.0' there",
        "world_size: 2 here, 4 there",
    ]


@pytest.mark.parametrize(
    ("engine", "precision", "device", "changes"),
    [
        ("plain", "fp32", "cpu", []),
        ("plain", "fp32", "NVIDIA H100 80GB HBM3", ["tf32: 'none' here, 'convolutions' there"]),
        ("plain", "bf16", "NVIDIA H100 80GB HBM3", ["head: 'fp32' here, 'bf16' there"]),
        ("deepspeed", "fp32", "cpu", []),
        (
            "deepspeed",
            "bf16",
            "cpu",
            ["head: 'fp32' here, 'bf16' there", "reduce_dtype: 'fp32' here, 'bf16' there"],
        ),
    ],
)
def test_what_an_older_layout_does_not_say_is_what_was_so_then(
    engine: str, precision: str, device: str, changes: list[str]
) -> None:
    older = {**HERE, "engine": engine}
    now = {**older, "device": device, "precision": precision, "tf32": "none", "head": "fp32", "reduce_dtype": "fp32"}
    now |= {"deterministic": False, "attention": "auto", "compile": False}
    assert layout_changes(older, now) == changes
    assert layout_changes(now, now) == []
    another = {**now, "deterministic": True, "attention": "math", "reduce_dtype": "bf16", "compile": True}
    assert len(layout_changes(now, another)) == 4
    # The probe is computed by eager blocks.
    assert probe(precision).tolerance(now, {**now, "compile": True}) == probe(precision).tolerance(now, now)
    # What rounded the loss then is granted to it, however close the same kernels would be.
    tolerance = probe(precision).tolerance(older, now)
    assert (tolerance > probe(precision).tolerance(now, now)) == any("reduce" not in change for change in changes)
    if any("tf32" in change for change in changes):
        assert tolerance >= 1e-2
