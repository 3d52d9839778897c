"""Plain torch: DistributedDataParallel, autocast, clip, step. Short enough to be believed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vit_dist.data.decode import normalize
from vit_dist.engines._protocol import EngineInputs, StepResult, mean_over_ranks, set_lr


class PlainEngine:
    """See engines/_protocol.Engine."""

    def __init__(self, inputs: EngineInputs) -> None:
        self._in = inputs
        self.module: nn.Module = inputs.model.to(inputs.device)
        self.device = inputs.device
        self._ddp = DistributedDataParallel(self.module) if inputs.world.size > 1 else None
        self._optimizer = inputs.optimizer
        self.layout: dict[str, Any] = {"engine": "plain", "torch": torch.__version__}
        self.description = f"plain torch {torch.__version__.partition('+')[0]} (DDP), {inputs.precision}"

    def train_step(self, micro_batches: Sequence[tuple[Tensor, Tensor]], lr: float) -> StepResult:
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
                    logits = net(normalize(images.to(self.device, non_blocking=True), torch.float32))
                loss = self._in.loss(logits.float(), targets.to(self.device, non_blocking=True)) / len(micro_batches)
                torch.autograd.backward(loss)
            total += loss.detach()
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
            logits: Tensor = self.module(normalize(images.to(self.device), torch.float32))
        return logits.float()

    def save(self, directory: Path) -> None:
        """See Engine. Rank 0 writes; every rank holds the same."""
        if self._in.world.is_main:
            state = {"model": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
            torch.save(state, directory / "state.pt")

    def load(self, directory: Path) -> None:
        """See Engine."""
        state = torch.load(directory / "state.pt", map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _autocast(self) -> Any:
        enabled = self._in.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
