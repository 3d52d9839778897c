"""What ended an attempt, in words: a peer that is gone, NCCL, too little memory, kernels that are not deterministic.

All else is left as it is.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, RunError, VitDistError
from vit_dist.core.files import disk_problem, write_bytes
from vit_dist.core.run import names
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.engines._numerics import not_deterministic
from vit_dist.train.plan import Plan

# Neither gloo nor NCCL has an exception type for it: the text is all there is.
_PEER_GONE = re.compile(
    r"closed by peer|reset by peer|Broken pipe|timed?[ -]?out|ncclRemoteError|remote process|remote peer|\babort",
    re.IGNORECASE,
)
_OF_COLLECTIVES = re.compile(r"NCCL|gloo|TCPStore|socket|peer|Broken pipe|Timed out waiting|collective", re.IGNORECASE)
_ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+)")
_FREE = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
# The CPU's allocator raises a plain RuntimeError.
_CPU_ASKED = re.compile(r"DefaultCPUAllocator: .*?tried to allocate (\d+) bytes")


class PeerLostError(Exception):
    """Another rank is gone: no collective can complete, so this one ends at once."""


def explained(error: Exception, recipe: Recipe, run_dir: Path, world: World, plan: Plan | None = None) -> Exception:
    """The error itself, or one that says what it means for the run.

    Args:
        error: what was raised.
        recipe: of the run.
        run_dir: gets the summary of a GPU's memory.
        world: this rank's place, which is named: of all ranks' errors one is the cause.
        plan: of the run, where it is known.
    """
    if isinstance(error, VitDistError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return RunError(_out_of_memory(error, recipe, run_dir, world, plan))
    if isinstance(error, OSError):
        problem = disk_problem(error)
        of = f"{error.filename}: " if error.filename else ""
        return RunError(f"rank {world.rank} on {world.node}: {of}cannot be written: {problem}") if problem else error
    message = str(error).strip()
    # Of what an engine computes it says so itself (engines/_numerics.py); this is of all else, such as an evaluator.
    refusal = not_deterministic(message, "cuda" if torch.cuda.is_available() else "cpu", "recipe")
    if refusal:
        return ConfigError(refusal)
    if asked := _CPU_ASKED.search(message):
        return RunError(
            f"rank {world.rank} on {world.node}: the machine's memory does not suffice: {format_bytes(int(asked[1]))} "
            f"were asked for. {_advice(recipe, world, plan) or 'Take a machine with more memory'}"
        )
    if _OF_COLLECTIVES.search(message) and _PEER_GONE.search(message):
        whole = message if "NCCL" in message else message.splitlines()[0]
        return PeerLostError(f"a peer is gone ({whole})")
    if "NCCL" in message:
        # Whole: the cause ("Last error: ...") stands in its last lines.
        return RunError(
            f"rank {world.rank} on {world.node}: NCCL has failed on this rank itself; the other ranks end because of "
            f"it:\n{message}"
        )
    return error


def _out_of_memory(error: Exception, recipe: Recipe, run_dir: Path, world: World, plan: Plan | None) -> str:
    message = str(error)
    asked, free = _ASKED.search(message), _FREE.search(message)
    size = f": {asked[1]} were asked for" if asked else ""
    left = f", {free[2]} of {free[1]} are free" if free else ""
    detail = f"{size}{left}" or f": {message.splitlines()[0]}"
    summary = _write_summary(run_dir / names.OUT_OF_MEMORY / f"rank-{world.rank:05d}.txt", message)
    return (
        f"rank {world.rank} on {world.node}: the GPU's memory does not suffice{detail}. "
        f"{_advice(recipe, world, plan) or 'Take a GPU with more memory, or more GPUs'}"
        f"{f'. What the memory holds: {summary}' if summary else ''}"
    )


def _advice(recipe: Recipe, world: World, plan: Plan | None) -> str:
    less = "; ".join(_less_memory(recipe, world, plan))
    return less and f"What takes less: {less}"


def _less_memory(recipe: Recipe, world: World, plan: Plan | None) -> list[str]:
    """Settings of this recipe that would take less memory, each with its present value, the cheapest first."""
    engine, advice = recipe.engine, []
    if plan is not None and plan.micro_batch > 1:
        limit = max(1, plan.micro_batch // 2)
        advice.append(f"engine.max_micro_batch={limit} (the micro-batch is {plan.micro_batch})")
    if getattr(engine, "activation_checkpointing", None) == "none":
        advice.append("engine.activation_checkpointing=full (is none)")
    stage = getattr(engine, "zero_stage", None)
    # What one rank alone has it can share with none.
    if stage is not None and stage < 3 and world.size > 1:
        advice.append(f"engine.zero_stage={stage + 1} (is {stage}), which shares more among the ranks")
    if getattr(engine, "reshard_after_forward", None) is False and world.size > 1:
        advice.append("engine.reshard_after_forward=true (is false), which gathers weights a block at a time")
    return advice


def _write_summary(path: Path, message: str) -> str:
    """Where torch's summary of the memory now lies; '' where it could not be written."""
    # Whatever fails here is less than what is being told.
    with contextlib.suppress(Exception):
        write_bytes(str(path), f"{message}\n\n{_summary()}\n".encode())
        return str(path)
    return ""


def _summary() -> str:
    try:
        return str(torch.cuda.memory_summary())
    except Exception as error:
        return f"torch.cuda.memory_summary() has failed: {type(error).__name__}: {error}"
