"""torch's fully_shard (FSDP2) behind the engine protocol: each block is gathered and reduced as one, then the rest.

The optimizer steps on this rank's shards as plain tensors and not on torch's DTensors: an elementwise update needs no
more, whichever operations it is made of, and no step pays for their dispatch. One that needs rows asks for the rest of
a weight itself (optim/_across.py).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.data.decode import normalize
from vit_dist.engines._clip import layer_clip
from vit_dist.engines._compile import compile_blocks
from vit_dist.engines._fit import Wanted, wanted_of
from vit_dist.engines._layout import layout
from vit_dist.engines._numerics import computed
from vit_dist.engines._protocol import (
    EngineInputs,
    MicroBatches,
    OnGradients,
    PendingStep,
    exchanged,
    nan_if_over,
    set_lr,
)
from vit_dist.engines._slices import (
    AVERAGE,
    BUFFER,
    WEIGHT,
    EngineState,
    Scalars,
    Slice,
    Source,
    buffers,
    forget_missing,
    load_whole,
    restore_scalars,
    split_state,
)
from vit_dist.engines.fsdp import FSDPConfig
from vit_dist.models._base import repeated_blocks
from vit_dist.optim._across import RowOptimizer

# torch 2.14 has renamed it, and warns where the old name is called.
_all_gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
# What torch says where a weight is read that is not gathered.
_NOT_GATHERED = "mixed torch.Tensor and DTensor"


class FSDPEngine:
    """See engines/_protocol.Engine."""

    def __init__(self, config: FSDPConfig, inputs: EngineInputs) -> None:
        self._config, self._in = config, inputs
        self.device, self.timer, self.module = inputs.device, inputs.timer, inputs.model
        self._dtype = torch.bfloat16 if inputs.precision == "bf16" else torch.float32
        names = {id(p): name for name, p in inputs.model.named_parameters()}
        # Before fully_shard gives those that it is applied to a class of their own.
        blocks = _callable_blocks(inputs.model)
        self._units = _sharded(inputs.model, config, inputs)
        self._root: Any = self._units[-1]
        self._shards = list(_shards(inputs.model, inputs.world))
        self._optimizer, self._stepped = inputs.optimizer, False
        _step_on_shards(self._optimizer, names, self._shards)
        if isinstance(self._optimizer, RowOptimizer):
            self._optimizer.across = RowsOfRanks(self._shards, inputs.world)
        self.average = inputs.averages([shard.local for shard in self._shards if shard.local.requires_grad])
        # torch keeps whole sums in the dtype in which ranks add them up: in bf16 they would be rounded here already.
        self._whole_sums = not config.reshard_after_forward and config.reduce_dtype == "fp32"
        self._layers, self._last = layer_clip(inputs.clip_layers, inputs.clip), True
        self._compiled = compile_blocks(config, inputs, self.module, self._logits, gathered=blocks)
        self._reshard()
        self.layout: dict[str, Any] = {
            "engine": "fsdp",
            "reshard_after_forward": config.reshard_after_forward,
            **layout(config, inputs, compiled=bool(self._compiled)),
        }
        kept = "resharded" if config.reshard_after_forward else "gathered"
        self.description = (
            f"torch {torch.__version__.partition('+')[0]} (FSDP2, {len(self._units) - 1} blocks, {kept} after the "
            f"forward pass), {inputs.precision}{self._compiled.described}"
        )

    @computed
    def train_step(
        self,
        micro_batches: MicroBatches,
        lr: float,
        *,
        skip_over: float = math.inf,
        on_gradients: OnGradients | None = None,
    ) -> PendingStep:
        """See Engine."""
        self.module.train()
        for shard in self._shards:
            shard.parameter.grad = shard.local.grad = None
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with _in_words():
            for i, (images, targets) in enumerate(micro_batches):
                last = i == len(micro_batches) - 1
                self._expect(last=last)
                with self.timer.phase("transfer"):
                    images, targets = self._input(images), targets.to(self.device, non_blocking=True)
                with self.timer.phase("forward"):
                    loss = self._in.loss(self.module(images).float(), targets) / len(micro_batches)
                    total += loss.detach()
                with self.timer.phase("backward"):
                    torch.autograd.backward(nan_if_over(loss, total, skip_over, self._in.world) if last else loss)
        self._reshard()
        if on_gradients is not None:
            on_gradients(self._gradients())
        with self.timer.phase("optimizer"):
            loss_mean, squares = self._agree(total)
            norm = squares.sum().sqrt().float()
            finite = torch.isfinite(norm)
            if self._layers is not None:
                self._layers.scale(self._named_gradients(), squares)
            elif self._in.clip is not None:
                torch.nn.utils.clip_grads_with_norm_([s.local for s in self._shards], self._in.clip, norm)
            set_lr(self._optimizer, lr)
            # As the plain engine does, and for its reasons: from the second step on a fused kernel itself leaves
            # weights and moments as they are, and nobody waits for the device.
            if self._stepped and getattr(self._optimizer, "_step_supports_amp_scaling", False):
                self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
                self._optimizer.step()
            elif bool(finite):
                self._optimizer.step()
                self._stepped = True
        return PendingStep(loss_mean, norm, finite)

    def _expect(self, *, last: bool) -> None:
        """What the next forward and backward pass leave behind."""
        if last == self._last:
            return
        self._last = last
        self._root.set_is_last_backward(last)
        # Until the last micro-batch no weight changes, and no rank needs another's gradients.
        if not self._config.reshard_after_forward:
            self._root.set_reshard_after_backward(last)
        if self._whole_sums:
            self._root.set_requires_gradient_sync(last)

    def _agree(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over the ranks, and squares of the gradient's norm, of which each has a part. A collective.

        Returns:
            The latter as [1], or [layers] where each is clipped by its own.
        """
        named = self._named_gradients()
        if self._layers is None:
            own = torch.nn.utils.get_total_norm([g for _, g in named]).to(self.device, torch.float64)[None].square()
        else:
            own = self._layers.squares(named)
        # One sum for both, in double precision: see mean_over_ranks.
        sums = torch.cat([(total / self._in.world.size)[None], own])
        if self._in.world.size > 1:
            torch.distributed.all_reduce(sums)
        return sums[0], sums[1:]

    def _named_gradients(self) -> list[tuple[str, Tensor]]:
        return [(shard.name, shard.local.grad) for shard in self._shards if shard.local.grad is not None]

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Each gradient as a whole. A collective a parameter."""
        for shard in self._shards:
            gradient: Any = shard.parameter.grad
            # None on every rank, or on none.
            if gradient is not None:
                yield shard.name, gradient.full_tensor()

    @computed
    def predict(self, images: Tensor) -> Tensor:
        """See Engine."""
        self.module.eval()
        with torch.no_grad(), _in_words():
            logits = self._logits(images)
        self._reshard()
        return logits.float()

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(self._input(images))
        return logits

    def _input(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return normalize(images, self._dtype, self._in.memory_format)

    def _reshard(self) -> None:
        """Between steps every rank holds its shards alone: what was gathered from them would soon be out of date."""
        for unit in self._units:
            unit.reshard()
        for shard in self._shards:
            gradient: Any = shard.parameter.grad
            shard.local.grad = None if gradient is None else gradient.to_local()

    def state(self) -> EngineState:
        """See Engine."""
        slices: list[Slice] = []
        scalars: Scalars = {}
        for shard in self._shards:
            moments, scalars[shard.name] = split_state(self._optimizer.state.get(shard.local, {}))
            # Of a weight with fewer rows than there are ranks the last ones hold nothing.
            if shard.local.numel():
                held = {WEIGHT: shard.local, **moments}
                if self.average is not None and shard.local.requires_grad:
                    held[AVERAGE] = self.average.of(shard.local)
                slices += [
                    Slice(kind, shard.name, shard.shape, shard.start, tensor.detach().reshape(-1))
                    for kind, tensor in held.items()
                ]
        if self.average is not None:
            slices += self.average.slices(is_main=self._in.world.is_main)
        # Buffers are not sharded: rank 0 writes its copy of them.
        if self._in.world.is_main:
            slices += [
                Slice(BUFFER, name, tuple(b.shape), 0, b.detach().reshape(-1)) for name, b in buffers(self.module)
            ]
        return EngineState(slices, scalars)

    def wanted(self) -> Wanted:
        """See Engine."""
        return wanted_of(self.module, self._optimizer, masters=torch.float32, averages=self.average is not None)

    def load(self, source: Source) -> None:
        """See Engine. Weights that are computed with are gathered anew in the next forward pass."""
        self._stepped = False
        for shard in self._shards:
            _fill(shard.local, source, WEIGHT, shard)
            state = self._optimizer.state[shard.local] if shard.local.requires_grad else {}
            forget_missing(state, source, shard.name)
            for kind in source.kinds(shard.name):
                # torch's optimizers make their moments at the first step; a fresh one has none to fill yet.
                if kind not in state:
                    state[kind] = torch.zeros_like(shard.local.detach())
                _fill(state[kind], source, kind, shard)
            restore_scalars(state, source.scalars(shard.name), shard.local, self._optimizer.defaults)
        for name, buffer in buffers(self.module):
            load_whole(buffer, source, BUFFER, name)
        if (average := self.average) is not None:
            trained = (shard for shard in self._shards if shard.local.requires_grad)
            average.load(source, ((s.name, s.start, average.of(s.local).view(-1)) for s in trained))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """See Engine. Shards are gathered anew in each forward pass."""
        return exchanged(self.average, self._reshard)

    def replicated(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine. Of each weight there is one copy in all, of which every rank has a part."""
        yield from self.module.named_buffers()

    def master_mismatch(self) -> str:
        """See Engine. Weights that are computed with live no longer than a step, and are rounded anew in each."""
        return ""


@dataclass(frozen=True)
class _Shard:
    """A rank's rows of a weight: elements [start, start + local.numel()) of the flattened tensor.

    `parameter` is torch's DTensor, as it stands in the model between steps; `local` has the same memory.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    parameter: nn.Parameter
    local: nn.Parameter


def _shards(model: nn.Module, world: World) -> Iterator[_Shard]:
    for name, parameter in model.named_parameters():
        sharded: Any = parameter
        shape = tuple(sharded.shape)
        # Whole rows are dealt out, the same number to each rank as far as they go.
        rows = -(-shape[0] // world.size)
        local = nn.Parameter(sharded.to_local().detach(), requires_grad=parameter.requires_grad)
        start = min(world.rank * rows, shape[0])
        assert len(local) == min(rows, shape[0] - start), (name, shape, local.shape)
        yield _Shard(name, shape, start * math.prod(shape[1:]), parameter, local)


class RowsOfRanks:
    """See optim/_across.Across: a rank has the same number of rows of each weight as the others, as far as they go."""

    def __init__(self, shards: list[_Shard], world: World) -> None:
        self._shards, self._world = {id(shard.local): shard for shard in shards}, world

    def summed(self, own: Tensor) -> Tensor:
        """See Across."""
        if self._world.size > 1:
            torch.distributed.all_reduce(own)
        return own

    def whole(self, weight: Tensor, own: Tensor) -> Tensor:
        """See Across."""
        rows, *sides = self._shards[id(weight)].shape
        most = -(-rows // self._world.size)
        if self._world.size == 1:
            return own
        padded = own.new_zeros(most, *sides)
        padded[: len(own)] = own
        gathered = own.new_empty(most * self._world.size, *sides)
        _all_gather(gathered, padded)
        return gathered[:rows]

    def own(self, weight: Tensor, whole: Tensor) -> Tensor:
        """See Across."""
        begin = self._world.rank * -(-len(whole) // self._world.size)
        return whole[begin : begin + len(weight)]


def _fill(tensor: Tensor, source: Source, kind: str, shard: _Shard) -> None:
    if tensor.numel():
        values = source.read(kind, shard.name, shard.start, shard.start + tensor.numel())
        tensor.detach().copy_(values.view(tensor.shape))


def _step_on_shards(optimizer: torch.optim.Optimizer, names: dict[int, str], shards: list[_Shard]) -> None:
    """Give an optimizer that has not stepped yet this rank's shards, in place of the weights that it was built with."""
    assert not optimizer.state
    local = {shard.name: shard.local for shard in shards}
    for group in optimizer.param_groups:
        group["params"] = [local[names[id(p)]] for p in group["params"]]


def _sharded(model: nn.Module, config: FSDPConfig, inputs: EngineInputs) -> list[FSDPModule]:
    """Shard a model in place, which moves it to the device: its blocks one by one, and last itself. A collective."""
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise ConfigError(
                f"engine.name=fsdp: the weight {name} is a single number without dimensions, which cannot be dealt out "
                f"to ranks; give it the shape [1], or use engine.name=deepspeed or plain"
            )
        # Masters are fp32, and shards whole rows of what lies in one piece.
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32, memory_format=torch.contiguous_format)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if inputs.precision == "bf16" else None,
        reduce_dtype=torch.bfloat16 if config.reduce_dtype == "bf16" else torch.float32,
    )
    everyone = torch.distributed.group.WORLD
    assert everyone is not None
    mesh = DeviceMesh.from_group(everyone, inputs.device.type)
    units: list[FSDPModule] = []
    for block in blocks_of(model):
        units.append(
            fully_shard(block, mesh=mesh, reshard_after_forward=config.reshard_after_forward, mp_policy=policy)
        )
    # What is in no block is needed at both ends of a pass: it stays gathered from the one to the other.
    units.append(fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy))
    return units


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What is gathered as one, each: blocks that have a forward pass, and share no weight with what is outside."""
    places = _places(model)
    return [
        block
        for block in _callable_blocks(model)
        if all(places[weight] == count for weight, count in _places(block).items())
    ]


def _callable_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks that have a forward pass."""
    return [block for block in repeated_blocks(model) if not isinstance(block, nn.ModuleList | nn.ModuleDict)]


def _places(module: nn.Module) -> Counter[int]:
    """How often each weight of a module stands in it."""
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if _NOT_GATHERED not in str(error):
            raise
        raise ConfigError(
            "engine.name=fsdp: this model reads a weight of a block outside the block's own forward pass, where it is "
            "not gathered; let the block itself use it (docs/plugins.md), or use engine.name=deepspeed or plain: "
            f"{str(error).splitlines()[0]}"
        ) from error
