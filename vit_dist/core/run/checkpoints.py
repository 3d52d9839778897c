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
import re
from pathlib import Path
from typing import Any

from vit_dist.core.run.names import CHECKPOINTS
from vit_dist.core.small_files import checked, parse_json, read_small

MARKER = "COMMITTED.json"
FORMAT = 2
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
    return int(digits) if name.startswith(_STEP) and digits.isascii() and digits.isdigit() else None


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
            return {}, f"it is of format {marker['format']}, this version reads {FORMAT}"
        for key in _MAPPINGS:
            if not isinstance(marker[key], dict):
                raise ValueError(f"{key} is not a mapping")
        foreign = next((name for name in marker["files"] if not _RANK_FILE.fullmatch(name)), None)
        if foreign is not None:
            raise ValueError(f"{foreign[:100]!r} is not the name of a rank's part, such as {rank_file(0)}")
    except KeyError as error:
        return {}, f"{MARKER} is damaged: it has no {error}"
    except ValueError as error:
        return {}, f"{MARKER} is damaged: {error}"
    return marker, ""


def read_marker(path: Path) -> tuple[dict[str, Any], str]:
    """A checkpoint's marker, and what is wrong with it or ''."""
    try:
        content = read_small(path / MARKER)
    except OSError as error:
        return {}, f"{MARKER} cannot be read: {error.strerror}"
    except ValueError as error:
        return {}, f"{MARKER} is damaged: {error}"
    return parse_marker(content)


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
    """Seconds that a run's newest checkpoint took to write, or None where that is not known."""
    newest = next(iter(committed(run_dir / CHECKPOINTS)), None)
    wrote = None if newest is None else read_marker(newest)[0].get("wrote_s")
    return float(wrote) if isinstance(wrote, int | float) else None
