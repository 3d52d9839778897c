"""Optimizers and learning-rate schedules. One file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from vit_dist.core.registry import Plugin
from vit_dist.core.units import Duration, Length

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class OptimizerConfig(Plugin):
    """Base of every optimizer's config."""

    elementwise: ClassVar[bool]
    """True where an update of a parameter needs that element's gradient and state only, so that ZeRO may shard it."""

    lr: Positive = Field(description="peak learning rate; the schedule scales it")
    clip: Positive | None = Field(
        1.0, description="global gradient norm above which gradients are scaled down; null: never"
    )

    @property
    def moments(self) -> int:
        """Numbers that it keeps for each weight: for memory figures, and for memory that is made ready ahead."""
        return 2

    def build(self, model: nn.Module) -> Optimizer:
        """A torch optimizer over the trainable parameters of `model`, in groups with and without decay.

        The engine clips and the schedule sets the rate; the optimizer does neither.
        """
        raise NotImplementedError


class ScheduleConfig(Plugin):
    """Base of every schedule's config."""

    warmup: Length = Field(
        Duration.parse("10k steps"), description="linear rise from 0 to the schedule, the paper's by default"
    )

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:
        """Learning rate of optimizer step `step` (0 is the first).

        Asked of a copy whose lengths, of whatever field, are in steps: `whole_steps(self.cooldown)`.

        Args:
            step: steps already taken.
            base_lr: the optimizer's `lr`.
            total_steps: length of the run.
            warmup_steps: `warmup` in steps.
        """
        raise NotImplementedError

    def misfit(self, total_steps: int) -> str:  # noqa: ARG002
        """Why this schedule does not fit a run beyond its warm-up, and what to do; '' where it does.

        Asked of a copy whose lengths are in steps.
        """
        return ""
