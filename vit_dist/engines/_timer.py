"""How long the parts of a step take: by CUDA events on a GPU, by the host's clock elsewhere.

A GPU works through a queue: the host's clock would measure how fast work is queued. Events stand in that queue, and
reading them only when the log is due costs no synchronisation a step.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import torch

PHASES = ("transfer", "forward", "backward", "optimizer")
_MOST_PENDING = 512


class StepTimer:
    """Seconds in each of PHASES since the last `take`.

    Args:
        device: whose time is measured; left out: the host's.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device is not None and device.type == "cuda"
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.compiling_s = 0.0
        """Before the first step; no phase of it."""
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block to this phase; in a profiler's trace it bears the same name."""
        with torch.profiler.record_function(name):
            if not self._cuda:
                began = time.perf_counter()
                yield
                self._seconds[name] += time.perf_counter() - began
                return
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
        self._pending.append((name, start, end))
        # A log that is due after many thousand steps must not keep an event for each part of each of them. The oldest
        # are long over: reading them does not wait.
        while len(self._pending) > _MOST_PENDING and self._pending[0][2].query():  # type: ignore[no-untyped-call]
            self._read_oldest()

    def take(self) -> dict[str, float]:
        """Seconds in each phase since the last call. On a GPU it waits for what is still queued of them."""
        while self._pending:
            self._read_oldest()
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken

    def _read_oldest(self) -> None:
        name, start, end = self._pending.popleft()
        end.synchronize()
        self._seconds[name] += start.elapsed_time(end) / 1000
