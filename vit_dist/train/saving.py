"""The run's side of a save: what goes into the checkpoint, and what the log must hold before."""

from __future__ import annotations

import time
from typing import Any

from vit_dist.core.errors import RunError
from vit_dist.core.run import lineage
from vit_dist.core.run.checkpoints import LOG
from vit_dist.core.run.lineage import plain_lineage
from vit_dist.data.classes import Classes
from vit_dist.train.checkpoint.saver import Contents
from vit_dist.train.checkpoint.weights import CLASSES
from vit_dist.train.run import Run


def save(run: Run) -> None:
    """Begin to save the run as it stands, unless that was done. A collective.

    Raises:
        RunError: too many saves in a row have failed.
        SupersededError: a later attempt owns the run directory.
    """
    state = run.state
    if run.saver.covers(state.step):
        return
    run.clock.enter("save")
    began = time.monotonic()
    extras: dict[str, Any] = {"goodput": run.clock.goodput.sums()}
    if run.writer is not None:
        # The log must not be behind the checkpoint: a run that resumes from it never writes the steps before again.
        # What the disk does not take of it goes with the checkpoint, which may lie on another one.
        try:
            run.writer.flush()
        except RunError:
            extras[LOG] = run.writer.unwritten()
    if run.probe is not None:
        extras["probe"] = run.probe.record(run.probe.measure(run.engine))
    names = Classes("", run.recipe.data.num_classes, run.data.class_names).listing()
    if names:
        extras[CLASSES] = names
    if run.info.lineage:
        # A branch of this run knows by it what it comes from, wherever the checkpoint lies then.
        extras[lineage.KEY] = plain_lineage(run.info.lineage)
    step, metrics = run.metrics
    if step == state.step:
        extras["metrics"] = metrics
    dumped = state.dump(run.data.identity)
    run.saver.save(run.engine, Contents(dumped, run.identity, run.engine.layout, extras))
    run.clock.saved(time.monotonic() - began, run.saver.wrote_s)
    run.write_status()
    run.clock.enter("train")
