"""What `vit-dist data bench` prints: a line for each stage, what is needed, and a verdict. No torch."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vit_dist.core.units import counted, format_bytes

if TYPE_CHECKING:
    from vit_dist.cli.data.bench_need import Need
    from vit_dist.config.schema import DataConfig
    from vit_dist.data.bench import Figures

_WIDTH = 80
_BLANK = "\0"
"""Stands for one at which no line may end."""
_LABEL = 11
_ENOUGH = 1.1
"""A stream that gives less than so many times what is needed has no room for a slow moment."""
_BUSY, _STARVED = 0.8, 0.1
_WHAT_IS_NEEDED = "With --recipe or --run it is told whether that is enough"
_SMALLER_PX = 320
_SMALLER = f"pack the images smaller (`vit-dist data pack --resize-shorter {_SMALLER_PX}`)"
_MOST_CORES = 512
"""That a machine has."""
_TOO_SMALL = (
    "No machine has so many cores: arithmetic says nothing of a model this small, whose steps take as long as it takes "
    "to launch them; --run RUN says what its devices take"
)


def table(name: str, figures: Figures, config: DataConfig) -> str:
    """The set, the machine, and a line for each stage."""
    each, size = format_bytes(figures.image_bytes), format_bytes(figures.range_bytes)
    images, shards = counted(figures.images, "image"), counted(figures.shards, "shard")
    told = f"{images} in {shards}, {each} an image, read in ranges of {size}"
    lines = [
        _fact("set", f"{name}: {told}"),
        _fact("machine", f"{figures.cpus} CPU{'' if figures.cpus == 1 else 's'} for this process{_busy(figures)}"),
        *([] if figures.remote else [_fact("page cache", _cache(figures))]),
        "",
        *_columns(_rows(figures, config)),
        "",
    ]
    if figures.bad:
        lines.append(
            _fact(
                "broken",
                f"{figures.bad} of {figures.tried} images that were tried cannot be decoded; training "
                f"replaces such: `vit-dist data verify --images` names them",
            )
        )
    return "\n".join(lines) + "\n"


def _busy(figures: Figures) -> str:
    if figures.share >= _BUSY:
        return ""
    return (
        f"; others are at work on it: a thread got {figures.share:.0%} of a CPU. Rates a core hold, those of whole "
        f"streams are lower than on a machine that is idle"
    )


def _cache(figures: Figures) -> str:
    held = "" if figures.cached is None else f"held {figures.cached:.0%} of the tars before; "
    if not figures.emptied:
        return f"{held}could not be emptied here (a file system in memory?): reads are of memory, not of a disk"
    streams = "streams keep the set in memory once it is read" if figures.in_memory else "streams read through it"
    return f"{held}emptied for the reads; {streams}"


def _rows(figures: Figures, config: DataConfig) -> list[tuple[str, ...]]:
    """(stage, rate, images a second, CPU ms an image, what else)."""
    rows: list[tuple[str, ...]] = [("stage", "rate", "images/s", "CPU ms", "")]
    for read in figures.reads:
        images = _number(read.mb_per_s * 1e6 / figures.image_bytes)
        each = f"{_number(read.range_ms)} ms a range"
        rows.append((f"read, {read.at_once} at once", f"{_number(read.mb_per_s)} MB/s", images, "", each))
    index_rate = _number(1000 * figures.index_samples / max(1e-9, figures.index_ms))
    each = f"{figures.index_samples:,.0f} samples each"
    rows.append(("index", f"{_number(figures.index_ms)} ms a shard", index_rate, "", each))
    for stage, cpu_ms in (
        ("decode alone", figures.decode_ms),
        (f"transform, {config.image_size} px", figures.streams[0].transform_ms),
    ):
        rows.append((stage, "a core", _number(1000 / max(1e-9, cpu_ms)), _number(cpu_ms), ""))
    for stream in figures.streams:
        starved = f"no bytes {stream.starved:.0%} of it" if stream.starved >= _STARVED else ""
        threads = f"{stream.threads} {_kind(figures, stream.threads)}"
        rows.append(("whole stream", threads, _number(stream.images_per_s), _number(stream.cpu_ms), starved))
    return rows


def _kind(figures: Figures, count: int) -> str:
    """What decodes: so many of them."""
    one, many = ("process", "processes") if figures.processes else ("thread", "threads")
    return one if count == 1 else many


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join((row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4])).rstrip()
        for row in rows
    ]


def verdict(figures: Figures, need: Need | None, devices: int) -> str:
    """What is needed, the cores that a device wants, and whether this is enough."""
    lines = []
    if need is not None:
        rate, cpu_ms = need.images_per_s, _number(figures.stream_of(devices).cpu_ms)
        mb = _number(rate * figures.image_bytes / 1e6)
        cores = cores_a_device(figures, need, devices)
        lines = [
            _fact("needs", f"{_number(rate)} images/s a device, {mb} MB/s ({need.source})"),
            _fact(
                "cores",
                f"{cores:,} a device: {_number(rate)} images/s x {cpu_ms} ms of CPU time, and one for the thread that "
                f"trains",
            ),
        ]
    word, text = judge(figures, need, devices)
    return "\n".join([*lines, _fact("verdict", f"{word.upper()}: {text}")]) + "\n"


def cores_a_device(figures: Figures, need: Need, devices: int) -> int:
    """CPU cores that keep one device fed, with one for the thread that trains."""
    return math.ceil(need.images_per_s * figures.stream_of(devices).cpu_ms / 1000) + 1


def judge(figures: Figures, need: Need | None, devices: int) -> tuple[str, str]:
    """'fine', 'read bound' or 'decode bound', and a sentence.

    Each device has a process, and a stream, of its own, on its part of the CPUs; what is read they share.
    """
    own = figures.stream_of(devices)
    given = f"{_number(own.images_per_s)} images/s with {own.threads} decode {_kind(figures, own.threads)}"
    reads = f"reading alone would bring {_number(figures.read_images_per_s)}"
    reading = not figures.in_memory and figures.read_images_per_s < 1000 * figures.cpus / max(1e-9, own.cpu_ms)
    if need is None:
        what = f"{reads}: {'reading' if reading else 'decoding'} is what limits it"
        return "read bound" if reading else "decode bound", f"{given}; {what}. {_WHAT_IS_NEEDED}"
    wanted = f"the {_number(need.images_per_s)} that the device needs"
    if devices > 1:
        own_cpus = figures.cpus // devices
        part = f"{own_cpus} of {figures.cpus} CPUs" if own_cpus else f"part of one of {figures.cpus} CPUs"
        wanted = f"the {_number(need.images_per_s)} that each of {devices:,} devices needs, on its {part}"
        reads += f" for all {devices:,}"
    # Of a set that stays in memory once it is read, no epoch but the first waits for that.
    too_slow = figures.read_images_per_s < need.images_per_s * devices and not figures.in_memory
    if own.images_per_s >= need.images_per_s and not too_slow:
        room = "" if own.images_per_s >= _ENOUGH * need.images_per_s else "; there is little to spare"
        return "fine", f"{given} of {wanted}{room}"
    if too_slow and (reading or own.images_per_s >= need.images_per_s):
        at = figures.best_read.at_once
        advice = ["Bring the set nearer", *_smaller(figures)]
        if at > 1:
            advice.insert(1, f"ask for more at once (data.read_threads={at} was the fastest)")
        return "read bound", f"{given} of {wanted}; {reads}. {_either(advice)}"
    also = ", which is too little as well" if too_slow else ""
    cores = cores_a_device(figures, need, devices)
    if cores > _MOST_CORES and need.assumed:
        return "decode bound", f"{given} of {wanted}; {reads}{also}. {_TOO_SMALL}"
    more = (
        f"Give a device {cores:,} CPU cores"
        if cores * devices > figures.cpus
        else f"Try more decode {_kind(figures, 2)}"
    )
    return "decode bound", f"{given} of {wanted}; {reads}{also}. {_either([more, *_smaller(figures)])}"


def _smaller(figures: Figures) -> list[str]:
    """The advice to pack images smaller, where they are not small already."""
    return [_SMALLER] if figures.shorter_side > _SMALLER_PX else []


def _either(advice: list[str]) -> str:
    return ", or ".join([", ".join(advice[:-1]), advice[-1]] if len(advice) > 1 else advice)


def facts(figures: Figures, need: Need | None, devices: int) -> dict[str, Any]:
    """Every number, for programs."""
    word, text = judge(figures, need, devices)
    return {
        **asdict(figures),
        "read_images_per_s": figures.read_images_per_s,
        "devices": devices,
        "need": asdict(need) if need is not None else None,
        "cores_a_device": cores_a_device(figures, need, devices) if need is not None else None,
        "verdict": word,
        "because": text,
    }


def _fact(label: str, text: str) -> str:
    """A labelled text, wrapped; what stands between backticks is to be copied, and stays in a line."""
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", _BLANK), text)
    wrapped = textwrap.fill(
        whole,
        _WIDTH,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapped.replace(_BLANK, " ")


def _number(value: float) -> str:
    """Three digits, or all of a large one."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
