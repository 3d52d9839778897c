"""Law 4, one process of a world: trains engines, saves them, and loads them into others.

python recovery_worker.py OUT OPERATION ...
    train:ENGINE:TO          4 steps, then a checkpoint in TO
    load:ENGINE:FROM:TO      FROM's checkpoint into a new engine, then a checkpoint of that in TO
    drift:ENGINE:TO          as train, then one bit of a weight of rank 1 flips: what the guard says goes to the output
    mismatch:ENGINE:TO       as drift, but in the partition that rank 1 computes with under ZeRO-3
ENGINE is plain, zero-1, zero-2, zero-3, fsdp or fsdp-resharded, with -bf16 or -fp32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.integration.engine_worker import CLASSES, SIZE
from vit_dist.cli.main import leave
from vit_dist.config.load import resolve
from vit_dist.core.errors import RunError
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import launched_world
from vit_dist.engines import _deepspeed
from vit_dist.engines._average import Averaging
from vit_dist.engines._protocol import EngineInputs
from vit_dist.train.checkpoint.restore import restore
from vit_dist.train.checkpoint.saver import Contents, Saver
from vit_dist.train.checkpoint.store import Retention
from vit_dist.train.health.guards import check_replicas
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group

BATCH = 12
ENGINES = {
    "plain": {"name": "plain"},
    "fsdp": {"name": "fsdp"},
    "fsdp-resharded": {"name": "fsdp", "reshard_after_forward": True},
}


def cut_most_parameters() -> None:
    """Under ZeRO-3 parameters of less than 100,000 elements are kept whole: let those of test models be cut too."""
    usual = _deepspeed.engine_config

    def changed(config, inputs):
        settings = usual(config, inputs)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 100
        return settings

    _deepspeed.engine_config = changed


def build(name: str, world, device, seed: int):
    kind, _, precision = name.rpartition("-")
    engine = ENGINES.get(kind) or {"name": "deepspeed", "zero_stage": int(kind[-1])}
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": precision,
            "model": "hybrid-test",
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": engine,
        }
    )
    torch.manual_seed(seed)
    model = recipe.model.build(num_classes=CLASSES, image_size=SIZE)
    micro = BATCH // world.size
    inputs = EngineInputs(
        model,
        recipe.optim.over_layers(model),
        make_loss(recipe.loss),
        world,
        device,
        precision,
        1.0,
        micro,
        1,
        averaging=Averaging(0.9),
    )
    return recipe.engine.build(inputs)


def step(engine, world, number: int) -> float:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 255, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    targets = torch.nn.functional.one_hot(labels, CLASSES).float()
    micro_batches = [(images[world.rank :: world.size], targets[world.rank :: world.size])]
    pending = engine.train_step(micro_batches, 1e-3)
    engine.average.update(pending.applied)
    return pending.read().loss


def look(engine) -> float:
    """What the average says of some images; weights, moments and average are as before, bit for bit."""
    images = torch.randint(0, 255, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(99))
    before, said = [piece.data.clone() for piece in engine.state().slices], engine.predict(images)
    with engine.averaged():
        averaged = engine.predict(images)
    for old, piece in zip(before, engine.state().slices, strict=True):
        assert torch.equal(old, piece.data), piece.name
    assert torch.equal(said, engine.predict(images))
    assert not torch.equal(said, averaged)
    assert engine.master_mismatch() == ""
    return averaged.pow(2).sum().item()


def save(engine, world, to: str, number: int) -> None:
    saver = Saver(RunDir(Path(to)), world, "token", Retention(9), background=False)
    if world.is_main:
        RunDir(Path(to)).write_json("owner.json", {"token": "token"})
    torch.distributed.barrier()
    state = {"step": number, "position": 0, "skipped": 0, "bad_in_row": 0, "spikes": 0}
    state |= {"quarantined": [], "losses": [], "passed_over": [], "order": {}}
    saver.save(engine, Contents(state, {}, engine.layout, {}))
    saver.finish()


def drift(engine, world, in_partition: bool) -> str:
    if world.rank == 1:
        # A small parameter: under ZeRO-3 it is kept whole on every rank, beside its partition.
        parameter = min(engine.module.parameters(), key=lambda p: getattr(p, "ds_numel", p.numel()))
        bits = parameter.ds_tensor if in_partition else parameter.detach().view(-1)
        bits[0] = (
            torch.nextafter(bits[0].float(), torch.tensor(9.0)).to(bits.dtype) if bits.dtype == torch.float32 else 9
        )
    try:
        check_replicas(engine, world, 5)
    except RunError as error:
        return str(error)
    return ""


def main() -> None:
    world, losses = launched_world(), {}
    cut_most_parameters()
    with process_group(world) as device:
        for operation in sys.argv[2:]:
            verb, name, *places = operation.split(":")
            if verb != "load":
                engine = build(name, world, device, 0)
                losses[operation] = [step(engine, world, i) for i in range(4)]
                save(engine, world, places[0], 4)
                check_replicas(engine, world, 4)  # as in training: what follows must not be disturbed by it
            if verb in {"drift", "mismatch"}:
                losses[operation] = drift(engine, world, in_partition=verb == "mismatch")
                continue
            if verb == "load":
                engine = build(name, world, device, 1)
                assert restore(Path(places[0]) / "checkpoints", engine, {}, world) is not None
                assert engine.average.counted() == 4
                save(engine, world, places[1], 4)
            losses[operation] = [
                *losses.get(operation, []),
                look(engine),
                step(engine, world, 4),
                step(engine, world, 5),
            ]
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
    leave(0)
