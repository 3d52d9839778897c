"""The directory of a run's checkpoints: which are intact, which may go. What lies in it: core/run/checkpoints.py."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_dist.core.files import remove_tree
from vit_dist.core.metrics import ACCURACY, Metric
from vit_dist.core.run.checkpoints import committed, leftovers, read_marker, removing_name, step_name, step_of
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.train.checkpoint.format import checksum

FETCHING = ".fetch-"
"""Begins the name of a checkpoint that is being fetched."""


@dataclass(frozen=True)
class Saved:
    """What retention looks at: a checkpoint's step, the examples before it, what was measured at it, and its parts.

    `parts` has the bytes of each part's file by its name.
    """

    step: int
    examples: int
    metrics: dict[str, float]
    parts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        keep: so many of the newest.
        every_examples: the first at or past each multiple of this many examples, for ever; None: none.
        best: the one with the best value of this metric, of those at which it was measured.
        rule: how that metric is read; values that are not finite, or outside its range, are never the best.
    """

    keep: int = 2
    every_examples: int | None = None
    best: str = ""
    rule: Metric = ACCURACY

    def steps_to_keep(self, saved: Sequence[Saved]) -> set[int]:
        """The steps that stay, of those given."""
        ordered = sorted(saved, key=lambda s: s.step)
        steps = {s.step for s in ordered[-self.keep :]}
        if self.every_examples:
            multiple = 0
            for s in ordered:
                if s.examples // self.every_examples > multiple:
                    steps.add(s.step)
                multiple = s.examples // self.every_examples
        measured = [s for s in ordered if self.best in s.metrics]
        values = [s.metrics[self.best] for s in measured]
        best = self.rule.best([math.nan if self.rule.problem(value) else value for value in values])
        if best is not None:
            steps.add(measured[best].step)
        return steps


def verify_files(path: Path, marker: dict[str, Any], world: World) -> str:
    """What is wrong with the files that fall to this rank to check, or ''. All ranks together check each file once."""
    for name in sorted(marker["files"])[world.rank :: world.size]:
        entry, file = marker["files"][name], path / name
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, {entry['bytes']} were written"
            if checksum(file) != entry["xxh128"]:
                return f"{name} does not match its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, KeyError, TypeError) as error:
            return f"{name} cannot be read: {error}"
    return ""


def missing_part(parts: Mapping[str, int], found: Mapping[str, int | None]) -> str:
    """The first file of a checkpoint that is not there, or has another size, or ''.

    Args:
        parts: bytes of each, by name, as the marker says.
        found: bytes of each file that is there; None: not known.
    """
    for name, size in sorted(parts.items()):
        if name not in found:
            return f"{name} is missing"
        if found[name] not in {None, size}:
            return f"{name} has {found[name]:,} bytes, {size:,} were written"
    return ""


def summaries(root: Path, damaged: Collection[int] = ()) -> list[Saved]:
    """What retention needs to know of every committed checkpoint that looks whole: its marker, and sizes of its parts.

    Args:
        root: of the run's checkpoints.
        damaged: steps of those that do not count, however they look.
    """
    saved = []
    for path in committed(root):
        marker, problem = read_marker(path)
        summary = None if problem else saved_of(marker)
        if summary is not None and summary.step not in damaged and not missing_part(summary.parts, _sizes(path)):
            saved.append(summary)
    return saved


def _sizes(folder: Path) -> dict[str, int | None]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    return {}


def saved_of(marker: dict[str, Any]) -> Saved | None:
    """What retention needs to know of the checkpoint with this marker; None where it does not say."""
    state = marker["state"]
    if "step" not in state or "position" not in state:
        return None
    parts = {name: entry["bytes"] for name, entry in marker["files"].items()}
    return Saved(state["step"], state["position"], dict(marker.get("metrics", {})), parts)


def prune(root: Path, retention: Retention, damaged: Collection[int] = ()) -> None:
    """Remove what retention lets go. A damaged one takes no whole one's place, and is left for people to look at.

    Args:
        root: of the run's checkpoints.
        retention: which of those that are whole stay.
        damaged: steps that were found damaged in a way that their sizes do not tell.

    Raises:
        OSError: a directory cannot be removed.
    """
    saved = summaries(root, damaged)
    keep = retention.steps_to_keep(saved)
    for s in saved:
        if s.step not in keep:
            remove(root / step_name(s.step))


def remove(path: Path) -> None:
    """Remove a checkpoint, if it is there; of a symbolic link the link, and nothing of what it leads to.

    Raises:
        OSError: it cannot be renamed. What cannot be removed after that is left for `sweep`.
    """
    # Renamed first: half removed, it must not look committed, nor be left where nobody looks for it.
    doomed = path.with_name(removing_name(path.name, secrets.token_hex(4)))
    with contextlib.suppress(FileNotFoundError):
        path.rename(doomed)
    remove_tree(doomed)


def drop_after(root: Path, step: int) -> None:
    """Remove the checkpoints of an abandoned trajectory: all beyond `step`."""
    for path in committed(root):
        if (other := step_of(path.name)) is not None and other > step:
            remove(path)


def sweep(root: Path) -> None:
    """Remove what attempts left that died while they wrote, fetched or removed a checkpoint."""
    for old in (*leftovers(root), *root.glob(f"{FETCHING}*")):
        remove_tree(old)


def no_disk_headroom(root: Path, needed: int) -> str:
    """Why `needed` bytes do not fit on the disk of the checkpoints, or ''."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        return f"{root}: {error.strerror}"
    return f"{format_bytes(free)} are free, {format_bytes(needed)} are needed" if free < needed else ""
