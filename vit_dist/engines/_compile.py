"""Blocks compiled by torch.compile, each in its place: tried before the first step, by all ranks or by none.

A block keeps its name, its weights and its hooks; what is around it (stem, head, loss, an engine's sums) stays eager.
One graph is made for each kind of block, of a training step with micro-batches of one size. Nothing is compiled later:
evaluation, and a shape that comes unforeseen, run eagerly, so that no rank can be held up, or fail, by itself. Where
activations are recomputed, that is done around the graph: by torch's checkpoint, which sets the generators back.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.core.log import WARNING, log
from vit_dist.core.terminal import cut
from vit_dist.core.units import format_seconds
from vit_dist.engines import EngineConfig
from vit_dist.engines._collectives import all_gather_object
from vit_dist.engines._compile_gathered import GatheredBlocks
from vit_dist.engines._numerics import attention_kernel
from vit_dist.engines._protocol import EAGER, Compilation, EngineInputs
from vit_dist.models._base import repeated_blocks

BACKEND = "inductor"
"""torch's compiler. Others of torch need neither a C++ compiler nor Triton, and show all but the kernels."""
_MOST_GRAPHS = 256
"""Stochastic depth makes each block a kind of its own. torch would stop at 8, and run the others eagerly unasked."""


def is_wanted(config: EngineConfig, device: torch.device) -> bool:
    """Whether blocks are to be compiled; `auto` is so on GPUs, where the engine is for it."""
    return device.type == "cuda" and config.compiles_on_gpus if config.compile == "auto" else config.compile


def compile_blocks(
    config: EngineConfig,
    inputs: EngineInputs,
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    *,
    gathered: list[nn.Module] | None = None,
) -> Compilation:
    """Compile the blocks of a model where that is wanted, and try them. A collective.

    What cannot be compiled on one rank is compiled on none, in words. Weights, their gradients, buffers and generators
    are as before afterwards.

    Args:
        config: of the engine.
        inputs: of the engine.
        module: the model as it will train: on its device, in its dtype.
        forward: uint8 images [b, 3, S, S] on the device -> logits, as in a step.
        gathered: the blocks, where fully_shard has been applied to them; None: those that the model has.
    """
    if inputs.image_size is None or not is_wanted(config, inputs.device):
        return EAGER
    began, world = time.monotonic(), inputs.world
    blocks = _Blocks(repeated_blocks(module)) if gathered is None else GatheredBlocks(gathered, _MOST_GRAPHS)
    if not len(blocks):
        if world.is_main:
            log(f"  {type(module).__name__}: no blocks found to compile (modules of one class in a list); all is eager")
        return EAGER
    if world.is_main:
        log(f"  compiling {len(blocks)} blocks, which may take minutes where torch has none of them in its cache")
    problems = all_gather_object(_problem(blocks, config, inputs, module, forward), world)
    failed = [rank for rank, problem in enumerate(problems) if problem]
    if failed:
        blocks.drop()
        if world.is_main:
            log(_told(failed, problems), WARNING)
        return EAGER
    seconds = time.monotonic() - began
    if world.is_main:
        log(f"  compiled {len(blocks)} blocks in {format_seconds(seconds)}; kept in {_cache()} for the next start")
    inputs.timer.compiling_s = seconds
    return Compilation(len(blocks))


class _Blocks:
    """Blocks that no rank waits for: all are tried in one forward and backward pass, and compiled with their hooks."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def compile(self, **settings: Any) -> None:
        for block in self._blocks:
            block.compile(**settings)

    def attempt(self, forward: Callable[[], Tensor], trained: list[nn.Parameter]) -> None:
        # All graphs are made here. torch.compile has an argument of this name too, but not before torch 2.12.
        with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS):
            # Not backward(): nothing is added to .grad, and the hooks by which engines sum over ranks stay silent.
            torch.autograd.grad(forward().float().sum(), trained, allow_unused=True)

    def drop(self) -> None:
        for block in self._blocks:
            block._compiled_call_impl = None


def _problem(
    blocks: _Blocks | GatheredBlocks,
    config: EngineConfig,
    inputs: EngineInputs,
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
) -> str:
    """Compile and try: why it does not work on this rank, or ''."""
    options: dict[str, Any] = {
        # Dropout draws what it draws in eager blocks: another value of engine.compile changes rounding alone.
        "fallback_random": True,
        # Kernels that add in another order are not chosen by how fast they were on the day.
        "deterministic": config.deterministic,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            blocks.compile(dynamic=False, backend=BACKEND, options=options if BACKEND == "inductor" else None)
            _try(blocks, config, inputs, module, forward)
        return ""
    # torch, Triton and C++ compilers raise what they like; what keeps a step itself from being computed will say so
    # again when the step is taken.
    except Exception as error:
        return f"{type(error).__name__}: {_cause(str(error))}"
    finally:
        _release_workers()


def _try(
    blocks: _Blocks | GatheredBlocks,
    config: EngineConfig,
    inputs: EngineInputs,
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
) -> None:
    """Forward and backward passes as in a step, which leave nothing behind."""
    assert inputs.image_size is not None
    device, training = inputs.device, module.training
    images = torch.zeros(inputs.micro_batch, 3, inputs.image_size, inputs.image_size, dtype=torch.uint8, device=device)
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            module.train()
            trained = [p for p in module.parameters() if p.requires_grad]
            with attention_kernel(config.attention):
                blocks.attempt(lambda: forward(images), trained)
    finally:
        module.train(training)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _cause(message: str) -> str:
    """The part of torch's message that says what is wrong, in one line."""
    lines = [line.strip() for line in message.partition("Set TORCHDYNAMO_VERBOSE")[0].splitlines() if line.strip()]
    return cut(" ".join(lines))


def _told(failed: list[int], problems: list[str]) -> str:
    ranks = "rank " + str(failed[0]) if len(failed) == 1 else f"{len(failed)} of {len(problems)} ranks"
    return (
        f"  blocks could not be compiled on {ranks}, so that all ranks run eagerly: slower, and rounded otherwise than "
        f"compiled ones. Rank {failed[0]}: {problems[failed[0]]}. To try no more: engine.compile=false"
    )


def _cache() -> str:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return str(cache_dir())


def _release_workers() -> None:
    """End the processes in which torch compiles: one a CPU, with torch in memory, and nothing left to do."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch._inductor.async_compile import shutdown_compile_workers

        shutdown_compile_workers()
