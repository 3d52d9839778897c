"""Learning-rate schedules: warm-up times a decay, as in the paper's public code.

With `progress` = (step - warmup) / (total - warmup), held within [0, 1], the rate is decay(progress) times
min(1, (step + 1) / warmup). The public code (google-research/vision_transformer, utils.py) has step / warmup, whose
first step moves nothing; one step earlier, every step counts and step `warmup - 1` is the first at the full rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from vit_dist.core.registry import SCHEDULES
from vit_dist.optim import NonNegative, OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe


def progress(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Fraction of the decay that is over at `step`: 0 until warm-up ends, 1 from the end of the run on."""
    if step <= warmup_steps:
        return 0.0
    return min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))


def rise(step: int, *, warmup_steps: int) -> float:
    """Factor of the warm-up: 1 / warmup_steps at step 0, 1 once it is over."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


class DecayingConfig(ScheduleConfig):
    """Base of the schedules that come down to `end_lr`."""

    end_lr: NonNegative = Field(0.0, description="rate at the end of the run")

    def check(self, recipe: Recipe) -> None:
        """Refuse to decay upwards.

        Raises:
            ValueError: `end_lr` is above the optimizer's rate.
        """
        if isinstance(recipe.optim, OptimizerConfig) and self.end_lr > recipe.optim.lr:
            raise ValueError(
                f"schedule.end_lr={self.end_lr:g} is above optim.lr={recipe.optim.lr:g}: the rate would rise"
            )


@SCHEDULES.register("linear")
class LinearConfig(DecayingConfig):
    """Linear decay, which the paper pretrains with on JFT-300M and ImageNet-21k; 1e-5 is its public code's end."""

    end_lr: NonNegative = Field(1e-5, description="rate at the end of the run")

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:
        """See `ScheduleConfig.lr_at`."""
        left = 1 - progress(step, total_steps=total_steps, warmup_steps=warmup_steps)
        return (self.end_lr + (base_lr - self.end_lr) * left) * rise(step, warmup_steps=warmup_steps)


@SCHEDULES.register("cosine")
class CosineConfig(DecayingConfig):
    """Half a cosine, which the paper pretrains with on ImageNet and fine-tunes with everywhere."""

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:
        """See `ScheduleConfig.lr_at`."""
        over = progress(step, total_steps=total_steps, warmup_steps=warmup_steps)
        left = (1 + math.cos(math.pi * over)) / 2
        return (self.end_lr + (base_lr - self.end_lr) * left) * rise(step, warmup_steps=warmup_steps)


@SCHEDULES.register("constant")
class ConstantConfig(ScheduleConfig):
    """No decay after the warm-up."""

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:  # noqa: ARG002
        """See `ScheduleConfig.lr_at`."""
        return base_lr * rise(step, warmup_steps=warmup_steps)
