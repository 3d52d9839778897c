"""Restores a checkpoint into an engine as one rank of a world, and writes it again.

python golden_worker.py OUT CHECKPOINTS ENGINE TO
    CHECKPOINTS   a directory of step directories
    ENGINE        the recipe's `engine` as JSON
    TO            a run directory for the copy
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from vit_dist.cli.main import leave
from vit_dist.config.load import identity, resolve
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import launched_world
from vit_dist.data.order import OrderIdentity
from vit_dist.engines._protocol import EngineInputs
from vit_dist.train.checkpoint.restore import restore
from vit_dist.train.checkpoint.saver import Contents, Saver
from vit_dist.train.checkpoint.store import Retention
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group
from vit_dist.train.state import TrainState


def main() -> None:
    out, root, engine_settings, to = sys.argv[1:]
    marker, problem = read_marker(committed(Path(root))[0])
    assert not problem, problem
    fingerprint = marker["recipe"].pop("fingerprint")
    recipe = resolve({**marker["recipe"], "engine": json.loads(engine_settings)})
    whole = {**identity(recipe), "fingerprint": fingerprint}
    world = launched_world()
    with process_group(world) as device:
        torch.manual_seed(1)
        model = recipe.model.build(num_classes=recipe.data.num_classes, image_size=recipe.data.image_size)
        micro = recipe.global_batch // world.size
        optimizer, loss = recipe.optim.over_layers(model), make_loss(recipe.loss)
        inputs = EngineInputs(model, optimizer, loss, world, device, recipe.precision, recipe.optim.clip, micro, 1)
        engine = recipe.engine.build(inputs)
        found = restore(Path(root), engine, whole, world)
        state = TrainState.load(found.state, OrderIdentity(**found.state["order"]), root)
        saver = Saver(RunDir(Path(to)), world, "token", Retention(9), background=False)
        if world.is_main:
            RunDir(Path(to)).write_json(names.OWNER, {"token": "token"})
        torch.distributed.barrier()
        saver.save(engine, Contents(state.dump(OrderIdentity(**found.state["order"])), whole, engine.layout, {}))
        saver.finish()
    if world.is_main:
        Path(out).write_text(
            json.dumps({"step": state.step, "position": state.position, "losses": [loss for _, loss in state.losses]})
        )


if __name__ == "__main__":
    main()
    leave(0)
