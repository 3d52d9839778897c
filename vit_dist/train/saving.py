"""When the loop saves, and when it goes back: the run's side of checkpoints."""

from __future__ import annotations

import time
from typing import Any

import torch

from vit_dist.core.errors import RunError
from vit_dist.core.log import log
from vit_dist.train.checkpoint_saver import Contents
from vit_dist.train.checkpoint_store import committed
from vit_dist.train.checkpoints import restore_from
from vit_dist.train.run import Run
from vit_dist.train.state import TrainState


def save(run: Run) -> None:
    """Begin to save the run as it stands, unless that was done. A collective.

    Raises:
        RunError: too many saves in a row have failed, or a later attempt has taken over.
    """
    state = run.state
    if run.saver.covers(state.step):
        return
    run.clock.enter("save")
    began = time.monotonic()
    if run.writer is not None:
        run.writer.flush()  # what the log says must not be behind what the checkpoint holds
    extras: dict[str, Any] = {"goodput": run.clock.goodput.sums()}
    if run.probe is not None:
        extras["probe"] = {"examples": len(run.probe.images), "loss": run.probe.measure(run.engine)}
    step, metrics = run.metrics
    if step == state.step:
        extras["metrics"] = metrics
    dumped = state.dump(run.data.identity)
    run.saver.save(run.engine, Contents(dumped, run.identity, run.engine.layout, extras))
    run.clock.saved(time.monotonic() - began, run.saver.wrote_s)
    run.alive()
    run.clock.enter("train")


def can_rewind(run: Run) -> bool:
    """Whether there is a checkpoint to go back to. A collective."""
    run.saver.settle()
    found = [bool(committed(run.directory.checkpoints)) if run.world.is_main else False]
    if run.world.size > 1:
        torch.distributed.broadcast_object_list(found, 0)
    return found[0]


def rewind(run: Run) -> None:
    """Go back to the last checkpoint, and on behind the examples that led to the spike. A collective.

    Raises:
        RunError: it was done too often.
        CheckpointError: the checkpoint is damaged.
    """
    given_up = run.state
    if len(run.state.passed_over) >= run.recipe.guards.max_rewinds:
        raise RunError(
            f"another loss spike at step {run.state.step} after {len(run.state.passed_over)} rewinds "
            f"(guards.max_rewinds): the course itself diverges; try a lower optim.lr, a longer warm-up or clipping"
        )
    told: list[Any] = [committed(run.directory.checkpoints)[0] if run.world.is_main else None]
    if run.world.size > 1:
        torch.distributed.broadcast_object_list(told, 0)
    found = restore_from(told[0], run.engine, run.identity, run.world, run.probe)
    past = TrainState.load(found.state, run.data.identity, str(found.path))
    run.saver.rewind_to(past.step)
    run.state = past.rewound(given_up)
    run.clock.goodput.rewound(found.marker.get("goodput", {}))
    if run.world.is_main:
        log(
            f"  REWOUND to step {past.step:,}, {given_up.step - past.step} steps back; positions {past.position:,} to "
            f"{given_up.position:,} of the order are passed over"
        )
    run.start_log()
