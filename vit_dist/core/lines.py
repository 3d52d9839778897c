"""Lines of JSON that a run writes beside its work: what cannot be written waits, and costs the run nothing."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_dist.core.files import append_whole, disk_problem
from vit_dist.core.log import WARNING, log

_MOST_BYTES = 4 << 20


class Lines:
    """A file that this process alone appends to. Nothing raises: a full disk is told once, and what it did not take
    is kept, the newest of it within bounds, until the next line finds room.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: deque[bytes] = deque()
        self._num_bytes = self._dropped = 0
        self._failing = False

    def add(self, *entries: Mapping[str, Any]) -> None:
        """Append a line each, and what waits."""
        for entry in entries:
            self._waiting.append((json.dumps(entry) + "\n").encode())
            self._num_bytes += len(self._waiting[-1])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_whole(self._path, b"".join(self._waiting))
        except OSError as error:
            self._keep(error)
            return
        if self._failing:
            lost = f"; {self._dropped:,} lines are lost" if self._dropped else ""
            log(f"  {self._path}: is written again, with what waited{lost}", WARNING)
        self._failing, self._dropped, self._num_bytes = False, 0, 0
        self._waiting.clear()

    def _keep(self, error: OSError) -> None:
        while self._num_bytes > _MOST_BYTES and len(self._waiting) > 1:
            self._num_bytes -= len(self._waiting.popleft())
            self._dropped += 1
        if not self._failing:
            self._failing = True
            log(
                f"  {self._path}: cannot be written: {disk_problem(error) or error.strerror}. Training goes on; its "
                f"lines are kept and written once they can be",
                WARNING,
            )
