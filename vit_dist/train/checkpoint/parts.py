"""The parts of a checkpoint: each rank writes its own, and beside it, once it is on the disk, a small `.done.json`.

Rank 0 waits for all of them. Its looks at the shared file system do not grow with the number of ranks: one listing each
time, more and more seldom, and each `.done.json` is read once.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_dist.core.errors import RunError
from vit_dist.core.files import write_bytes
from vit_dist.core.run.checkpoints import rank_file
from vit_dist.core.small_files import checked, is_count, is_text, parse_json
from vit_dist.core.units import format_seconds

_FIRST_S = 0.02
_LONGEST_S = 1.0
_GROWTH = 1.5
_DONE = ".done.json"


def finish_part(folder: Path, rank: int, num_bytes: int, digest: str) -> None:
    """Say that a rank's part is on the disk."""
    write_bytes(str(folder / f"{rank_file(rank)}{_DONE}"), json.dumps({"bytes": num_bytes, "xxh128": digest}).encode())


def forget_parts(folder: Path, size: int) -> None:
    """Remove what `finish_part` has written for all ranks."""
    for rank in range(size):
        (folder / f"{rank_file(rank)}{_DONE}").unlink()


def wait_for_parts(
    folder: Path, size: int, abort: threading.Event, problem: Callable[[], str], limit_s: float, began: float
) -> dict[str, dict[str, Any]]:
    """Wait for the parts of all ranks. Returns name of a file -> its size and checksum.

    Args:
        folder: in which they are written.
        size: of the world.
        abort: set where a part will never come.
        problem: why this rank could not write its own, or ''.
        limit_s: since `began`, by `time.monotonic`.

    Raises:
        RunError: a part is not coming, or did not come in time.
    """
    wanted = {f"{rank_file(rank)}{_DONE}": rank_file(rank) for rank in range(size)}
    files: dict[str, dict[str, Any]] = {}
    pause = _FIRST_S
    while True:
        for name in _listed(folder) & wanted.keys():
            files[wanted.pop(name)] = checked(
                parse_json((folder / name).read_text()), {"bytes": is_count, "xxh128": is_text}
            )
        if not wanted:
            return {name: files[name] for name in sorted(files)}
        if abort.wait(pause) or problem():
            raise RunError(problem() or "another rank could not write its part")
        if time.monotonic() - began > limit_s:
            missing = [rank for rank in range(size) if rank_file(rank) not in files]
            raise RunError(f"ranks {missing[:8]} have not written their parts in {format_seconds(limit_s)}")
        pause = min(_LONGEST_S, _GROWTH * pause)


def _listed(folder: Path) -> set[str]:
    # It is made by whichever rank writes first.
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir(folder))  # noqa: PTH208 - names alone, of thousands of files
    return set()
