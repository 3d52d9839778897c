"""What all stages use: the device, a clock that waits for it, and the line that a figure is written to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.driver import append
from benchmarks.gpu.table import written

_PEAKS = {  # dense bf16 FLOP/s by NVIDIA's data sheets; the first name that is part of the device's counts
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


@dataclass(frozen=True)
class Kit:
    """One case of a stage.

    Attributes:
        stage: its name.
        case: of plan.py, such as 'ViT-L/16:128'.
        out: the folder of the results.
        smoke: everything tiny: does it run at all?
    """

    stage: str
    case: str
    out: Path
    smoke: bool

    @property
    def gpu(self) -> bool:
        """Whether there is one; else stages skip what only a GPU can show."""
        return torch.cuda.is_available()

    @property
    def device(self) -> torch.device:
        """The first GPU, or the CPU."""
        return torch.device("cuda", 0) if self.gpu else torch.device("cpu")

    def record(self, what: str, **figures: Any) -> None:
        """Write figures down and print them; units stand in their names."""
        append(self.out, {"stage": self.stage, "case": self.case, "what": what, "figures": figures})
        print(f"   {what}{': ' if what else ''}{written(figures)}", flush=True)

    def synchronize(self) -> None:
        """Wait until the device has done what it was told."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], calls: int) -> float:
        """Mean seconds of a call, over so many calls without a wait between them."""
        self.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        self.synchronize()
        return (time.perf_counter() - began) / calls

    def best(self, work: Callable[[], Any], calls: int, rounds: int = 3) -> float:
        """The least of several such means."""
        return min(self.seconds(work, calls) for _ in range(rounds))


def peak_flops() -> float | None:
    """Dense bf16 FLOP/s of the GPU by its data sheet; None for one that is not known, or a slice of one."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if "MIG" in name:
        return None
    return next((peak for part, peak in _PEAKS.items() if part in name), None)
