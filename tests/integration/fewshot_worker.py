"""Ranks that evaluate an untrained model, on few shots and by its head.

python fewshot_worker.py OUT TRAIN VAL ENGINE[:STAGE] ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vit_dist.cli.main import leave
from vit_dist.config.load import resolve
from vit_dist.core.world import World, launched_world
from vit_dist.data.manifest import read_manifest
from vit_dist.engines._protocol import EngineInputs
from vit_dist.evals import EvalContext
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group


def evaluate(train: str, val: str, engine: str, world: World, device) -> dict[str, float]:
    import torch

    name, _, stage = engine.partition(":")
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": 8,
            "precision": "fp32",
            "model": "vit-test",
            "data": {"num_classes": 7, "image_size": 28, "train": train, "val": val},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": name, **({"zero_stage": int(stage)} if stage else {})},
            "evaluators": [
                {"name": "fewshot", "set": "small", "shots": [1, 5, 12], "seeds": 2, "l2": 1.0},
                "classification",
            ],
            "eval": {"batch": 16},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=7, image_size=28)
    torch.nn.init.normal_(model.head.weight, std=0.05)  # of zeros every class has the same score
    share = 8 // world.size
    inputs = EngineInputs(
        model, recipe.optim.over_layers(model), make_loss(recipe.loss), world, device, "fp32", 1.0, share, 1
    )
    context = EvalContext(recipe.engine.build(inputs), recipe, world, read_manifest(val))
    return {name: value for evaluator in recipe.evaluators for name, value in evaluator.run(context)}


def main() -> None:
    out, train, val, *engines = sys.argv[1:]
    world = launched_world()
    with process_group(world) as device:
        found = {engine: evaluate(train, val, engine, world, device) for engine in engines}
    # Every rank writes: the ranks must agree.
    Path(out).with_suffix(f".{world.rank}").write_text(json.dumps(found))
    if world.is_main:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    leave(0)
