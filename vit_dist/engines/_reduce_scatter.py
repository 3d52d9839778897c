"""ZeRO-1 in bf16 sums gradients by reduce-scatter: each rank gets the sums that it steps on, and no others.

DeepSpeed's optimizer for this case keeps them in flat fp32 tensors that are cut over the ranks like the masters. It
flattens these once more, sums them whole by all-reduce, and takes the norm of all of them, one by one, on every rank. A
reduce-scatter within the flat tensors sends half of the bytes and needs no second copy; of a rank's own part the norm
is a tensor a parameter group, added up over ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vit_dist.core.world import World


def sums_by_reduce_scatter(optimizer: Any) -> bool:
    """Whether an optimizer of DeepSpeed's is one that `reduce_scatter` knows: BF16_Optimizer."""
    return hasattr(optimizer, "fp32_groups_gradient_flat_partition")


def reduce_scatter(engine: Any, optimizer: Any, world: World, dtype: torch.dtype) -> None:
    """Let a DeepSpeed engine sum its gradients in place, each rank its own part.

    Args:
        engine: DeepSpeed's, before its first step.
        optimizer: for which `sums_by_reduce_scatter`.
        world: over whose ranks gradients are averaged.
        dtype: in which they are summed.
    """

    def reduce(**_: Any) -> None:
        flats, parts = optimizer.fp32_groups_gradients_flat, optimizer.fp32_groups_gradient_flat_partition
        for whole, own in zip(flats, parts, strict=True):
            _reduce(whole, own, world, dtype)

    def own_parts(for_clipping: bool = False) -> Any:
        parts = optimizer.fp32_groups_gradient_flat_partition
        return parts if for_clipping else (parts, {})

    # What lies outside of a rank's own part is the rank's own sum still: nothing may look at it. DeepSpeed zeroes it
    # with the rest after the step, and adds up whole gradients, where they are asked for, from each rank's part.
    engine.buffered_allreduce_fallback = reduce
    optimizer.get_grads_for_norm = own_parts
    # Of what is cut over ranks DeepSpeed adds up norms over the group that cuts it.
    if world.size > 1:
        optimizer.mpu = _AllRanks(optimizer.dp_process_group)


def _reduce(whole: Tensor, own: Tensor, world: World, dtype: torch.dtype) -> None:
    """The mean over ranks into `own`, which is this rank's part of `whole`; the rest of `whole` is not to be used."""
    if world.size == 1:
        return
    if dtype == whole.dtype:
        # In place, as NCCL has it: what is received goes where this rank's part of what is sent lies.
        torch.distributed.reduce_scatter_tensor(own, whole)
    else:
        received = torch.empty_like(own, dtype=dtype)
        torch.distributed.reduce_scatter_tensor(received, whole.to(dtype))
        own.copy_(received)
    own.mul_(1.0 / world.size)


class _AllRanks:
    """What DeepSpeed asks of a "model parallel unit" when it adds up norms."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def get_model_parallel_group(self) -> Any:
        """The ranks whose parts make up the whole."""
        return self._group
