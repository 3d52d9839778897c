"""What ranks send in a step, and how often the host reads: one process of a world, which writes JSON.

python collectives_worker.py OUT CASE [CASE ...]        CASE: engine:stage:precision:accumulation[:key=value ...]

A value is YAML. Counted where torch dispatches, so that nothing escapes, whoever calls.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.host_reads import HostReads
from vit_dist.cli.main import leave
from vit_dist.config.load import resolve
from vit_dist.core.world import launched_world
from vit_dist.engines._protocol import EngineInputs
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group

SIZE, CLASSES, BATCH = 28, 10, 8


class Collectives(TorchDispatchMode):
    """Notes every collective for as long as the block lasts: name -> [(dtype, elements, bytes)]."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, list[tuple[str, int]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            # Of a gather and a scatter the greater side is what every rank has in the end, or had at first.
            largest = max(tensors, key=lambda tensor: tensor.numel())
            name = func.__name__.partition(".")[0].strip("_")
            self.sent.setdefault(name, []).append((str(largest.dtype).removeprefix("torch."), largest.numel()))
        return func(*args, **(kwargs or {}))


def run_case(case: str, world, device) -> dict:
    name, stage, precision, accumulation, *options = case.split(":")
    changes = {key: yaml.safe_load(value) for key, value in (option.split("=") for option in options)}
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": precision,
            "model": "vit-test",
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": name, **({"zero_stage": int(stage)} if name == "deepspeed" else {}), **changes},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=CLASSES, image_size=SIZE)
    parameters = sum(p.numel() for p in model.parameters())
    micro = BATCH // world.size // int(accumulation)
    optimizer, loss = recipe.optim.over_layers(model), make_loss(recipe.loss)
    built = recipe.engine.build(
        EngineInputs(model, optimizer, loss, world, device, precision, 1.0, micro, int(accumulation))
    )

    def step() -> None:
        images = torch.zeros(micro, 3, SIZE, SIZE, dtype=torch.uint8)
        targets = torch.nn.functional.one_hot(torch.arange(micro), CLASSES).float()
        built.train_step([(images, targets)] * int(accumulation), 1e-3).read()

    # The first step makes moments, and stage 3 learns the order of its modules in the first two.
    for _ in range(3):
        step()
    with HostReads() as reads, Collectives() as collectives:
        step()
    inside = [place for place in reads.places if "/deepspeed/" in place]
    return {
        "parameters": parameters,
        "optimizer": type(getattr(built, "_optimizer", None)).__name__,
        "sent": collectives.sent,
        "reads": len(inside),
        "places": Counter(place.split(" <- ")[0] for place in inside),
    }


def main() -> None:
    world = launched_world()
    with process_group(world) as device:
        results = {case: run_case(case, world, device) for case in sys.argv[2:]}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave(0)
