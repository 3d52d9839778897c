"""What a rank that is started on this machine can have of memory: that of a GPU, else its share of the machine's."""

from __future__ import annotations

import os
import shutil
import subprocess

from vit_dist.core.devices import Device
from vit_dist.core.memory import available_memory
from vit_dist.core.units import counted

_ANSWER_S = 10.0


def device_here(ranks: int) -> Device | None:
    """The smallest GPU that ranks would get here, or without one the part of host memory that each of them can have.

    Args:
        ranks: that run here at once.

    Returns:
        A device with a name for people and no peaks; None where the system does not say how much memory there is.
    """
    smallest = _smallest_gpu()
    if smallest is not None:
        return Device("a GPU of this machine", {}, smallest, "")
    free = available_memory()
    share = "this machine" if ranks == 1 else f"each of {counted(ranks, 'process')} on this machine"
    return None if free is None else Device(share, {}, free / ranks, "")


def _smallest_gpu() -> float | None:
    smi = shutil.which("nvidia-smi")
    if smi is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    query = [smi, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) << 20 for line in map(str.strip, done.stdout.splitlines()) if line.isdigit()]
    return min(sizes) if sizes and not done.returncode else None
