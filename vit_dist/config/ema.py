"""What a recipe may say of a running average of its weights. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vit_dist.config.lengths import LengthOrShare
from vit_dist.core.registry import Config
from vit_dist.core.units import Duration

EMA_TAG = "ema/"
"""Tags of what the average was measured to be begin so, before the metric: ema/val/top1."""


class EmaConfig(Config):
    """A running average of the weights, kept and evaluated beside them; what is trained does not hang on it."""

    decay: Annotated[float, Field(gt=0, lt=1)] | Literal["uniform"] = Field(
        0.9999, description="share of the average that a step keeps; uniform: all steps count alike (Polyak)"
    )
    start: LengthOrShare = Field(
        Duration.parse("0 steps"), description="steps past this count, a place of the run; the first is copied"
    )
