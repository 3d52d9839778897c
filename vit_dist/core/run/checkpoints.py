"""The checkpoints of a run by name: which are committed, which is the newest, what a marker holds. No torch.

checkpoints/step-0000001000/  a checkpoint
  rank-00000.safetensors      a rank's part
  COMMITTED.json              the marker, written last: what the parts are, the train state, what wrote it
checkpoints/.step-....partial/  one that is being written, or was when its attempt died
checkpoints/.removing-step-.../  one that is being removed, or was when its attempt died
No `latest` file exists to point at the wrong one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_dist.core.errors import CheckpointError
from vit_dist.core.run import records
from vit_dist.core.run.marker import check_relations
from vit_dist.core.run.names import CHECKPOINTS, MARKS_OF_A_RUN, RECIPE
from vit_dist.core.small_files import DamagedError, checked, is_count, parse_json, read_small, shown

MARKER = "COMMITTED.json"
LOG = "log"
"""Entry of a marker: events that could not be written to the log before it; only there if there are some."""
FORMAT = 2
CHECKSUM = "xxh128"
"""The marker's entry with a checksum of all others; markers of before there was one have none."""
_STEP = "step-"
_PARTIAL = ".partial"
_REMOVING = ".removing-"
_RANK_FILE = re.compile(r"rank-\d{5,9}\.safetensors", re.ASCII)
_MAPPINGS = ("layout", "recipe", "state", "files")


def step_name(step: int) -> str:
    """Name of a checkpoint's directory."""
    return f"{_STEP}{step:010d}"


def step_of(name: str) -> int | None:
    """The step that a directory's name stands for; None for any other name."""
    digits = name.removeprefix(_STEP)
    if not (name.startswith(_STEP) and digits.isascii() and digits.isdigit()):
        return None
    step = int(digits)
    # Names sort as their steps do, and a step has one name: step-9 is none of ours.
    return step if step_name(step) == name and is_count(step) else None


def partial_name(step: int, token: str) -> str:
    """Name of the directory in which the attempt with this token writes the checkpoint of a step."""
    return f".{step_name(step)}.{token[:8]}{_PARTIAL}"


def removing_name(name: str, token: str) -> str:
    """Name under which a checkpoint's directory is removed: from the rename on it does not count."""
    return f"{_REMOVING}{name}.{token}"


def rank_file(rank: int) -> str:
    """Name of a rank's part."""
    return f"rank-{rank:05d}.safetensors"


def committed(root: Path) -> list[Path]:
    """Committed checkpoints in the directory `root`, the newest step first."""
    return sorted(
        (p.parent for p in root.glob(f"{_STEP}*/{MARKER}") if step_of(p.parent.name) is not None), reverse=True
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint or a run, also one that ended before it wrote its identity."""
    return path.is_dir() and any((path / mark).is_file() for mark in (MARKER, RECIPE, *MARKS_OF_A_RUN))


def no_checkpoint(run_dir: Path, to: str) -> CheckpointError:
    """The error of a run of which somebody wants a checkpoint before there is one.

    Args:
        run_dir: of the run.
        to: what for, such as 'evaluate'.
    """
    return CheckpointError(
        f"{run_dir}: no checkpoint in it to {to}; train it first (`vit-dist status {run_dir}` says how it stands)"
    )


def partial(root: Path) -> list[Path]:
    """Checkpoints in the directory `root` that are being written, or were when their attempt died."""
    return list(root.glob(f".{_STEP}*{_PARTIAL}"))


def leftovers(root: Path) -> list[Path]:
    """What attempts left in the directory `root` that died while they wrote or removed a checkpoint."""
    # A directory gets its name with its marker in it, by a rename: one without was half removed.
    unmarked = (p for p in root.glob(f"{_STEP}*") if step_of(p.name) is not None and not (p / MARKER).exists())
    return [*partial(root), *root.glob(f"{_REMOVING}{_STEP}*"), *unmarked]


def parse_marker(content: str | bytes) -> tuple[dict[str, Any], str]:
    """A marker from its text, wherever that came from, and what is wrong with it or ''.

    The names of files in it are those of ranks' parts and nothing else: they become paths.
    """
    try:
        # Losses and metrics that it holds may be NaN.
        marker = checked(parse_json(content, finite=False), {})
        if marker["format"] != FORMAT:
            return {}, f"it is of format {shown(marker['format'])}, this version reads {FORMAT}"
        for key in _MAPPINGS:
            if not isinstance(marker[key], dict):
                raise DamagedError(f"{key} is not a mapping")
        if CHECKSUM in marker and marker[CHECKSUM] != _checksum(marker):
            raise DamagedError("its checksum does not fit its content")
        foreign = next((name for name in marker["files"] if not _RANK_FILE.fullmatch(name)), None)
        if foreign is not None:
            raise DamagedError(f"{foreign[:100]!r} is not the name of a rank's part, such as {rank_file(0)}")
        _check_ranks(marker["files"], marker["layout"])
        checked(marker, records.MARKER)
        check_relations(marker)
    except KeyError as error:
        return {}, f"{MARKER} is damaged: it has no {error}"
    except ValueError as error:
        return {}, f"{MARKER} is damaged: {error}"
    return marker, ""


def seal_marker(marker: Mapping[str, Any]) -> bytes:
    """The text of a marker, with a checksum over its content."""
    return json.dumps({**marker, CHECKSUM: _checksum(marker)}, indent=1).encode()


def _checksum(marker: Mapping[str, Any]) -> str:
    """XXH128 of what a marker holds, however its text is spaced: of Python's own way to write it, sorted."""
    import xxhash

    rest = {key: value for key, value in marker.items() if key != CHECKSUM}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _check_ranks(files: dict[str, Any], layout: dict[str, Any]) -> None:
    if not files:
        raise DamagedError(f"files has no {rank_file(0)}")
    if "world_size" not in layout:
        return
    ranks = layout["world_size"]
    if ranks != len(files):
        raise DamagedError(f"files has the parts of {len(files)} ranks, layout says world_size {shown(ranks)}")
    missing = next((rank for rank in range(len(files)) if rank_file(rank) not in files), None)
    if missing is not None:
        raise DamagedError(f"files has no {rank_file(missing)}")


def lacks(marker: Mapping[str, Any]) -> str:
    """What a marker lacks for a run to go on from it, or ''."""
    missing = next((name for name in records.STATE if name not in marker["state"]), None)
    return "" if missing is None else f"{MARKER} is damaged: state has no {missing!r}"


def read_marker(path: Path) -> tuple[dict[str, Any], str]:
    """A checkpoint's marker, and what is wrong with it or ''."""
    try:
        content = read_small(path / MARKER)
    except OSError as error:
        return {}, f"{MARKER} cannot be read: {error.strerror}"
    except ValueError as error:
        return {}, f"{MARKER} is damaged: {error}"
    return marker_in_place(content, path.name)


def marker_in_place(content: str | bytes, name: str) -> tuple[dict[str, Any], str]:
    """The marker of the checkpoint of this name from its text, and what is wrong with it or ''."""
    marker, problem = parse_marker(content)
    step, named = marker.get("state", {}).get("step"), step_of(name)
    if step is not None and named is not None and step != named:
        return {}, f"{MARKER} is damaged: it is of step {step:,}, in the place of step {named:,}"
    return marker, problem


def committed_steps(run_dir: Path) -> list[int]:
    """Steps of a run's committed checkpoints, the newest first."""
    return [step for path in committed(run_dir / CHECKPOINTS) if (step := step_of(path.name)) is not None]


def steps_in_hand(run_dir: Path) -> set[int]:
    """Steps whose checkpoint is committed, or is being written."""
    writing = (step_of(path.name[1:].partition(".")[0]) for path in partial(run_dir / CHECKPOINTS))
    return {*committed_steps(run_dir), *(step for step in writing if step is not None)}


def newest_step(run_dir: Path) -> int:
    """The step of a run's newest committed checkpoint; 0 where there is none."""
    return next(iter(committed_steps(run_dir)), 0)


def newest_checkpoint(run_dir: Path) -> tuple[int | None, float]:
    """Step of a run's newest committed checkpoint and when it was committed, seconds since 1970.

    (None, 0) before the first.
    """
    for path in committed(run_dir / CHECKPOINTS):
        # Retention may remove it at this moment: the next newest then.
        with contextlib.suppress(OSError):
            return step_of(path.name), (path / MARKER).stat().st_mtime
    return None, 0.0


def measured_save_s(run_dir: Path) -> float | None:
    """Seconds that a run's newest checkpoint with a whole marker took to write, or None where that is not known."""
    for path in committed(run_dir / CHECKPOINTS):
        marker, problem = read_marker(path)
        if not problem:
            return float(marker["wrote_s"]) if "wrote_s" in marker else None
    return None
