"""Which elements of which parameter lie where in DeepSpeed's flat fp32 partitions, for ZeRO 1 to 3.

DeepSpeed keeps master weights and moments as flat tensors, cut over the ranks. Stages 1 and 2 leave on each
parameter the run of it that this rank owns (`_hp_mapping`); stage 3 cuts every parameter into equal runs and knows
their places (`grad_position`). Padding is zero, stays zero and is not saved.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.core.world import World
from vit_dist.engines._average import Average
from vit_dist.engines._slices import (
    AVERAGE,
    BUFFER,
    WEIGHT,
    EngineState,
    Scalars,
    Slice,
    Source,
    buffers,
    load_whole,
    restore_scalars,
    split_state,
)


@dataclass(frozen=True)
class _Fragment:
    """Elements [start, start + size) of a parameter are elements [offset, offset + size) of the fp32 tensor `flat`."""

    name: str
    shape: tuple[int, ...]
    start: int
    size: int
    flat: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The fragment's place in a tensor shaped as `flat`: weights or a moment."""
        return tensor.detach().narrow(0, self.offset, self.size)


def masters_of(module: nn.Module, optimizer: Any, stage: int, world: World) -> list[Tensor]:
    """The flat fp32 tensors in which this rank's master weights lie."""
    return list({id(part.flat): part.flat for part in _fragments(module, optimizer, stage, world)}.values())


def zero_state(
    module: nn.Module, optimizer: Any, stage: int, world: World, average: Average | None = None
) -> EngineState:
    """This rank's part of weights, moments and average."""
    slices: list[Slice] = []
    scalars: Scalars = {}
    for part in _fragments(module, optimizer, stage, world):
        slices.append(Slice(WEIGHT, part.name, part.shape, part.start, part.of(part.flat)))
        moments, scalars[part.name] = split_state(optimizer.optimizer.state.get(part.flat, {}))
        if average is not None:
            moments[AVERAGE] = average.of(part.flat)
        slices += [Slice(kind, part.name, part.shape, part.start, part.of(m)) for kind, m in moments.items()]
    for name, shape, start, data in _frozen(module, stage, world):
        slices.append(Slice(WEIGHT, name, shape, start, data))
    if average is not None:
        slices += average.slices(is_main=world.is_main)
    # Buffers are not sharded: rank 0 writes its copy of them.
    if world.is_main:
        slices += [Slice(BUFFER, name, tuple(b.shape), 0, b.detach().reshape(-1)) for name, b in buffers(module)]
    return EngineState(slices, scalars)


def write_masters(module: nn.Module, optimizer: Any, stage: int, world: World, weights: Mapping[str, Tensor]) -> None:
    """Give this rank's master weights these values, of which those that are computed with are the rounding already.

    Args:
        module: the engine's.
        optimizer: DeepSpeed's, before its first step.
        stage: of ZeRO.
        world: all ranks hold the same `weights`.
        weights: whole, by name; parameters that are not among them keep their masters.
    """
    for part in _fragments(module, optimizer, stage, world):
        if part.name in weights:
            part.of(part.flat).copy_(weights[part.name].reshape(-1)[part.start : part.start + part.size])


def load_zero_state(
    module: nn.Module, optimizer: Any, stage: int, world: World, source: Source, average: Average | None = None
) -> None:
    """Fill this rank's partitions from a checkpoint, and derive the weights that are computed with. A collective."""
    before_masters_change(optimizer, stage)
    # What the optimizer has kept so far is none of the checkpoint's: it may have less, of a branch's new optimizer.
    for flat in masters_of(module, optimizer, stage, world):
        optimizer.optimizer.state[flat].clear()
    for part in _fragments(module, optimizer, stage, world):
        part.of(part.flat).copy_(source.read(WEIGHT, part.name, part.start, part.start + part.size))
        state = optimizer.optimizer.state[part.flat]
        for kind in source.kinds(part.name):
            # Moments are flat tensors over the whole partition, made at the first step: a fresh optimizer has none yet.
            # Zeros also where no parameter lies, since padding must stay zero.
            if kind not in state:
                state[kind] = torch.zeros_like(part.flat)
            part.of(state[kind]).copy_(source.read(kind, part.name, part.start, part.start + part.size))
        restore_scalars(state, source.scalars(part.name), part.flat, optimizer.optimizer.defaults)
    # Only rank 0 saves frozen parameters on stages 1 and 2, but every rank computes with its own copy of them.
    for name, _, start, data in _frozen(module, stage, world, everywhere=True):
        data.copy_(source.read(WEIGHT, name, start, start + data.numel()))
    for name, buffer in buffers(module):
        load_whole(buffer, source, BUFFER, name)
    if average is not None:
        parts = _fragments(module, optimizer, stage, world)
        average.load(source, ((part.name, part.start, part.of(average.of(part.flat))) for part in parts))
    after_masters_changed(optimizer, stage)


def before_masters_change(optimizer: Any, stage: int) -> None:
    """Stage 3 keeps small parameters gathered between steps: they are partitioned, and gathered again afterwards.

    The forward pass would see the values from before otherwise.
    """
    if stage == 3:
        optimizer.checkpoint_event_prologue()


def after_masters_changed(optimizer: Any, stage: int) -> None:
    """Derive what the forward pass uses from the master weights, as after a step. A collective: it is an all-gather."""
    if stage == 3:
        _refresh_stage_3(optimizer)
    else:
        optimizer.update_lp_params()


def master_mismatch(module: nn.Module, optimizer: Any, stage: int, world: World) -> str:
    """The first parameter whose run of this rank is not what its master weight rounds to; '' if none."""
    parameters = dict(module.named_parameters())
    for part in _fragments(module, optimizer, stage, world):
        p: Any = parameters[part.name]
        run = p.ds_tensor[: part.size] if stage == 3 else p.view(-1)[part.start : part.start + part.size]
        if not torch.equal(_bits(run.detach()), _bits(part.of(part.flat).to(run.dtype))):
            return part.name
    return ""


def _bits(values: Tensor) -> Tensor:
    # As integers NaN equals NaN, and 0 is not -0: bits are compared and not values.
    return values.view(torch.int16 if values.element_size() == 2 else torch.int32)


@contextlib.contextmanager
def gathered(parameter: nn.Parameter) -> Iterator[Tensor]:
    """A complete parameter of stage 3, for as long as the block lasts. A collective.

    Small ones are kept gathered on every rank between steps: these are yielded as they are.
    """
    p: Any = parameter
    # The same on every rank: which parameters stay gathered depends on their sizes alone.
    is_gathered = p.ds_status.name == "AVAILABLE"
    if not is_gathered:
        with warnings.catch_warnings():
            # torch renamed the collective that DeepSpeed calls here.
            warnings.simplefilter("ignore", FutureWarning)
            p.all_gather(param_list=[p])
    try:
        yield p.data
    finally:
        # Partitioned again without writing back: the shards are what the optimizer updates, this was a copy of them.
        if not is_gathered:
            p.partition(param_list=[p], has_been_updated=False)


def _refresh_stage_3(optimizer: Any) -> None:
    # DeepSpeed has no public call for this outside of its own checkpoints: the same copies that its step() makes, from
    # each flat master to the flat tensor that is computed with, whose views the parameters' shards must be again.
    flats = zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True)
    for i, (master, computed) in enumerate(flats):
        computed.data.copy_(master.data)
        groups = optimizer.fp16_partitioned_groups[i]
        for partition, view in zip(groups, optimizer.unflatten(computed, groups), strict=True):
            partition.data = view.data
    # Gathers the small parameters that stay gathered between steps: a collective.
    optimizer.checkpoint_event_epilogue()


def _fragments(module: nn.Module, optimizer: Any, stage: int, world: World) -> Iterator[_Fragment]:
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        p: Any = parameter
        if stage == 3:
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(p)]
            start = world.rank * size
            # Every rank's run has the same size; the last ones' end in padding, or are nothing else.
            size = min(size, p.ds_numel - start)
            if size > 0:
                flat = optimizer.fp32_partitioned_groups_flat[group]
                yield _Fragment(name, tuple(p.ds_shape), start, size, flat, offset)
        # None where no element of the parameter falls into this rank's partition.
        elif p._hp_mapping is not None:
            mapping = p._hp_mapping
            flat = _flat_partitions(optimizer)[mapping.param_group_index]
            in_parameter, in_flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield _Fragment(name, tuple(p.shape), in_parameter.start, in_parameter.numel, flat, in_flat.start)


def _flat_partitions(optimizer: Any) -> Any:
    # Stage 1 in bf16 is another class of DeepSpeed than stage 1 in fp32 and stage 2.
    bf16 = getattr(optimizer, "fp32_groups_flat_partition", None)
    return optimizer.single_partition_of_fp32_groups if bf16 is None else bf16


def _frozen(
    module: nn.Module, stage: int, world: World, *, everywhere: bool = False
) -> Iterator[tuple[str, tuple[int, ...], int, Tensor]]:
    """Parameters that no optimizer holds: (name, shape, start, view), on stages 1 and 2 of the first rank alone."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        p: Any = parameter
        if stage == 3:
            own = p.ds_tensor.detach().reshape(-1)
            start = world.rank * own.numel()
            if start < p.ds_numel:
                yield name, tuple(p.ds_shape), start, own[: p.ds_numel - start]
        elif world.is_main or everywhere:
            yield name, tuple(p.shape), 0, p.detach().view(-1)
