"""The header of a run: which device, which versions, which commit the figures after it belong to."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import torch

from benchmarks.gpu.kit import Kit


def measure(kit: Kit) -> None:
    """The case is the commit, which the driver finds without torch."""
    device: dict[str, Any] = {"device": platform.processor() or platform.machine()}
    if kit.gpu:
        found = torch.cuda.get_device_properties(kit.device)
        device = {"device": found.name, "memory_GiB": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    kit.record(
        "smoke" if kit.smoke else "",
        **device,
        cpus=os.cpu_count(),
        torch=torch.__version__,
        python=platform.python_version(),
        commit=kit.case,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
