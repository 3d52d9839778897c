"""Plain torch: DistributedDataParallel, autocast, clip, step. Short enough to be believed."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vit_dist.data.decode import normalize
from vit_dist.engines._protocol import EngineInputs, StepResult, mean_over_ranks, nan_if_over, set_lr
from vit_dist.engines._slices import (
    BUFFER,
    WEIGHT,
    EngineState,
    Scalars,
    Source,
    buffers,
    load_whole,
    restore_scalars,
    shares,
    split_state,
)


class PlainEngine:
    """See engines/_protocol.Engine."""

    def __init__(self, inputs: EngineInputs) -> None:
        self._in = inputs
        self.module: nn.Module = inputs.model.to(inputs.device)
        self.device = inputs.device
        self._ddp = _replicated(self.module) if inputs.world.size > 1 else None
        self._optimizer = inputs.optimizer
        self.layout: dict[str, Any] = {
            "engine": "plain",
            "torch": torch.__version__,
            "world_size": inputs.world.size,
        }
        self.description = f"plain torch {torch.__version__.partition('+')[0]} (DDP), {inputs.precision}"

    def train_step(
        self, micro_batches: Sequence[tuple[Tensor, Tensor]], lr: float, *, skip_over: float = math.inf
    ) -> StepResult:
        """See Engine."""
        self.module.train()
        net = self._ddp if self._ddp is not None else self.module
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, (images, targets) in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            silent = contextlib.nullcontext() if self._ddp is None or last else self._ddp.no_sync()
            with silent:
                with self._autocast():
                    logits = net(self._input(images))
                loss = self._in.loss(logits.float(), targets.to(self.device, non_blocking=True)) / len(micro_batches)
                total += loss.detach()
                torch.autograd.backward(nan_if_over(loss, total, skip_over, self._in.world) if last else loss)
        clip = self._in.clip
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip is not None else float("inf"))
        applied = bool(torch.isfinite(norm))  # gradients are already averaged: the same on every rank
        if applied:
            set_lr(self._optimizer, lr)
            self._optimizer.step()
        return StepResult(mean_over_ranks(total, self._in.world), float(norm), applied)

    def predict(self, images: Tensor) -> Tensor:
        """See Engine."""
        self.module.eval()
        with torch.no_grad(), self._autocast():
            logits: Tensor = self.module(self._input(images))
        return logits.float()

    def _input(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return normalize(images, torch.float32, self._in.memory_format)

    def state(self) -> EngineState:
        """See Engine. Every rank holds everything; each gives its share of it."""
        wholes = [(WEIGHT, name, p.detach()) for name, p in self.module.named_parameters()]
        wholes += [(BUFFER, name, b) for name, b in buffers(self.module)]
        scalars: Scalars = {}
        for name, p in self.module.named_parameters():
            moments, scalars[name] = split_state(self._optimizer.state.get(p, {}))
            wholes += [(kind, name, moment) for kind, moment in moments.items()]
        return EngineState(shares(wholes, self._in.world), scalars)

    def load(self, source: Source) -> None:
        """See Engine."""
        for name, p in self.module.named_parameters():
            load_whole(p, source, WEIGHT, name)
            state = self._optimizer.state[p] if p.requires_grad else {}
            for kind in source.kinds(name):
                shape = source.shape(kind, name)
                if kind not in state:
                    state[kind] = torch.zeros(shape, dtype=p.dtype, device=p.device)
                load_whole(state[kind], source, kind, name)
            restore_scalars(state, source.scalars(name), p, self._optimizer.defaults)
        for name, buffer in buffers(self.module):
            load_whole(buffer, source, BUFFER, name)

    def replicated(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine."""
        yield from self.module.named_parameters()
        yield from self.module.named_buffers()

    def master_mismatch(self) -> str:
        """See Engine. There is one copy."""
        return ""

    def _autocast(self) -> Any:
        enabled = self._in.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def _replicated(module: nn.Module) -> DistributedDataParallel:
    # A class token's gradient is a slice of one, whose strides over dimensions of size 1 differ and mean nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    return DistributedDataParallel(
        module,
        forward_sync_buffers=False,  # they are constant, since models with BatchNorm are refused
        gradient_as_bucket_view=True,  # no second copy of the gradients: 4 bytes a parameter
        # Fewer and longer sums than of the default 25 MB, whose fixed costs grow with the ranks.
        bucket_cap_mb=100,
        # static_graph=True fails an assertion inside torch where the first micro-batch is under no_sync().
    )
