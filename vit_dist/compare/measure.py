"""Throughput of models on this device, measured in turns: what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.compare.memory import Counted
from vit_dist.core.units import counted
from vit_dist.models import ModelConfig
from vit_dist.models.costs import state_bytes


@dataclass(frozen=True)
class Speed:
    """Images a second, medians over the rounds."""

    forward: float
    train: float


class Bench:
    """One model with random weights and images, ready for a step at a time.

    Args:
        config: the model.
        num_classes: of its head.
        image_size: pixels.
        batch: images a step.
        device: where.
        precision: bf16 or fp32; bf16 computes under autocast, as the plain engine does.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        image_size: int,
        batch: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.batch, self._device = batch, device
        self._model = config.build(num_classes=num_classes, image_size=image_size).to(device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._images = torch.randn(batch, 3, image_size, image_size, device=device)
        self._labels = torch.zeros(batch, dtype=torch.long, device=device)
        self._half = precision == "bf16"

    def forward(self) -> float:
        """Seconds of one forward pass."""
        self._model.eval()
        with torch.no_grad():
            return timed_step(self._logits, self._device)

    def train(self) -> float:
        """Seconds of one forward and backward pass and step of AdamW."""
        self._model.train()

        def step() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(self._logits().float(), self._labels)
            torch.autograd.backward(loss)
            self._optimizer.step()

        return timed_step(step, self._device)

    def _logits(self) -> Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            logits: Tensor = self._model(self._images)
        return logits


def timed_step(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until what `work` does on a device is done."""
    _wait(device)
    begin = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def groups(
    counts: Mapping[str, Counted], batch: int, free_bytes: int | None, precision: str = "bf16"
) -> tuple[list[list[str]], dict[str, int]]:
    """Which models are measured in turns: all of them, or each alone where memory does not hold all.

    Args:
        counts: what each keeps.
        batch: images a step.
        free_bytes: bytes that are free; None: not known, and taken to be enough.
        precision: bf16 or fp32.

    Returns:
        Groups of names; and what does not even fit alone, with the bytes it needs, about.
    """
    state = {name: int(state_bytes(counted.params, precision=precision).peak) for name, counted in counts.items()}
    # A quarter more for passing tensors.
    step = {name: batch * counted.activations * 5 // 4 for name, counted in counts.items()}
    if free_bytes is None or sum(state.values()) + max(step.values()) <= free_bytes:
        return [list(counts)], {}
    alone = {name: state[name] + step[name] for name in counts}
    too_large = {name: needed for name, needed in alone.items() if needed > free_bytes}
    return [[name] for name in alone if name not in too_large], too_large


def measure(benches: Mapping[str, Bench], rounds: int, say: Callable[[str], None] = lambda _: None) -> dict[str, Speed]:
    """Every model once a round, after a round that does not count; medians."""
    forward: dict[str, list[float]] = {name: [] for name in benches}
    train: dict[str, list[float]] = {name: [] for name in benches}
    what = f"{counted(len(benches), 'model')}" if len(benches) > 1 else "".join(benches)
    for number in range(rounds + 1):
        say(f"{what}: round {number} of {rounds}" if number else f"{what}: warming up")
        for name, bench in benches.items():
            seconds = bench.forward(), bench.train()
            if number:
                forward[name].append(seconds[0])
                train[name].append(seconds[1])
    return {
        name: Speed(bench.batch / statistics.median(forward[name]), bench.batch / statistics.median(train[name]))
        for name, bench in benches.items()
    }
