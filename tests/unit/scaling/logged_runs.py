"""Event files of runs, as the trainer writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run.log import RunInfo, RunStatus, write_measured, write_start, write_status
from vit_dist.core.run.measured import MeasuredOn


def measured(name: str = "garments-val", fingerprint: str = "f00d" * 4, **changes: Any) -> MeasuredOn:
    fields = {"name": name, "fingerprint": fingerprint, "examples": 100, "image_size": 28, "crop": 0.875, **changes}
    return MeasuredOn.model_validate(fields)


GARMENTS = measured()


def info(**changes: Any) -> RunInfo:
    return RunInfo.model_validate(
        {
            "name": "vit-500-s0",
            "study": "tiny",
            "family": "vit",
            "model": "vit-demo",
            "num_params": 210_000,
            "macs_per_image": 3_200_000,
            "macs_method": "counted",
            "dataset": "garments",
            "dataset_fingerprint": "f00d",
            "num_classes": 10,
            "image_size": 28,
            "subset": 500,
            "subset_seed": 0,
            "seed": 0,
            "planned_examples": 640,
            "planned_steps": 10,
            "global_batch": 64,
            "base_lr": 1e-3,
            "weight_decay": 0.05,
            "precision": "bf16",
            "engine": "DeepSpeed ZeRO-1",
            "world_size": 2,
            "code_version": "0",
            "recipe_hash": "abc",
            **changes,
        }
    )


def log_run(
    root: Path,
    family: str = "vit",
    subset: int = 500,
    seed: int = 0,
    *,
    top1: dict[int, float] | None = None,
    status: Literal["done", "stopped", "failed"] | None = "done",
    folder: str | None = None,
    step: int = 10,
    on: MeasuredOn | None = GARMENTS,
    **changes: Any,
) -> Path:
    """The event file of one run, as the trainer writes it."""
    name = f"{family}-{subset}-s{seed}"
    writer = EventWriter(root / (folder or name) / "tb")
    write_start(writer, info(name=name, family=family, subset=subset, seed=seed, **changes), "name: x\n")
    write_measured(writer, {"val/top1": on, "val/loss": on}, {}, min(top1 or {5: 0.4}))
    for at, value in ({5: 0.4, 10: 0.5} if top1 is None else top1).items():
        writer.scalars(at, {"val/top1": value, "val/loss": 1 - value})
    if status:
        write_status(writer, RunStatus(status=status, step=step, examples=step * 64, reason="why"))
    writer.close()
    return writer.path
