"""Learning-rate schedules: warm-up times a decay, as in the paper's public code.

With `progress` = (step - warmup) / (total - warmup), held within [0, 1], the rate is decay(progress) times
min(1, (step + 1) / warmup). The public code (google-research/vision_transformer, utils.py) has step / warmup, whose
first step moves nothing; one step earlier, every step counts and step `warmup - 1` is the first at the full rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from vit_dist.config.lengths import LengthOrShare, whole_steps
from vit_dist.core.marks import WHEN_SET
from vit_dist.core.registry import SCHEDULES
from vit_dist.core.units import Duration, Length
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


NO_COOLDOWN = Duration.parse("0 steps")


class CoolingConfig(ScheduleConfig):
    """Base of the schedules that come down to 0 in a last stretch of their own."""

    cooldown: Annotated[LengthOrShare, WHEN_SET] = Field(
        NO_COOLDOWN, description="the last stretch of the run, in which the rate comes down to 0"
    )

    def misfit(self, total_steps: int) -> str:
        """See `ScheduleConfig.misfit`."""
        warmup, cooldown = whole_steps(self.warmup), whole_steps(self.cooldown)
        if warmup + cooldown <= total_steps:
            return ""
        return (
            f"schedule.warmup of {warmup:,} steps and schedule.cooldown of {cooldown:,} are longer than the whole run "
            f"of {total_steps:,} steps; give a cooldown of {total_steps - warmup:,} steps or fewer, such as 20%"
        )

    def _cooled(self, step: int, total_steps: int) -> float:
        """The part of the cooldown that is over at `step`: 0 until it begins, 1 at the end of the run."""
        cooldown = whole_steps(self.cooldown)
        return min(1.0, max(0, step - (total_steps - cooldown)) / cooldown) if cooldown else 0.0


@SCHEDULES.register("constant")
class ConstantConfig(CoolingConfig):
    """No decay after the warm-up, or none until a cooldown (warm-up, stable, decay).

    The forms of the cooldown are those of arXiv 2405.18392, which finds 1-sqrt better than linear, and a fifth of a
    run about as good as a cosine.
    """

    form: Annotated[Literal["linear", "1-sqrt"], WHEN_SET] = Field(
        "linear", description="of the cooldown: falls evenly, or by the root of the part of it that is over"
    )

    @model_validator(mode="after")
    def _has_a_cooldown(self) -> ConstantConfig:
        if self.form != "linear" and self.cooldown.value == 0:
            raise ValueError(f"form: {self.form} is of a cooldown, and there is none; give cooldown too, such as 20%")
        return self

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:
        """See `ScheduleConfig.lr_at`."""
        over = self._cooled(step, total_steps)
        left = 1 - (math.sqrt(over) if self.form == "1-sqrt" else over)
        return base_lr * left * rise(step, warmup_steps=warmup_steps)


@SCHEDULES.register("rsqrt")
class RsqrtConfig(CoolingConfig):
    """Falls with the root of the steps, so that a run may be cooled down from anywhere ("Scaling Vision Transformers").

    The form is big_vision's (arXiv 2106.04560; utils.py): after the warm-up the rate is
    lr / sqrt(1 + steps / timescale), and a linear factor brings it to 0 over the cooldown.
    """

    timescale: Length = Field(
        Duration.parse("10k steps"), description="past the warm-up, after which the rate has come down to lr / sqrt(2)"
    )

    def misfit(self, total_steps: int) -> str:
        """See `ScheduleConfig.misfit`."""
        if whole_steps(self.timescale) == 0:
            return "schedule.timescale is less than half a step; give a step or more, such as 10k steps"
        return super().misfit(total_steps)

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:
        """See `ScheduleConfig.lr_at`."""
        rate = base_lr / math.sqrt(1 + max(0, step - warmup_steps) / whole_steps(self.timescale))
        return rate * (1 - self._cooled(step, total_steps)) * rise(step, warmup_steps=warmup_steps)


@SCHEDULES.register("step")
class StepConfig(ScheduleConfig):
    """Drops by a factor at given places, as BiT trains (arXiv 1912.11370: by 10 at 30, 60 and 80 of 90 epochs)."""

    drops: Annotated[tuple[LengthOrShare, ...], Field(strict=False, min_length=1)] = Field(
        description="places of the run from its beginning, in order: [30 epochs, 60 epochs], or [30%, 60%]"
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="rate after a drop over the rate before it")

    def misfit(self, total_steps: int) -> str:
        """See `ScheduleConfig.misfit`."""
        places, warmup = [whole_steps(drop) for drop in self.drops], whole_steps(self.warmup)
        for i, (place, before) in enumerate(zip(places, [-1, *places], strict=False)):
            if place <= before:
                return (
                    f"schedule.drops[{i}] at step {place:,} is not after drops[{i - 1}] at step {before:,}; order them"
                )
            if place < warmup:
                return (
                    f"schedule.drops[{i}] at step {place:,} is in the warm-up of {warmup:,} steps; give a later place "
                    f"or a shorter schedule.warmup"
                )
            if place >= total_steps:
                return (
                    f"schedule.drops[{i}] at step {place:,} is beyond the last of the run's {total_steps:,} steps; "
                    f"give an earlier place, such as 90%, or leave it out"
                )
        return ""

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:  # noqa: ARG002
        """See `ScheduleConfig.lr_at`."""
        dropped = sum(whole_steps(drop) <= step for drop in self.drops)
        return base_lr * self.factor**dropped * rise(step, warmup_steps=warmup_steps)


@SCHEDULES.register("restarts")
class RestartsConfig(DecayingConfig):
    """Half a cosine again and again from the full rate, each longer than the last (SGDR, arXiv 1608.03983)."""

    end_lr: NonNegative = Field(0.0, description="rate at the end of a period")
    period: Length = Field(description="the first, from the end of the warm-up to the first restart")
    growth: Annotated[float, Field(ge=1, le=100)] = Field(1.0, description="length of a period over the one before it")

    def misfit(self, total_steps: int) -> str:
        """See `ScheduleConfig.misfit`."""
        period, left = whole_steps(self.period), total_steps - whole_steps(self.warmup)
        if period == 0:
            return "schedule.period is less than half a step; give a step or more"
        if period >= left:
            return (
                f"schedule.period of {period:,} steps is no shorter than the {left:,} steps after the warm-up: nothing "
                f"restarts; give a shorter period, or schedule=cosine"
            )
        return ""

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:  # noqa: ARG002
        """See `ScheduleConfig.lr_at`."""
        length, since = float(whole_steps(self.period)), float(max(0, step - warmup_steps))
        if self.growth == 1:
            since %= length
        # As many turns as there were restarts: their lengths grow, so that these are few.
        while since >= length:
            since, length = since - length, length * self.growth
        left = (1 + math.cos(math.pi * since / length)) / 2
        return (self.end_lr + (base_lr - self.end_lr) * left) * rise(step, warmup_steps=warmup_steps)
