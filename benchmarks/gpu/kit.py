"""What all stages use: the device, a clock that waits for it, and the line that a figure is written to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.driver import append, read_results
from benchmarks.gpu.table import last_run, written
from vit_dist.cli.models.options import model_config, usual_size
from vit_dist.core.devices import device_of
from vit_dist.models.costs import model_cost, training_flops

CLASSES = 1000
"""Of the head, in every stage that counts images a second."""


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

    def over(self, value: float, stage: str, case: str, what: str, figure: str) -> float | None:
        """A figure over one that another stage found in this run; None where it did not."""
        for line in last_run(read_results(self.out)):
            found = line.get("figures", {}).get(figure)
            if found and (line["stage"], line["case"], line.get("what")) == (stage, case, what):
                return value / float(found)
        return None

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


def mfu(model: str, images_per_s: float) -> dict[str, float]:
    """Model FLOPs utilisation in bf16, as training logs it; nothing where the device's peak is not known."""
    found = device_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    peak = None if found is None else found.peak("bf16")
    config = model_config(model)
    cost = model_cost(config, num_classes=CLASSES, image_size=usual_size(config))
    if peak is None or cost is None:
        return {}
    return {"mfu": training_flops(cost.macs, 1) * images_per_s / peak}
