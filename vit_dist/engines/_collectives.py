"""Collectives over small Python objects: what ranks must agree on that is no tensor.

As with every collective, all ranks call them and in the same order, or those that do wait until the time-out. Objects
are pickled and sent as tensors over the process group, so these are for messages, not for weights.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from vit_dist.core.world import World

T = TypeVar("T")


def broadcast_object(value: T, world: World) -> T:
    """Rank 0's value, on every rank; what the others pass is ignored. A collective."""
    if world.size == 1:
        return value
    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box, 0)
    received: T = box[0]
    return received


def all_gather_object(value: T, world: World) -> list[T]:
    """Every rank's value in the order of ranks, on every rank. A collective."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(values, value)
    return values
