"""Optimizers and learning-rate schedules. One file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from vit_dist.core.marks import WHEN_SET
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

    layer_decay: Annotated[float, Field(gt=0, le=1), WHEN_SET] = Field(
        1.0, description="times the rate for each layer down from the head, as in BEiT and MAE; 1: one rate for all"
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

    def over_layers(self, model: nn.Module) -> Optimizer:
        """`build`, with groups divided by layers where rates fall from layer to layer.

        Raises:
            ConfigError: they do, and the model's layers cannot be told.
        """
        optimizer = self.build(model)
        if self.layer_decay < 1:
            from vit_dist.optim._groups import divide_by_layers

            divide_by_layers(optimizer, model, self.layer_decay)
        return optimizer


class ScheduleConfig(Plugin):
    """Base of every schedule's config."""

    warmup: Length = Field(
        Duration.parse("10k steps"), description="linear rise from 0 to the schedule, the paper's by default"
    )

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:
        """Learning rate of optimizer step `step` (0 is the first).

        Args:
            step: steps already taken.
            base_lr: the optimizer's `lr`.
            total_steps: length of the run.
            warmup_steps: `warmup` in steps.
        """
        raise NotImplementedError
