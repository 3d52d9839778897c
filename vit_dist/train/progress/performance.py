"""How well the devices are used since the last log: what goes to TensorBoard and to the line that people look at.

Tags, units and meanings: docs/logs.md.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vit_dist.core.devices import device_of
from vit_dist.core.run import log as runlog
from vit_dist.core.run.lineage import multiply_adds
from vit_dist.core.world import World
from vit_dist.engines._collectives import all_gather_object
from vit_dist.train.progress.clock import Window
from vit_dist.train.progress.loading import Loading, Stall, find_stall, loading, loading_scalars

_FLOPS_PER_MAC = 6
"""Two for a multiply-add, three times: forward, and backward for inputs and for weights. What is computed again for
activation checkpointing does not count: it teaches nothing."""

_SLOW = 0.05
"""A rank is named on the live line where it is behind the median by this fraction of a step."""

_ALLOCATED = "peak_allocated_gib"


@dataclass(frozen=True)
class RankSample:
    """One rank's part in a window.

    Attributes:
        node: its host's name.
        step_s: a step's mean, wait for data included; NaN where no step was timed.
        before_sync_s: of that, what the rank does before it meets the others: data, transfer, forward.
        shares: of the time since the last log, by what it went to; together 1.
        memory: by name with the unit in it.
        loading: what its stream did.
    """

    node: str
    step_s: float
    before_sync_s: float
    shares: Mapping[str, float]
    memory: Mapping[str, float]
    loading: Loading


@dataclass(frozen=True)
class Performance:
    """What a window came to.

    Attributes:
        scalars: by tag.
        shown: by short name, for the live line.
        stall: what training waits for; None where it hardly waits.
    """

    scalars: Mapping[str, float]
    shown: Mapping[str, float | str]
    stall: Stall | None


def measure(window: Window, info: runlog.RunInfo, world: World, device: torch.device, *, trained: int) -> Performance:
    """What the ranks' windows come to together. A collective.

    Args:
        window: of this rank.
        info: of the run.
        world: its ranks, one device each.
        device: of this rank.
        trained: examples since the run began, whatever attempts there were.
    """
    samples = all_gather_object(_sample(window, world, device), world)
    scalars = {**_throughput(window, info, world, device, trained), **_over_ranks(samples, timed=window.steps > 0)}
    if window.first_step_s is not None:
        scalars[runlog.FIRST_STEP_S] = window.first_step_s
    if window.loader.seconds:
        scalars |= loading_scalars([sample.loading for sample in samples])
    stall = find_stall([sample.loading for sample in samples])
    return Performance(scalars, _shown(scalars, samples, stall), stall)


def describe_device(device: torch.device, precision: str) -> str:
    """For people: its name, and whether its peak is known."""
    if device.type != "cuda":
        return device.type
    name = torch.cuda.get_device_name(device)
    peak = _peak(device, precision)
    if peak is None:
        return f"{device.type} ({name}; its peak in {precision} is not in vit_dist/core/devices.py: no MFU)"
    return f"{device.type} ({name}, peak {peak / 1e12:,.4g} TFLOP/s in {precision})"


def _peak(device: torch.device, precision: str) -> float | None:
    known = device_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return known.peak(precision) if known is not None else None


def _throughput(
    window: Window, info: runlog.RunInfo, world: World, device: torch.device, trained: int
) -> dict[str, float]:
    rate, scalars = window.examples_per_s, dict[str, float]()
    if rate is not None:
        scalars[runlog.TRAIN_EXAMPLES_PER_S] = rate
        scalars[runlog.EXAMPLES_PER_S_PER_DEVICE] = rate / world.size
    if info.macs_per_image is None:
        return scalars
    flops_per_example = _FLOPS_PER_MAC * info.macs_per_image
    # From examples and not from time: a restart counts on, and what was trained twice after a crash counts once. Of a
    # branch those of its trunks count too, at what they cost there.
    spent = multiply_adds(info.lineage, info.macs_per_image, trained)
    if spent is not None:
        scalars[runlog.EXAFLOPS] = _FLOPS_PER_MAC * spent / 1e18
    if rate is not None:
        flops = flops_per_example * rate / world.size
        scalars[runlog.TFLOPS_PER_DEVICE] = flops / 1e12
        peak = _peak(device, info.precision)
        if peak is not None:
            scalars[runlog.MFU] = flops / peak
    return scalars


def _sample(window: Window, world: World, device: torch.device) -> RankSample:
    steps = window.steps or float("nan")
    wait, phases = window.seconds.get("wait", 0.0), window.phases
    spent = {
        "data_wait": wait,
        **phases,
        # Mixing images, agreeing with the other ranks, logging. On a GPU the phases are its own time, which the host's
        # need not cover.
        "other": max(0.0, window.seconds.get("train", 0.0) - sum(phases.values())),
        "evaluation": window.seconds.get("eval", 0.0),
        "checkpoint": window.seconds.get("save", 0.0),
    }
    total = max(1e-9, sum(spent.values()))
    return RankSample(
        world.node,
        window.training_s / steps,
        (wait + phases["transfer"] + phases["forward"]) / steps,
        {name: seconds / total for name, seconds in spent.items()},
        _memory(device),
        loading(window, world.node),
    )


def _memory(device: torch.device) -> dict[str, float]:
    """Peaks since the last call, and counts since the attempt began."""
    if device.type != "cuda":
        # Of the process since it began: the kernel resets it for nobody. Linux counts KiB.
        return {"peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    stats = torch.cuda.memory_stats(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {
        _ALLOCATED: stats["allocated_bytes.all.peak"] / 2**30,
        "peak_reserved_gib": stats["reserved_bytes.all.peak"] / 2**30,
        "alloc_retries": float(stats["num_alloc_retries"]),
        "ooms": float(stats["num_ooms"]),
    }


def _over_ranks(samples: Sequence[RankSample], *, timed: bool) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for tag, values in (
        (runlog.STEP_TIME, [sample.step_s for sample in samples]),
        (runlog.BEFORE_SYNC, [sample.before_sync_s for sample in samples]),
    ):
        if timed:
            scalars[f"{tag}/min_s"], scalars[f"{tag}/max_s"] = min(values), max(values)
            scalars[f"{tag}/median_s"] = statistics.median(values)
    if timed:
        scalars[runlog.SLOWEST_RANK] = float(_slowest(samples))
    for name in samples[0].shares:
        scalars[f"{runlog.TIME_SHARE}/{name}"] = statistics.fmean(sample.shares[name] for sample in samples)
    for name in samples[0].memory:
        values = [sample.memory[name] for sample in samples]
        scalars[f"{runlog.MEMORY}/{name}"] = max(values) if name.endswith("_gib") else sum(values)
    return scalars


def _slowest(samples: Sequence[RankSample]) -> int:
    # A step takes all ranks the same time, since they wait for each other: what tells them apart is what each does
    # before it waits.
    return max(range(len(samples)), key=lambda rank: samples[rank].before_sync_s)


def _shown(scalars: Mapping[str, float], samples: Sequence[RankSample], stall: Stall | None) -> dict[str, float | str]:
    shown: dict[str, float | str] = {}
    if runlog.TRAIN_EXAMPLES_PER_S in scalars:
        shown["img/s"] = scalars[runlog.TRAIN_EXAMPLES_PER_S]
    if runlog.MFU in scalars:
        shown["MFU"] = f"{scalars[runlog.MFU]:.1%}"
    # A CPU's fraction of one is no news.
    elif scalars.get(runlog.TFLOPS_PER_DEVICE, 0.0) >= 1:
        shown["TFLOP/s"] = scalars[runlog.TFLOPS_PER_DEVICE]
    shown["wait"] = f"{scalars[f'{runlog.TIME_SHARE}/data_wait']:.0%}" + (
        f" ({stall.cause})" if stall is not None else ""
    )
    if f"{runlog.MEMORY}/{_ALLOCATED}" in scalars:
        shown["GiB"] = scalars[f"{runlog.MEMORY}/{_ALLOCATED}"]
    if len(samples) > 1 and runlog.SLOWEST_RANK in scalars:
        rank = _slowest(samples)
        behind = samples[rank].before_sync_s - scalars[f"{runlog.BEFORE_SYNC}/median_s"]
        fraction = behind / max(1e-9, scalars[f"{runlog.STEP_TIME}/median_s"])
        if fraction >= _SLOW:
            shown["slowest"] = f"rank {rank} on {samples[rank].node} ({fraction:+.0%} of a step)"
    return shown
