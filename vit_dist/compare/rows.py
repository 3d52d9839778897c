"""Models side by side: what each costs, and which of another family costs as much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from vit_dist.core.errors import ConfigError
from vit_dist.core.tables import csv_text
from vit_dist.models.costs import FLOPS_PER_MAC, PASSES

By = Literal["flops", "params", "throughput"]
Order = Literal["flops", "params", "throughput", "model"]


@dataclass(frozen=True)
class Row:
    """One model at one image size.

    Attributes:
        macs: multiply-adds of one forward pass of one image.
        train_flops: FLOPs of one training step an image: 2 a multiply-add, forward and twice that backward.
        state_bytes: weights, gradients and optimizer on one device, without sharding.
        activation_bytes: an image, all kept for the backward pass.
        checkpointed_bytes: an image, each block's input alone kept.
        exaflops: of training on `examples` images.
        device_hours: of the same at the assumed FLOPs a second.
        forward_images_s: measured on this device; None: not measured.
        train_images_s: the same for a training step.
    """

    model: str
    family: str
    image_size: int
    params: int
    macs: int
    train_flops: int
    state_bytes: int
    activation_bytes: int
    checkpointed_bytes: int
    examples: int
    exaflops: float
    device_hours: float
    forward_images_s: float | None = None
    train_images_s: float | None = None

    def cost(self, by: By) -> float:
        """What two models are matched by; the larger the dearer.

        Raises:
            ConfigError: throughput was not measured.
        """
        if by == "params":
            return float(self.params)
        if by == "flops":
            return float(self.train_flops)
        if not self.train_images_s:
            raise ConfigError("--match throughput needs a measurement; leave --no-measure out")
        return 1 / self.train_images_s


@dataclass(frozen=True)
class Match:
    """For one model the nearest of another family, and its cost over the first's."""

    model: str
    family: str
    nearest: str
    ratio: float


def training_flops_per_image(macs: int) -> int:
    """FLOPs of one training step of one image."""
    return FLOPS_PER_MAC * PASSES * macs


def ordered(rows: Sequence[Row], by: Order) -> list[Row]:
    """The cheapest first, or by name; what was not measured comes last."""
    if by == "model":
        return sorted(rows, key=lambda row: row.model)
    return sorted(rows, key=lambda row: math.inf if by == "throughput" and not row.train_images_s else row.cost(by))


def others_than(reference: str, families: Sequence[str]) -> list[str]:
    """The families to match with one.

    Raises:
        ConfigError: no model of that family, or of no other.
    """
    others = sorted({*families} - {reference})
    if reference not in families or not others:
        present = ", ".join(sorted({*families}))
        raise ConfigError(f"--match needs models of family {reference!r} and of another; these are of {present}")
    return others


def match(rows: Sequence[Row], by: By, reference: str = "vit") -> list[Match]:
    """For each model of the reference family the one of each other family whose cost is nearest, by ratio.

    Raises:
        ConfigError: no model of that family, or of no other; none of them was measured.
    """
    if by == "throughput":
        rows = [row for row in rows if row.train_images_s] or rows
    others = others_than(reference, [row.family for row in rows])
    references = [row for row in rows if row.family == reference]
    matches = []
    for row in references:
        for family in others:
            candidates = [r for r in rows if r.family == family]
            nearest = min(candidates, key=lambda r: abs(math.log(r.cost(by) / row.cost(by))))
            matches.append(Match(row.model, family, nearest.model, nearest.cost(by) / row.cost(by)))
    return matches


def to_csv(rows: Sequence[Row]) -> str:
    """Every row with every number, unrounded; empty: not measured."""
    names = [field.name for field in fields(Row)]
    return csv_text([names, *([getattr(row, name) for name in names] for row in rows)])
