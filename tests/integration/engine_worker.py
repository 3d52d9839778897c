"""Runs engines over the same random batches and writes their losses as JSON: one process of a world.

python engine_worker.py OUT CASE [CASE ...]

CASE: engine:stage:precision:model[+key=value]:accumulation[:steps[:nan|same]]. A model is written with ~ for each colon
of its own; values are YAML. nan: a gradient that is not finite in the third step; same: one batch in every step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml

from vit_dist.cli.main import leave
from vit_dist.config.load import resolve
from vit_dist.core.world import launched_world
from vit_dist.engines._protocol import EngineInputs
from vit_dist.train.attempt import process_group
from vit_dist.train.losses import make_loss

SIZE, CLASSES, BATCH = 28, 10, 8


def run_case(case: str, world, device) -> dict:
    name, stage, precision, model_spec, accumulation, *rest = case.split(":")
    model_name, *options = model_spec.replace("~", ":").split("+")
    recompute = "recompute" in options
    last = "channels-last" in options
    changes = {k: yaml.safe_load(v) for k, v in (option.split("=", 1) for option in options if "=" in option)}
    steps = int(rest[0]) if rest else 20
    engine = {"name": name, "zero_stage": int(stage)} if name == "deepspeed" else {"name": name}
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": precision,
            "model": {"name": model_name, **changes},
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": engine,
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=CLASSES, image_size=SIZE)
    with torch.no_grad():  # a head of zeros would hide a wrong backward pass in the first steps
        model.head.weight.normal_(0, 0.05)
    model.set_activation_checkpointing("full" if recompute else "none")
    came_last = []
    model.register_forward_pre_hook(
        lambda _, given: came_last.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    rank_batch = BATCH // world.size
    micro = rank_batch // int(accumulation)
    built = recipe.engine.build(
        EngineInputs(
            model,
            recipe.optim.build(model),
            make_loss(recipe.loss),
            world,
            device,
            precision,
            1.0,
            micro,
            int(accumulation),
            torch.channels_last if last else torch.contiguous_format,
        )
    )
    losses, norms, applied = [], [], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(0 if "same" in rest else step)
        labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        images = torch.randint(0, 100, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        images += (labels * 15).to(torch.uint8).view(-1, 1, 1, 1)  # something to learn
        targets = torch.nn.functional.one_hot(labels, CLASSES).float()
        if "nan" in rest and step == 2:
            targets[world.rank :: world.size] *= float("nan") if world.rank == 0 else 1.0
        rank_images, rank_targets = images[world.rank :: world.size], targets[world.rank :: world.size]
        micro_batches = list(zip(rank_images.split(micro), rank_targets.split(micro), strict=True))
        result = built.train_step(micro_batches, 1e-3)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        applied.append(result.applied)
    assert came_last == [last] * len(came_last) != []
    return {"losses": losses, "norms": norms, "applied": applied, "description": built.description}


def main() -> None:
    world = launched_world()
    with process_group(world) as device:
        results = {case: run_case(case, world, device) for case in sys.argv[2:]}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave(0)
