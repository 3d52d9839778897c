"""What the loop asks of an engine, and what both engines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vit_dist.core.world import World

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits [B, K], targets [B, K]) -> scalar mean over the batch."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: mean over the global batch, the same on every rank.
        grad_norm: global 2-norm of the gradient before clipping.
        applied: False where the engine skipped the step (a gradient was not finite).
    """

    loss: float
    grad_norm: float
    applied: bool


class Engine(Protocol):
    """Forward, backward, step, save and load of one model on one rank."""

    description: str
    """For people: 'DeepSpeed 0.19.8, ZeRO stage 1, bf16'."""

    layout: dict[str, Any]
    """What its checkpoints depend on beside the recipe; equal layouts can load each other's files."""

    module: nn.Module
    device: torch.device

    def train_step(self, micro_batches: Sequence[tuple[Tensor, Tensor]], lr: float) -> StepResult:
        """One optimizer step over micro-batches of (uint8 images [b, 3, S, S], targets [b, K]). A collective."""

    def predict(self, images: Tensor) -> Tensor:
        """uint8 [b, 3, S, S] -> float32 logits [b, K], without gradients. A collective under ZeRO-3."""

    def save(self, directory: Path) -> None:
        """Write this rank's part of weights and optimizer state. A collective."""

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, on the same layout. A collective."""


@dataclass(frozen=True)
class EngineInputs:
    """What an engine is built from."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: LossFunction
    world: World
    device: torch.device
    precision: str
    clip: float | None
    micro_batch: int
    accumulation: int


def mean_over_ranks(value: Tensor, world: World) -> float:
    """Mean of a scalar over all ranks, the same on each."""
    total = value.detach().to(torch.float64)
    if world.size > 1:
        torch.distributed.all_reduce(total)
    return float(total) / world.size


def set_lr(optimizer: Any, lr: float) -> None:
    """One learning rate for every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
