"""What a command costs in CPU time: what else runs on the machine adds little to it, unlike to the clock."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence


def cpu_seconds(words: Sequence[str], runs: int = 5, **environment: str) -> float:
    """The least of several runs of a command, which must succeed."""
    spans = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, capture_output=True, check=True, env={**os.environ, **environment})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spans.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spans)


def interpreters(words: Sequence[str], runs: int = 5, **environment: str) -> float:
    """What a command costs, in starts of a bare interpreter: some 30 ms of a CPU each."""
    return cpu_seconds(words, runs, **environment) / cpu_seconds([sys.executable, "-c", "pass"])
