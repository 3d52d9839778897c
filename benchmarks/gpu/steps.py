"""A training step of one model in a bare loop, the plain engine and ZeRO-1, in turns: time, MFU, memory, syncs.

The bare loop is what torch does without us: forward under autocast, loss, backward, clip, fused AdamW. First as it
comes, then with full activation checkpointing, then with every block compiled: in the engines by their own key.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities

from benchmarks.gpu.engines import LR, PLAIN, build_engine, build_model, make_batch, one_rank, zero
from benchmarks.gpu.kit import CLASSES, Kit, mfu
from vit_dist.cli.models.options import model_config, usual_size
from vit_dist.compare.memory import count
from vit_dist.config.schema import LossConfig
from vit_dist.data.decode import normalize
from vit_dist.engines import _compile
from vit_dist.models._base import repeated_blocks
from vit_dist.train.losses import make_loss

_TRACED = "ViT-L/16"
_ENGINES = {"plain": PLAIN, "zero1": zero(1)}


@dataclass
class Contest:
    """The ways to take a step on one model, and their modules."""

    model: str
    batch: int
    image_size: int
    steps: dict[str, Callable[[], Any]] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)


def measure(kit: Kit) -> None:
    """The case is MODEL:BATCH."""
    model, _, batch = kit.case.rpartition(":")
    contest = Contest(model, int(batch), usual_size(model_config(model)))
    with one_rank():
        _enter(kit, contest)
        _race(kit, contest, "eager")
        if kit.gpu:
            _memory(kit, contest)
            _census(kit, contest)
        _checkpointing(kit, contest)
        _compile_all(kit, contest)
        _race(kit, contest, "compiled")
        _kernels(kit, contest)


def _enter(kit: Kit, contest: Contest) -> None:
    """Build the three; their batch lies on the device."""
    images, targets = make_batch(kit, contest.batch, contest.image_size, CLASSES)
    bare = build_model(kit, contest.model, contest.image_size, CLASSES)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=LR, fused=True)
    loss = make_loss(LossConfig(name="sigmoid"))

    def bare_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kit.device.type, dtype=torch.bfloat16):
            logits = bare(normalize(images, torch.float32))
        loss(logits.float(), targets).backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()

    contest.steps["bare"], contest.modules["bare"] = bare_step, bare
    for name in _ENGINES:
        _enter_engine(kit, contest, name)


def _enter_engine(kit: Kit, contest: Contest, name: str, *, compiled: bool = False) -> None:
    """Build an engine, in place of the one of its name."""
    contest.steps.pop(name, None)
    contest.modules.pop(name, None)
    gc.collect()
    images, targets = make_batch(kit, contest.batch, contest.image_size, CLASSES)
    config = {**_ENGINES[name], "compile": compiled}
    engine = build_engine(
        kit, contest.model, config, micro_batch=contest.batch, image_size=contest.image_size, classes=CLASSES
    )
    assert engine.layout["compile"] is compiled, f"{name} {contest.model} was not compiled"
    contest.steps[name] = lambda engine=engine: engine.train_step([(images, targets)], LR)
    contest.modules[name] = engine.module


def _race(kit: Kit, contest: Contest, tag: str) -> None:
    """Three rounds in turns, after two steps that do not count."""
    for step in contest.steps.values():
        kit.seconds(step, 2)
    spent: dict[str, list[float]] = {name: [] for name in contest.steps}
    for turn in range(3):
        for name in list(contest.steps)[:: 1 if turn % 2 == 0 else -1]:
            spent[name].append(kit.seconds(contest.steps[name], 1 if kit.smoke else 4))
    medians = {name: statistics.median(seconds) for name, seconds in spent.items()}
    for name, seconds in medians.items():
        kit.record(
            f"{tag}, {name}",
            ms=1e3 * seconds,
            images_per_s=contest.batch / seconds,
            **mfu(contest.model, contest.batch / seconds),
            of_bare=medians["bare"] / seconds,
            spread=max(spent[name]) / min(spent[name]),
        )


def _memory(kit: Kit, contest: Contest) -> None:
    """What a step takes at its peak over what stays between steps, beside the activations that arithmetic expects."""
    counted = count(model_config(contest.model), num_classes=CLASSES, image_size=contest.image_size)
    expected = contest.batch * counted.activations / 2**30
    for name, step in contest.steps.items():
        kit.seconds(step, 1)
        gc.collect()
        torch.cuda.empty_cache()
        resident = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kit.seconds(step, 1)
        peak = torch.cuda.max_memory_allocated()
        kit.record(
            f"memory, {name}",
            step_GiB=(peak - resident) / 2**30,
            activations_by_arithmetic_GiB=expected,
            resident_of_all_GiB=resident / 2**30,
        )


def _census(kit: Kit, contest: Contest) -> None:
    """What the host asks of the device in a step, and how long the device is busy with it."""
    for name in ("plain", "zero1"):
        # Three steps less one: what the profiler and the clock do around the steps cancels.
        one, _ = _profiled(kit, contest.steps[name], 1)
        three, profiler = _profiled(kit, contest.steps[name], 3)
        kit.record(f"census, {name}", **{figure: (three[figure] - one[figure]) / 2 for figure in three})
        if contest.model == _TRACED:
            profiler.export_chrome_trace(str(kit.out / f"trace-{name}.json.gz"))


def _profiled(kit: Kit, step: Callable[[], Any], steps: int) -> tuple[dict[str, float], profile]:
    with profile(activities=supported_activities()) as profiler:
        kit.seconds(step, steps)
    events = profiler.key_averages()

    def calls(part: str) -> float:
        return sum(event.count for event in events if part in event.key)

    # Kernels and copies alone: the operators that launched them carry the same time once more.
    on_device = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    found = {
        "launches": calls("LaunchKernel"),
        "copies": calls("MemcpyAsync"),
        "reads_of_one_number": calls("aten::_local_scalar_dense"),
        "waits": calls("Synchronize"),
        "device_busy_ms": sum(event.self_device_time_total for event in on_device) / 1e3,
    }
    return found, profiler


def _kernels(kit: Kit, contest: Contest) -> None:
    """Write down where the time of a compiled step goes, kernel by kernel: OUT/kernels-MODEL.txt."""
    _, profiler = _profiled(kit, contest.steps["plain"], 1)
    order = "self_device_time_total" if kit.gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=50, max_name_column_width=100)
    (kit.out / f"kernels-{contest.model.replace('/', '-')}.txt").write_text(table)


def _checkpointing(kit: Kit, contest: Contest) -> None:
    module = contest.modules["plain"]
    module.set_activation_checkpointing("full")
    kit.seconds(contest.steps["plain"], 1)
    spent = kit.best(contest.steps["plain"], 1 if kit.smoke else 4, rounds=2)
    module.set_activation_checkpointing("none")
    kit.record("full checkpointing, plain", ms=1e3 * spent, images_per_s=contest.batch / spent)


def _compile_all(kit: Kit, contest: Contest) -> None:
    """Compile the blocks of the bare loop in place, and build the engines anew with `compile: true`."""
    # On a CPU blocks are traced and not compiled: that needs no C++ compiler, and its speed is of no interest.
    backend = "inductor" if kit.gpu else "eager"
    _compile.BACKEND = backend
    began = time.perf_counter()
    blocks = repeated_blocks(contest.modules["bare"])
    assert blocks, f"{contest.model} has no blocks"
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
    kit.seconds(contest.steps["bare"], 1)
    for name in _ENGINES:
        _enter_engine(kit, contest, name, compiled=True)
        kit.seconds(contest.steps[name], 1)
    kit.record("compiling", seconds=time.perf_counter() - began)
