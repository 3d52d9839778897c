"""Optimizers and learning-rate schedules. One file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vit_dist.core.marks import WHEN_SET
from vit_dist.core.registry import Plugin
from vit_dist.core.units import Duration, Length

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
Decay = Literal["kernels", "all"]

DECAYS = "kernels: matrices and convolutions, as in big_vision; all: every parameter"
DECOUPLED = "times the rate and the parameter, taken off at each step"
MEANS = "decay of the running means of gradients and of their squares"


class OptimizerConfig(Plugin):
    """Base of every optimizer's config."""

    elementwise: ClassVar[bool]
    """True where an update of a parameter needs that element's gradient and state only, so that ZeRO may shard it."""
    whole_rows: ClassVar[bool] = False
    """True where it can do with a rank's rows of a weight and what the others say of theirs (optim/_across.py)."""

    lr: Positive = Field(description="peak learning rate; the schedule scales it")
    clip: Positive | None = Field(
        1.0, description="global gradient norm above which gradients are scaled down; null: never"
    )
    clip_per: Annotated[Literal["all", "block"], WHEN_SET] = Field(
        "all", description="whose norm `clip` bounds. block: stem, each block and what is behind them, each its own"
    )

    layer_decay: Annotated[float, Field(gt=0, le=1), WHEN_SET] = Field(
        1.0, description="times the rate for each layer down from the head, as in BEiT and MAE; 1: one rate for all"
    )

    @model_validator(mode="after")
    def _clips_something(self) -> OptimizerConfig:
        if self.clip is None and self.clip_per != "all":
            raise ValueError(f"clip_per={self.clip_per} beside clip=null, which clips nothing; give clip a norm")
        return self

    @property
    def moments(self) -> float:
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

    def clipped_layers(self, model: nn.Module) -> dict[str, int] | None:
        """The layer of each weight, where each is clipped by a norm of its own.

        Raises:
            ConfigError: they are, and the model's layers cannot be told.
        """
        if self.clip_per == "all":
            return None
        from vit_dist.optim._groups import layers_for

        return layers_for(model, f"optim.clip_per={self.clip_per}", "leave clip_per out")


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
