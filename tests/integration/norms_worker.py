"""Trains engines for three steps, twice: undisturbed, and with the norms of the second step watched. A world's process.

python norms_worker.py OUT CASE [CASE ...]

CASE: engine:stage:precision:model[+relative][+recompute]:accumulation
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from vit_dist.cli.main import leave
from vit_dist.config.load import resolve
from vit_dist.core.world import launched_world
from vit_dist.engines._protocol import EngineInputs
from vit_dist.train.attempt import process_group
from vit_dist.train.losses import make_loss
from vit_dist.train.norms import StepNorms

SIZE, CLASSES, BATCH = 28, 10, 16


def engine_of(case: str, world, device):
    name, stage, precision, model_spec, accumulation = case.split(":")
    model_name, *options = model_spec.split("+")
    changes = {"position_embedding": "relative", "positions_at": "shared"} if "relative" in options else {}
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": precision,
            "model": {"name": model_name, **changes},
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": name, "zero_stage": int(stage)} if name == "deepspeed" else {"name": name},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=CLASSES, image_size=SIZE)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.05)
    model.set_activation_checkpointing("full" if "recompute" in options else "none")
    micro = BATCH // world.size // int(accumulation)
    inputs = EngineInputs(
        model,
        recipe.optim.over_layers(model),
        make_loss(recipe.loss),
        world,
        device,
        precision,
        1.0,
        micro,
        int(accumulation),
    )
    return recipe.engine.build(inputs), micro


def train(case: str, world, device, *, watched: bool) -> dict:
    built, micro = engine_of(case, world, device)
    values, result = {}, None
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        images = torch.randint(0, 100, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        targets = torch.nn.functional.one_hot(labels, CLASSES).float()
        mine = slice(world.rank, None, world.size)
        batches = list(zip(images[mine].split(micro), targets[mine].split(micro), strict=True))
        norms = StepNorms(built, world) if watched and step == 1 else None
        result = built.train_step(batches, 1e-3, on_gradients=norms.on_gradients if norms else None).read()
        if norms:
            values = {**norms.finish(), "grad_norm": result.grad_norm}
    digest = hashlib.sha256()
    for part in built.state().slices:
        digest.update(f"{part.kind} {part.name}".encode())
        digest.update(part.data.contiguous().view(torch.uint8).numpy().tobytes())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in built.module.modules())
    return {"values": values, "digest": digest.hexdigest(), "loss": result.loss, "hooks": hooks}


def main() -> None:
    world = launched_world()
    results = {}
    with process_group(world) as device:
        for case in sys.argv[2:]:
            results[case] = [train(case, world, device, watched=watched) for watched in (False, True)]
            # Each rank holds its part of the state alone: all must be the same.
            digests = [None] * world.size
            torch.distributed.all_gather_object(digests, [run["digest"] for run in results[case]])
            results[case].append(all(plain == watched for plain, watched in digests))
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave(0)
