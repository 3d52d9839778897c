"""A running average of an engine's master weights, in the runs of them that this rank holds.

The first step that counts is copied, as torch's AveragedModel does; after each further one the average moves towards
the weights: by 1 - decay, or, where all steps count alike, by one over how many they are. A step that was skipped
counts for nothing, which the device itself decides: nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import CheckpointError, ConfigError
from vit_dist.engines._slices import AVERAGE, AVERAGED, WEIGHT, Slice, Source

_COUNT = "steps"
_CHUNK = 16 << 20
"""Elements that are exchanged at once: what evaluating the average takes of a device beside the average itself."""


@dataclass(frozen=True)
class Averaging:
    """How weights are averaged; `decay` None: uniformly."""

    decay: float | None


def averaging_of(recipe: Recipe) -> Averaging | None:
    """How a recipe's `ema` averages; None where it has none."""
    if recipe.ema is None:
        return None
    return Averaging(None if recipe.ema.decay == "uniform" else recipe.ema.decay)


def check_averages(recipe: Recipe, engine: object) -> None:
    """Refuse an average of which an engine, a plug-in's, knows nothing.

    Raises:
        ConfigError: the recipe asks for one.
    """
    if recipe.ema is not None and getattr(engine, "average", None) is None:
        raise ConfigError(
            f"ema: engine.name={recipe.engine.name} keeps no average of the weights; leave `ema` out, or use "
            f"engine.name=deepspeed, fsdp or plain"
        )


class Average:
    """The average of some tensors, the fp32 master weights that are trained.

    Args:
        how: of the recipe.
        masters: each of which the engine updates in place.
        device: of the engine.
    """

    def __init__(self, how: Averaging, masters: Sequence[Tensor], device: torch.device) -> None:
        self._decay = how.decay
        # What they hold counts for nothing yet.
        self._pairs = [(m.detach().clone(memory_format=torch.contiguous_format), m.detach()) for m in masters]
        self._of = {id(master): average for master, (average, _) in zip(masters, self._pairs, strict=True)}
        # Exact up to 2^53, and saved as it is.
        self._count = torch.zeros(1, dtype=torch.float64, device=device)

    def of(self, master: Tensor) -> Tensor:
        """The average of one of the tensors that it was made of."""
        return self._of[id(master)]

    def update(self, applied: Tensor | bool) -> None:
        """Let the weights after a step count, if it was applied; a tensor that says so is not waited for."""
        with torch.no_grad():
            if isinstance(applied, Tensor):
                counts = applied.detach().to(self._count.device, torch.float64).reshape(())
            else:
                counts = torch.full((), float(applied), dtype=torch.float64, device=self._count.device)
            self._count += counts
            count = self._count.reshape(())
            share = 1 / count.clamp(min=1)
            if self._decay is not None:
                share = torch.where(count > 1, 1 - self._decay, torch.ones_like(share))
            weight = (counts * share).float()
            for average, master in self._pairs:
                average.lerp_(master, weight)

    def counted(self) -> int:
        """How many steps count in it, the same on every rank. Waits for the device."""
        return int(self._count)

    def slices(self, *, is_main: bool) -> list[Slice]:
        """How many steps count: of a state, beside the averages themselves. Rank 0 writes it."""
        return [Slice(AVERAGED, _COUNT, (1,), 0, self._count)] if is_main else []

    def load(self, source: Source, runs: Iterable[tuple[str, int, Tensor]]) -> None:
        """Fill it from a checkpoint; from one that has no average with the weights, and nothing counts yet.

        Args:
            source: that the engine loads.
            runs: (name of the weight, where the run begins in it, a flat view of the average's run).

        Raises:
            CheckpointError: how many steps count in it is no number of steps.
        """
        for name, start, view in runs:
            kind = AVERAGE if source.holds(AVERAGE, name) else WEIGHT
            if view.numel():
                view.copy_(source.read(kind, name, start, start + view.numel()))
        self._count.fill_(max(0, counted_steps(source)))

    def exchange(self) -> None:
        """Put the average where the weights are, and the weights where it was; twice, and all is as before."""
        with torch.no_grad():
            for average, master in self._pairs:
                for a, b in _chunks(average, master):
                    kept = a.clone()
                    a.copy_(b)
                    b.copy_(kept)


def _chunks(average: Tensor, master: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if not master.is_contiguous():
        yield average, master
        return
    a, b = average.view(-1), master.view(-1)
    for begin in range(0, len(a), _CHUNK):
        yield a[begin : begin + _CHUNK], b[begin : begin + _CHUNK]


def wanted_count() -> tuple[tuple[str, str], tuple[tuple[int, ...], frozenset[torch.dtype]]]:
    """What a checkpoint must hold beside the averages."""
    return (AVERAGED, _COUNT), ((1,), frozenset({torch.float64}))


def counted_steps(source: Source) -> int:
    """How many steps count in the average that a checkpoint holds; -1: it holds none.

    Raises:
        CheckpointError: it is no number of steps.
    """
    if not source.holds(AVERAGED, _COUNT):
        return -1
    count = float(source.read(AVERAGED, _COUNT, 0, 1))
    if not (count >= 0 and count.is_integer()):
        raise CheckpointError(f"the checkpoint says that {count} steps count in its average of the weights")
    return int(count)
