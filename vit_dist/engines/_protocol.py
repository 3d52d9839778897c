"""What the loop asks of an engine, and what both engines share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vit_dist.core.world import World
from vit_dist.engines._average import Average, Averaging
from vit_dist.engines._fit import Wanted
from vit_dist.engines._slices import EngineState, Source
from vit_dist.engines._timer import StepTimer

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits [B, K], targets [B, K]) -> scalar mean over the batch."""


class MicroBatches(Protocol):
    """(uint8 images [b, 3, S, S], targets [b, K]) each, on the device or on their way; a list will do."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


OnGradients = Callable[[Iterator[tuple[str, Tensor]]], None]
"""Looks at the gradients of a step: (parameter, its gradient as a whole, mean over the global batch), one at a time."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: mean over the global batch, the same on every rank.
        grad_norm: global 2-norm of the gradient before clipping.
        applied: False where the step was skipped: a gradient was not finite, or the loss was over the limit.
    """

    loss: float
    grad_norm: float
    applied: bool


class PendingStep:
    """What one optimizer step did, still on its way from the device: whoever needs it waits for that step alone.

    Args:
        loss: mean over the global batch, a scalar on the device, the same on every rank.
        grad_norm: see StepResult; a number where an engine has read it already.
        applied: likewise; a tensor holds 1 or 0.
    """

    def __init__(self, loss: Tensor, grad_norm: Tensor | float, applied: Tensor | bool) -> None:
        self.applied = applied
        """As the engine knows it: nobody waits for a tensor."""
        values = torch.stack([_double(value, loss) for value in (loss, grad_norm, applied)])
        self._read: StepResult | None = None
        self._values, self._copied = values, None
        if values.is_cuda:
            # The copy is queued behind the step; what is queued after it does not delay whoever reads.
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> StepResult:
        """Wait for the step, the first time."""
        if self._read is None:
            if self._copied is not None:
                self._copied.synchronize()
            loss, grad_norm, applied = self._values.tolist()
            self._read = StepResult(loss, grad_norm, bool(applied))
        return self._read


def _double(value: Tensor | float, like: Tensor) -> Tensor:
    """As a float64 scalar on the device of `like`; a number gets there without a copy from the host."""
    if isinstance(value, Tensor):
        return value.detach().to(torch.float64).reshape(())
    return torch.full((), float(value), dtype=torch.float64, device=like.device)


class Engine(Protocol):
    """Forward, backward, step and state of one model on one rank."""

    description: str
    """For people: 'DeepSpeed 0.19.8, ZeRO stage 1, bf16'."""

    layout: dict[str, Any]
    """What wrote a checkpoint: engine, versions, ranks. Another layout can load it; only on an equal one is what
    follows the same bit for bit."""

    module: nn.Module
    device: torch.device
    timer: StepTimer
    average: Average | None
    """Of the master weights, in this rank's runs of them, where `EngineInputs.averaging` asks for it."""

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """For as long as the block lasts the model computes with the average: no step, no state. A collective.

        Afterwards not a bit of weights, moments and average is changed. Where the block fails all stays as it is.
        """

    def train_step(
        self,
        micro_batches: MicroBatches,
        lr: float,
        *,
        skip_over: float = math.inf,
        on_gradients: OnGradients | None = None,
    ) -> PendingStep:
        """One optimizer step over micro-batches. A collective.

        Args:
            micro_batches: of this rank.
            lr: learning rate of the step.
            skip_over: a step whose mean loss is greater leaves weights and optimizer as they are.
            on_gradients: called before they are clipped. All ranks give one, or none, and go through all gradients:
                under ZeRO each is a collective.

        Returns:
            Before the device is through with the step, where the engine itself need not wait for it.
        """

    def predict(self, images: Tensor) -> Tensor:
        """uint8 [b, 3, S, S] -> float32 logits [b, K], without gradients. A collective under ZeRO-3."""

    def state(self) -> EngineState:
        """This rank's part of weights and optimizer state, as views: to be copied before the next step."""

    def wanted(self) -> Wanted:
        """What a checkpoint must hold to be loaded: the same on every rank, and for every engine."""

    def load(self, source: Source) -> None:
        """Restore weights and optimizer state, whatever engine on however many ranks wrote them. A collective.

        Args:
            source: of which `wanted().misfit` has found nothing wrong.

        Raises:
            CheckpointError: a tensor is missing, or can no longer be read.
        """

    def replicated(self) -> Iterator[tuple[str, Tensor]]:
        """What must be the same on every rank, bit for bit: (name, tensor). A collective under ZeRO-3."""

    def master_mismatch(self) -> str:
        """The first parameter whose copy that this rank computes with is not its rounded master weight, or ''."""


@dataclass(frozen=True)
class Compilation:
    """What became of compiling (engines/_compile.py), the same on every rank.

    Attributes:
        blocks: how many are compiled; 0: all is eager.
    """

    blocks: int = 0

    def __bool__(self) -> bool:
        return self.blocks > 0

    @property
    def described(self) -> str:
        """For people, behind what an engine is: ', blocks compiled', or ''."""
        return ", blocks compiled" if self else ""

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """Around all that an engine computes: compiled graphs where they fit, and nothing is compiled any more."""
        # Not asked without need: torch.compiler brings in torch._dynamo, which takes two seconds.
        if not self:
            return contextlib.nullcontext()
        entered: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("eager_on_recompile")
        return entered


EAGER = Compilation()


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
    memory_format: torch.memory_format = torch.contiguous_format
    """Of the images alone: DeepSpeed cannot initialize a model that is channels-last itself."""
    clip_layers: Mapping[str, int] | None = None
    """The layer of each weight, where `clip` bounds the norm of each layer's gradient and not that of all."""
    timer: StepTimer = field(default_factory=StepTimer)
    image_size: int | None = None
    """Side of the images of a step; None: no step will be taken, so that nothing is compiled for one."""
    averaging: Averaging | None = None
    """How master weights are averaged; None: not at all."""

    def averages(self, masters: Sequence[Tensor]) -> Average | None:
        """The average of an engine's master weights, where one is asked for."""
        return None if self.averaging is None else Average(self.averaging, masters, self.device)


def mean_over_ranks(value: Tensor, world: World) -> Tensor:
    """Mean of a scalar over all ranks, the same on each: float64, on its device. A collective."""
    # In double precision, so that rounding stays far below what a comparison of two runs can see. A copy: what is
    # reduced in place must not be the caller's sum.
    total = value.detach().to(torch.float64, copy=True)
    if world.size > 1:
        torch.distributed.all_reduce(total)
    return total / world.size


def nan_if_over(loss: Tensor, total: Tensor, skip_over: float, world: World) -> Tensor:
    """The last micro-batch's loss, or NaN (a NaN-masked loss) where the step is to be skipped. A collective.

    Its gradient is not finite then, so that a step is skipped the one way that an engine knows anyhow: on all ranks,
    and whatever was accumulated before.

    Args:
        loss: of the last micro-batch, before its backward pass.
        total: mean over this rank's micro-batches, the last one included.
        skip_over: the limit; inf costs nothing.
        world: whose mean is compared.
    """
    # `skip_over` is computed from the train state, the same on every rank: all take part in the mean, or none.
    if math.isinf(skip_over):
        return loss
    # Decided on the device, which nobody waits for; a product with 1 changes no bit. A mean of NaN is over no limit: it
    # is no spike but a step that is not finite, and is skipped without this.
    over = mean_over_ranks(total, world) > skip_over
    return loss * torch.where(over, math.nan, 1.0).to(loss.dtype)


@contextlib.contextmanager
def exchanged(average: Average | None, refresh: Callable[[], None]) -> Iterator[None]:
    """What `Engine.averaged` does. A collective where `refresh` is.

    Args:
        average: of the engine.
        refresh: derives what is computed with from the master weights, once these have changed.
    """
    assert average is not None, "the engine keeps no average"
    average.exchange()
    refresh()
    yield
    # Not in a `finally`: a rank that fails ends, and must not wait in a collective for others that do not come.
    average.exchange()
    refresh()


def set_lr(optimizer: Any, lr: float) -> None:
    """A step's learning rate for every parameter group, times what a group has as its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
