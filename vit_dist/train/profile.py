"""`--profile`: a trace of a few steps, and on a GPU a snapshot of its memory. torch is imported when it begins."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import ConfigError
from vit_dist.core.files import disk_problem, replacing
from vit_dist.core.log import log

_WARM_UP = 3
"""Steps of an attempt before those of a mere count: the first compiles and warms up."""
_MOST_STEPS = 100
_MEMORY_EVENTS = 200_000


@dataclass(frozen=True)
class ProfileSteps:
    """Which steps to profile.

    Attributes:
        first: number of the first step; None: the fourth of the attempt.
        last: number of the last one, where `first` is one.
        count: how many, else.
    """

    first: int | None
    last: int
    count: int

    @classmethod
    def parse(cls, text: str) -> ProfileSteps:
        """Read '10:13' or '10-13' (both included), or a count.

        Raises:
            ConfigError: it is none of them, or more steps than a viewer takes.
        """
        match = re.fullmatch(r"(\d+)(?:[:-](\d+))?", text.strip())
        if match is None:
            raise ConfigError(f"--profile={text}: give steps such as 10:13 (both included), or how many, such as 4")
        first, last = int(match[1]), int(match[2] or match[1])
        steps = cls(first, last, last - first + 1) if match[2] else cls(None, 0, first)
        if steps.count < 1 or first < 1:
            raise ConfigError(f"--profile={text}: no step is in it; steps are numbered from 1")
        if steps.count > _MOST_STEPS:
            raise ConfigError(
                f"--profile={text}: {steps.count} steps make a trace that no viewer opens; give at most {_MOST_STEPS}"
            )
        return steps

    def placed(self, done: int) -> tuple[int, int]:
        """Numbers of the first and the last step, in an attempt that begins after `done` steps."""
        first = done + _WARM_UP + 1 if self.first is None else self.first
        return first, first + self.count - 1


def profile_options(text: str) -> tuple[str, ...]:
    """What hands `--profile` on to `vit-dist train`; nothing where it was not given.

    Raises:
        ConfigError: see ProfileSteps.parse.
    """
    if not text:
        return ()
    ProfileSteps.parse(text)
    return (f"--profile={text}",)


class Profiler:
    """Profiles the steps of one rank: `before` and `after` each step, `close` at the end of the loop.

    Args:
        steps: which.
        folder: where its files go.
        rank: of this process, in their names.
        done: steps that were done before the attempt.
    """

    def __init__(self, steps: ProfileSteps, folder: Path, rank: int, done: int) -> None:
        self._folder, self._rank = folder, rank
        self._first, self._last = steps.placed(done)
        self._profile: Any = None
        self._memory = False
        if done >= self._first:
            log(f"  --profile: step {self._first} is past, the attempt begins after step {done:,}: nothing is profiled")

    def before(self, step: int) -> None:
        """The step of this number is about to begin."""
        if step != self._first:
            return
        import torch
        from torch.profiler import ProfilerActivity, profile

        self._memory = torch.cuda.is_available()
        if not self._memory:
            # Else torch's profiler prints that it found no GPU, as an error. With one its errors are worth reading.
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        else:
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
        gpu = [ProfilerActivity.CUDA] if self._memory else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True)
        self._profile.start()
        log(f"  profiling steps {self._first:,} to {self._last:,}, which take longer for it")

    def after(self, step: int) -> None:
        """The step of this number has ended."""
        if step == self._last:
            self.close(step)

    def close(self, step: int) -> None:
        """Write what was profiled up to this step, unless that was done."""
        if self._profile is None:
            return
        running, self._profile = self._profile, None
        running.stop()
        name = f"rank-{self._rank:05d}-steps-{self._first}-{step}"
        trace, snapshot = self._folder / f"trace-{name}.json.gz", self._folder / f"memory-{name}.pickle"
        try:
            with replacing(trace, sync=False, ending=".json.gz") as temporary:
                running.export_chrome_trace(str(temporary))
            log(f"  trace of steps {self._first:,} to {step:,}: {trace} (open it in https://ui.perfetto.dev)")
            if self._memory:
                _dump_memory(snapshot)
        # A full disk must not end a run that trains well.
        except OSError as error:
            reason = disk_problem(error) or error.strerror
            log(f"  --profile: {self._folder} cannot be written: {reason}; training continues without a trace")


def _dump_memory(path: Path) -> None:
    import torch

    with replacing(path, sync=False) as temporary:
        torch.cuda.memory._dump_snapshot(str(temporary))  # type: ignore[no-untyped-call]
    # Recording costs a little at each allocation: off again.
    torch.cuda.memory._record_memory_history(enabled=None)
    log(f"  memory of the device in those steps: {path} (open it in https://docs.pytorch.org/memory_viz)")
