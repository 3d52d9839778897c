"""Back to the last checkpoint after a loss spike, and on behind the examples that led to it."""

from __future__ import annotations

from typing import Any

import torch

from vit_dist.core.errors import RunError
from vit_dist.core.log import log
from vit_dist.core.run.checkpoints import committed
from vit_dist.train.checkpoint.restore import restore_from
from vit_dist.train.run import Run
from vit_dist.train.state import TrainState


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
