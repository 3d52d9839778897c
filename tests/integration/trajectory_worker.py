"""Trains a small model with optimizers on engines, and writes how far each ends from float64: one process of a world.

python trajectory_worker.py OUT CASE [CASE ...]

CASE: ENGINE:OPTIMIZER[:KEY=VALUE ...], with an engine such as plain, fsdp or zero2, an optimizer of
tests/trajectories.py, and keys of the recipe's `optim`, or accumulation=2.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests import trajectories
from vit_dist.cli.main import leave
from vit_dist.core.world import World, launched_world
from vit_dist.engines._collectives import all_gather_object
from vit_dist.train.process_group import process_group


@cache
def expected(optimizer: str, clip: float | None, layer_decay: float, clip_per: str) -> dict[str, Any]:
    update = trajectories.OPTIMIZERS[optimizer][1]
    *_, last = trajectories.reference(update, clip, layer_decay, per_block=clip_per == "block")
    return last


def run_case(case: str, world: World) -> float:
    engine, optimizer, *words = case.split(":")
    settings = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in words)}
    accumulation = settings.pop("accumulation", 1)
    section = {"name": "deepspeed", "zero_stage": int(engine[4:])} if engine.startswith("zero") else {"name": engine}
    built = trajectories.engine_of(optimizer, section, world, accumulation, **settings)
    trajectories.train(built, world, accumulation)
    wanted = {"clip": 1.0, "layer_decay": 1.0, "clip_per": "all"}
    reference = expected(optimizer, **{key: settings.get(key, default) for key, default in wanted.items()})
    return max(all_gather_object(trajectories.furthest(built, reference), world))


def main() -> None:
    world = launched_world()
    with process_group(world):
        results = {case: run_case(case, world) for case in sys.argv[2:]}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave(0)
