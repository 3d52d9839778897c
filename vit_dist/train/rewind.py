"""Rewinding: back to the last checkpoint after a loss spike, skipping the examples that led to it."""

from __future__ import annotations

from vit_dist.core.errors import CheckpointError, RunError
from vit_dist.core.log import WARNING, log
from vit_dist.core.run.checkpoints import LOG, committed
from vit_dist.engines._collectives import broadcast_object
from vit_dist.train.checkpoint.restore import agree_on_place, restore
from vit_dist.train.run import Run
from vit_dist.train.state import TrainState


def can_rewind(run: Run) -> bool:
    """Whether there is a checkpoint to go back to. A collective."""
    # One that is being written may become the newest at any moment: wait for it, then look.
    run.saver.settle()
    return broadcast_object(bool(committed(run.directory.checkpoints)) if run.world.is_main else False, run.world)


def rewind(run: Run) -> None:
    """Restore the last checkpoint that is whole, and skip the examples that led from it to the spike. A collective.

    Raises:
        RunError: it was done too often.
        CheckpointError: no checkpoint is whole.
    """
    given_up = run.state
    if len(run.state.skipped_ranges) >= run.recipe.guards.max_rewinds:
        raise RunError(
            f"another loss spike at step {run.state.step} after {len(run.state.skipped_ranges)} rewinds "
            f"(guards.max_rewinds): the trajectory itself diverges; try a lower optim.lr, a longer warm-up or clipping"
        )
    restored = restore(run.directory.checkpoints, run.engine, run.identity, run.world, probe=run.probe)
    if restored is None:
        raise CheckpointError(f"{run.directory.checkpoints}: the checkpoint to rewind to is gone")
    past = TrainState.load(restored.state, run.data.identity, str(restored.path))
    agree_on_place((past.step, past.position), restored.path, run.world)
    # Checkpoints beyond it belong to the trajectory that is given up: a run that is killed now must not resume from
    # one.
    run.saver.rewind_to(past.step)
    run.state = past.rewound(given_up)
    run.unwritten = restored.marker.get(LOG)
    run.clock.goodput.rewound(restored.marker.get("goodput", {}))
    if run.world.is_main:
        log(
            f"  REWOUND to step {past.step:,}, {given_up.step - past.step} steps back; positions {past.position:,} to "
            f"{given_up.position:,} of the order are skipped",
            WARNING,
        )
    run.start_log()
