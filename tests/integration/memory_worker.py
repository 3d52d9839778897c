"""Bytes that an engine holds when the optimizer steps, a parameter, written as JSON: one process of a world.

python memory_worker.py OUT CASE [CASE ...]        CASE: engine:stage:precision:accumulation[:backward]

Of fsdp stage 3 reshards after the forward pass, 2 does not. backward: when the last backward pass begins, in place of
when the optimizer steps.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from vit_dist.cli.main import leave
from vit_dist.config.load import resolve
from vit_dist.core.world import launched_world
from vit_dist.engines._deepspeed import import_deepspeed
from vit_dist.engines._protocol import EngineInputs
from vit_dist.train.attempt import process_group
from vit_dist.train.losses import make_loss

BUCKET = 1000


def storages() -> dict[int, torch.UntypedStorage]:
    """The memory of every tensor that Python has made since gc.freeze() and can reach, once each."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    tensor = getattr(tensor, "_local_tensor", tensor)  # torch's DTensor has no memory itself
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage
    return found


def held(case: str, world, device) -> float:
    name, stage, precision, accumulation, *when = case.split(":")
    zero = {"zero_stage": int(stage), "reduce_bucket": BUCKET, "allgather_bucket": BUCKET}
    settings = {"deepspeed": zero, "fsdp": {"reshard_after_forward": stage == "3"}}.get(name, {})
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": 4,
            "precision": precision,
            "model": {"name": "vit-test", "width": 256, "depth": 3, "mlp_dim": 1024},
            "data": {"num_classes": 10, "image_size": 28},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": name, **settings},
        }
    )
    gc.collect()
    gc.freeze()  # what is there already is not looked through again and again
    model = recipe.model.build(num_classes=10, image_size=28)
    params = sum(p.numel() for p in model.parameters())
    micro = 4 // world.size // int(accumulation)
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
    built = recipe.engine.build(inputs)
    most = [0]

    def look(*_given, **_named) -> None:
        most.append(sum(storage.nbytes() for storage in storages().values()))

    backward = torch.autograd.backward
    if when:
        torch.autograd.backward = lambda *given: (look(), backward(*given))[1]
    elif name == "deepspeed":
        # At its first line gradients are complete and reduced, and no moment has passed.
        stepping = built._engine.step
        built._engine.step = lambda *given, **named: (look(), stepping(*given, **named))[1]
    else:
        built._optimizer.register_step_pre_hook(look)
    images, targets = torch.zeros(micro, 3, 28, 28, dtype=torch.uint8), torch.ones(micro, 10) / 10
    for _ in range(2):
        built.train_step([(images, targets)] * int(accumulation), 1e-3)
    torch.autograd.backward = backward
    return max(most) / params


def main() -> None:
    import_deepspeed()
    world = launched_world()
    with process_group(world) as device:
        results = {case: held(case, world, device) for case in sys.argv[2:]}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave(0)
