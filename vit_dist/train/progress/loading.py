"""What the ranks' streams did since the last log, as scalars; and of a stall, which stage is its cause and what to do.

Tags, units and meanings: docs/logs.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vit_dist.core.log import WARNING, log
from vit_dist.core.run import log as runlog
from vit_dist.core.world import rank_cpus
from vit_dist.data.pace import Counts, Interval
from vit_dist.train.progress.clock import Window

STALL = 0.2
"""Fraction of the training time from which on waiting for data is a stall."""
_STALL_S = 1.0
"""Seconds that it has to come to: a window of a few short steps says nothing."""
_AT_WORK = 0.25
"""A stage that is at work, or waited for, for less of the time than this is not what all the others wait for."""
_STARVED_OF_CPU = 0.6
"""Fraction of a CPU below which a thread that decodes did not get one."""
_TELL_EVERY_S = 600.0

Cause = Literal["store", "decode", "host"]


@dataclass(frozen=True)
class Loading:
    """One rank's stream in a window.

    Attributes:
        node: its host's name.
        cpus: that the rank may keep busy.
        wait: fraction of the training time in which the rank waited for data.
        wait_s: seconds of that.
        busy: fraction of the training time in which a thread that decodes was at it, mean over these threads.
        starved: in which it waited for bytes.
        interval: what was counted.
    """

    node: str
    cpus: int
    wait: float
    wait_s: float
    busy: float
    starved: float
    interval: Interval

    @property
    def cause(self) -> Cause:
        """Which stage the others wait for: the one that is at work all the time where training waits."""
        if max(self.busy, self.starved) < _AT_WORK:
            return "host"
        return "decode" if self.busy >= self.starved else "store"


@dataclass(frozen=True)
class Stall:
    """Training waits for data.

    Attributes:
        cause: which stage is too slow.
        text: for people: how much, on which rank, why, the slowest shard, what to do.
    """

    cause: Cause
    text: str


def loading(window: Window, node: str) -> Loading:
    """One rank's stream in a window."""
    interval = window.loader
    # Threads go on while the loop evaluates or saves, which is no time of training: at most all of it counts.
    seconds = max(1e-9, window.training_s * interval.decoders)
    counts = interval.counts
    return Loading(
        node,
        rank_cpus(),
        window.data_wait,
        window.seconds.get("wait", 0.0),
        min(1.0, counts.decode_s / seconds),
        min(1.0, counts.waited_s / seconds),
        interval,
    )


def loading_scalars(ranks: Sequence[Loading]) -> dict[str, float]:
    """Values by tag, of all ranks."""
    total = Counts()
    for one in ranks:
        total.add(one.interval.counts)
    seconds = max(1e-9, max(one.interval.seconds for one in ranks))
    scalars = {
        runlog.DATA_READ: total.read_bytes / 1e6 / seconds,
        runlog.DATA_REQUESTS: total.requests,
        runlog.DATA_RETRIES: total.retries,
        runlog.DATA_REPLACED: total.replaced,
        # As memory is told: of the rank that holds the most.
        runlog.DATA_HELD: max(one.interval.held_bytes for one in ranks) / 2**20,
        runlog.DATA_DECODERS_BUSY: sum(one.busy for one in ranks) / len(ranks),
        runlog.DATA_DECODERS_STARVED: sum(one.starved for one in ranks) / len(ranks),
    }
    if total.asked_bytes:
        scalars[runlog.DATA_CACHE_HITS] = total.hit_bytes / total.asked_bytes
    if total.images:
        scalars[runlog.DATA_DECODE] = 1000 * total.decode_cpu_s / total.images
    return scalars


def find_stall(ranks: Sequence[Loading]) -> Stall | None:
    """What training waits for, on the rank that waits longest; None where it hardly waits."""
    rank = max(range(len(ranks)), key=lambda i: ranks[i].wait)
    worst = ranks[rank]
    if worst.wait < STALL or worst.wait_s < _STALL_S:
        return None
    who = f" (rank {rank} on {worst.node})" if len(ranks) > 1 else ""
    why, advice = {"store": _store, "decode": _decode, "host": _host}[worst.cause](worst)
    return Stall(
        worst.cause,
        f"training waits for data {worst.wait:.0%} of the time{who}; {why}. {advice}; `vit-dist data bench` measures "
        f"each stage",
    )


def _store(one: Loading) -> tuple[str, str]:
    interval, counts = one.interval, one.interval.counts
    seconds = max(1e-9, interval.seconds)
    again = f", {counts.retries:,} of them asked again" if counts.retries else ""
    why = (
        f"the store is the cause: what decodes has no bytes {one.starved:.0%} of the time, at "
        f"{counts.read_bytes / 1e6 / seconds:,.1f} MB/s in {counts.requests:,} requests{again}"
    )
    if interval.read.what:
        why += f"; the slowest read took {interval.read.seconds:.2g} s: {interval.read.what}"
    if counts.retries > counts.requests / 2:
        return why, (
            "Most requests failed at first: nothing in the recipe mends that; the lines on what was asked again say why"
        )
    return why, (
        f"Ask for more at once (data.read_threads, now {interval.readers}), bring the set nearer, or pack its images "
        f"smaller (`vit-dist data pack --resize-shorter 320`)"
    )


def _decode(one: Loading) -> tuple[str, str]:
    interval, counts = one.interval, one.interval.counts
    images = max(1, counts.images)
    kind, key = ("process", "data.decode_workers") if interval.processes else ("thread", "data.decode_threads")
    many = f"{kind}{'es' if interval.processes else 's'}"
    threads = f"{interval.decoders} {kind if interval.decoders == 1 else many}"
    why = (
        f"decoding is the cause: {threads} at it {one.busy:.0%} of the time, {1000 * counts.decode_s / images:,.1f} ms "
        f"an image, {1000 * counts.decode_cpu_s / images:,.1f} of them CPU time"
    )
    if interval.image.what:
        why += f"; the slowest image took {1000 * interval.image.seconds:,.0f} ms of CPU time: {interval.image.what}"
    smaller = "pack the images smaller (`vit-dist data pack --resize-shorter 320`)"
    if interval.decoders < one.cpus - 1:
        return why, f"Decode in more {many} ({key}, of {one.cpus} CPUs of the rank), or {smaller}"
    if counts.decode_cpu_s < _STARVED_OF_CPU * counts.decode_s:
        return why, (
            f"The {many} share {one.cpus} CPU{'' if one.cpus == 1 else 's'} with whatever else runs there: give each "
            f"rank more of its own (srun --cpus-per-task), or {smaller}"
        )
    return why, f"Give each rank more CPUs (now {one.cpus}; srun --cpus-per-task), or {smaller}"


def _host(one: Loading) -> tuple[str, str]:
    why = (
        f"the host is the cause: what decodes is idle {max(0.0, 1 - one.busy - one.starved):.0%} of the time, so "
        f"batches are planned or handed over too late"
    )
    return why, (
        "See what else takes this machine's CPUs, give each rank more of them (srun --cpus-per-task) or prepare more "
        "batches ahead (data.prefetch_batches)"
    )


class StallTeller:
    """Says that training stalls: when it begins to, when the cause is another one, and every ten minutes."""

    def __init__(self) -> None:
        self._cause, self._told = "", 0.0

    def tell(self, stall: Stall | None) -> None:
        """Of the window that was just logged; on the rank that logs."""
        if stall is None:
            return
        now = time.monotonic()
        if stall.cause != self._cause or now - self._told >= _TELL_EVERY_S:
            self._cause, self._told = stall.cause, now
            log(f"  {stall.text}", WARNING)
