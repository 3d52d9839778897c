"""The state of an engine as slices of named tensors: what a checkpoint holds, whatever engine wrote it.

Every tensor is known by a kind and a name: ('weight', 'head.bias'), ('exp_avg', 'head.bias'), ('buffer', ...). A
rank holds runs of elements of some of them, counted in the flattened tensor. Weights are the master weights in fp32,
from which an engine derives those it computes with. How the runs are cut is the engine's own affair, so that state
crosses engines, ZeRO stages and numbers of processes without a bit changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vit_dist.core.world import World

WEIGHT = "weight"
BUFFER = "buffer"
AVERAGE = "average"
"""Of a weight that is trained, where the recipe asks for one (engines/_average.py)."""
AVERAGED = "averaged"
"""How many steps count in the averages."""
NO_MOMENTS = frozenset({WEIGHT, BUFFER, AVERAGE, AVERAGED})
"""Kinds that are not an optimizer's."""


@dataclass(frozen=True)
class Slice:
    """A run of elements of one tensor that this rank holds.

    Attributes:
        kind: 'weight', 'buffer', 'average', or an optimizer's name for a moment such as 'exp_avg'.
        name: of the parameter or buffer in the model.
        shape: of the whole tensor.
        start: where the run begins in the flattened tensor.
        data: [n], a view of the engine's own memory: the next step changes it.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor


Scalars = dict[str, dict[str, float]]
"""{parameter: {key: number}}: what an optimizer keeps a single number of, such as Adam's count of steps."""


@dataclass(frozen=True)
class EngineState:
    """A rank's part of an engine's state; the parts of all ranks together hold each element once."""

    slices: list[Slice]
    scalars: Scalars


class Source(Protocol):
    """Where an engine reads the state to restore."""

    def kinds(self, name: str) -> list[str]:
        """The optimizer's moments of a parameter, by their kinds."""

    def scalars(self, name: str) -> Mapping[str, float]:
        """The optimizer's single numbers of a parameter."""

    def holds(self, kind: str, name: str) -> bool:
        """Whether there is such a tensor."""

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor, on the CPU.

        Raises:
            CheckpointError: they are not all there.
        """


def split_over_ranks(tensors: Iterable[tuple[str, str, Tensor]], world: World) -> list[Slice]:
    """This rank's slices of tensors that every rank holds complete: laid end to end and cut into equal runs."""
    # Cut by elements and not by tensors, so that ranks write about the same number of bytes whatever the model. All
    # ranks must pass the tensors in the same order: the cut is computed, not agreed on.
    listed = list(tensors)
    total = sum(t.numel() for _, _, t in listed)
    begin, end = (total * r // world.size for r in (world.rank, world.rank + 1))
    at, slices = 0, []
    for kind, name, tensor in listed:
        low, high = max(begin - at, 0), min(end - at, tensor.numel())
        if low < high:
            slices.append(Slice(kind, name, tuple(tensor.shape), low, tensor.detach().reshape(-1)[low:high]))
        at += tensor.numel()
    return slices


def buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to a model's state (running statistics), not those it can compute again."""
    # named_buffers also yields those registered with persistent=False; state_dict leaves them out.
    persistent = module.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in persistent)


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One parameter's optimizer state as moments (tensors) and single numbers."""
    moments, scalars = {}, {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim:
            moments[key] = value
        elif value is not None:
            scalars[key] = float(value)
    return moments, scalars


def restore_scalars(
    state: dict[str, Any], scalars: Mapping[str, float], like: Tensor, group: Mapping[str, Any]
) -> None:
    """Put single numbers back the way torch's optimizers keep them: float32, on the device only where fused."""
    # A step count on the GPU would make every unfused step wait for the device; on the CPU a fused one refuses it.
    on_device = bool(group.get("fused") or group.get("capturable"))
    for key, value in scalars.items():
        state[key] = torch.tensor(value, dtype=torch.float32, device=like.device if on_device else "cpu")


def forget_missing(state: dict[str, Any], source: Source, name: str) -> None:
    """Drop what an optimizer keeps of a weight and a checkpoint does not: it is to go on as if it had begun there."""
    for key in set(state) - set(source.kinds(name)) - set(source.scalars(name)):
        del state[key]


def load_whole(tensor: Tensor, source: Source, kind: str, name: str) -> None:
    """Fill a tensor that this rank holds complete."""
    tensor.detach().copy_(source.read(kind, name, 0, tensor.numel()).view(tensor.shape))
