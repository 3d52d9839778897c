"""Collectives over small Python objects and flags: what ranks must agree on that is no tensor.

As with every collective, all ranks call them and in the same order, or those that do wait until the time-out. Objects
are pickled, so these are for messages, not for weights.

They go over a gloo group of their own, never over the default group, whose tensors NCCL moves on GPUs: there each of
them would wait for the device, twice where its size is sent first, and take its memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch

from vit_dist.core.world import World

T = TypeVar("T")

_groups: list[Any] = []


@contextlib.contextmanager
def message_group(world: World, timeout: timedelta) -> Iterator[None]:
    """The group for objects and flags, beside the default group that there must be already. A collective."""
    # Also where the default group is gloo itself, on CPUs: the program, and with it the order in which ranks enter
    # collectives of two groups, is then the one that runs on GPUs. It costs a few milliseconds, once.
    if world.size > 1:
        _groups.append(torch.distributed.new_group(backend="gloo", timeout=timeout, group_desc="messages"))
    try:
        yield
    finally:
        # It is destroyed with the default group.
        if world.size > 1:
            _groups.pop()


def broadcast_object(value: T, world: World) -> T:
    """Rank 0's value, on every rank; what the others pass is ignored. A collective."""
    if world.size == 1:
        return value
    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box, 0, group=_groups[-1], device=torch.device("cpu"))
    received: T = box[0]
    return received


def all_gather_object(value: T, world: World) -> list[T]:
    """Every rank's value in the order of ranks, on every rank. A collective."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(values, value, group=_groups[-1])
    return values


class PendingFlags:
    """For each flag whether it is set on any rank, while that is being agreed upon. A collective, begun here.

    Args:
        flags: of this rank.
        world: whose ranks agree.
    """

    def __init__(self, flags: Sequence[bool], world: World) -> None:
        self._agreed = torch.tensor(flags, dtype=torch.int32)
        self._work: Any = None
        if world.size > 1:
            self._work = torch.distributed.all_reduce(
                self._agreed, torch.distributed.ReduceOp.MAX, group=_groups[-1], async_op=True
            )

    def wait(self) -> list[bool]:
        """The same on every rank."""
        if self._work is not None:
            self._work.wait()
        return [bool(flag) for flag in self._agreed.tolist()]


def any_rank(flags: Sequence[bool], world: World) -> list[bool]:
    """For each flag whether it is set on any rank, the same on every rank. A collective."""
    return PendingFlags(flags, world).wait()


def barrier(world: World) -> None:
    """Wait until every rank is here. A collective."""
    any_rank([False], world)
