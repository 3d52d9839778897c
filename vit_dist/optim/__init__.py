"""Optimizers and learning-rate schedules. One file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_dist.core.registry import Plugin

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class OptimizerConfig(Plugin):
    """Base of every optimizer's config."""

    lr: float
    clip: float | None
    elementwise: bool
    """True where an update of a parameter needs that element's gradient and state only, so that ZeRO may shard it."""

    def build(self, model: nn.Module) -> Optimizer:
        """A torch optimizer over the trainable parameters of `model`, in groups with and without decay."""
        raise NotImplementedError


class ScheduleConfig(Plugin):
    """Base of every schedule's config."""

    def lr_at(self, step: int, *, base_lr: float, total_steps: int, warmup_steps: int) -> float:
        """Learning rate of optimizer step `step` (0 is the first)."""
        raise NotImplementedError
