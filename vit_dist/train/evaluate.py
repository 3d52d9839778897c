"""Evaluate a run that has been trained: its newest checkpoint, its evaluators or others; into its own log."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from vit_dist.config.load import identity
from vit_dist.config.plugins import check_plugins
from vit_dist.config.schema import Recipe, dump
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.files import write_bytes
from vit_dist.core.log import INFO, WARNING, log
from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import no_checkpoint
from vit_dist.core.run.copies import Copies
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.data.takedown import refuse_forgetting
from vit_dist.engines._numerics import check_precision, numerics
from vit_dist.evals import EvalContext
from vit_dist.train.attempt import build_engine
from vit_dist.train.checkpoint import restore as checkpoints
from vit_dist.train.failures import explained
from vit_dist.train.health.patience import patience
from vit_dist.train.initial_weights import recorded
from vit_dist.train.measures import Measures, open_measures
from vit_dist.train.plan import open_training
from vit_dist.train.plugin_code import agreed_plugins
from vit_dist.train.process_group import process_group
from vit_dist.train.state import TrainState
from vit_dist.train.takedown import agree_on_list


def evaluate(
    recipe: Recipe, run_dir: Path, world: World, *, checkpoint: str = "", out: Path | None = None
) -> dict[str, float]:
    """Values of a recipe's evaluators on a checkpoint of a run, the newest unless one is named. A collective.

    The values go to a new event file of the run, at the step of the checkpoint, and into its history. What is
    measured on another set than the run's own has tags of its own (core/run/measured.py). What the history says of
    the same metrics, sets and step is not measured again.

    Args:
        recipe: of the run; its evaluators and places may be others than those it was trained with.
        run_dir: of the run.
        world: any number of ranks, whatever wrote the checkpoint.
        checkpoint: name of one of the run's, such as step-0000001000.
        out: a JSON file for the result.

    Raises:
        CheckpointError: there is no checkpoint.
        RunError: an attempt of the run holds the directory.
        VitDistError: what keeps a set from being read, the checkpoint from being restored, or an evaluator from
            running.
        PeerLostError: another rank died (train/failures.py).
    """
    try:
        return _evaluate(recipe, run_dir, world, checkpoint, out)
    except RuntimeError as error:
        failure = explained(error, recipe, run_dir, world)
        raise failure from (None if failure is error else error)


def _evaluate(recipe: Recipe, run_dir: Path, world: World, checkpoint: str, out: Path | None) -> dict[str, float]:
    directory = RunDir(run_dir)
    with contextlib.ExitStack() as stack:
        if world.is_main:
            if not run_dir.is_dir():
                raise RunError(f"{run_dir}: no such run directory")
            stack.enter_context(directory.locked())
        limits = patience(float(recipe.guards.hang.value))
        stack.enter_context(numerics(recipe))
        device = stack.enter_context(process_group(world, limits, directory.stacks))
        check_precision(recipe.precision, device)
        data, val, plan = open_training(recipe, world)
        agree_on_list(recipe, world)
        engine, _ = build_engine(recipe, plan, world, device, trains=False)
        plugins = agreed_plugins(recipe, world)
        # Rank 0 alone reads the run's directory: all ranks go on from one answer, whatever the file system shows.
        began_as, of_run = checkpoints.on_main(lambda: (recorded(directory), directory.read_json(names.RUN)), world)
        check_plugins(recipe, of_run, run_dir)
        run_identity = {**identity(recipe), "fingerprint": data.fingerprint, **began_as, **plugins}
        restored: checkpoints.Restored | None
        if checkpoint:
            restored = checkpoints.restore_from(directory.checkpoints / checkpoint, engine, run_identity, world, None)
        else:
            restored = checkpoints.restore(
                directory.checkpoints, engine, run_identity, world, remote=recipe.checkpoint.remote
            )
        if restored is None:
            raise no_checkpoint(run_dir, "evaluate")
        state = TrainState.load(restored.state, data.identity, str(restored.path))
        checkpoints.agree_on_place((state.step, state.position), restored.path, world)
        refuse_forgetting(state.taken_down, recipe.data.takedown)
        measures = open_measures(EvalContext(engine, recipe, world, val), directory, world)
        measures.announce(INFO)
        known = checkpoints.on_main(lambda: history.evaluations(run_dir, state.step), world)
        values = measures.run(state.step, known)
        if world.is_main:
            _write(measures, state.step, values, known)
            if out is not None:
                told = {"values": measures.by_metric(values), "evaluators": [dump(e) for e in recipe.evaluators]}
                place = {"run": recipe.name, "directory": str(run_dir), "step": state.step}
                payload = {**place, **told, **measures.record()}
                write_bytes(str(out), (json.dumps(payload, indent=1) + "\n").encode())
            _send_logs(recipe, run_dir)
        return values


def _send_logs(recipe: Recipe, run_dir: Path) -> None:
    if not recipe.checkpoint.remote:
        return
    try:
        Copies(run_dir, recipe.checkpoint.remote).send()
    except VitDistError as error:
        log(
            f"  the values COULD NOT BE COPIED beside the checkpoints: {error}. They are complete in {run_dir}", WARNING
        )


def _write(measures: Measures, step: int, values: dict[str, float], known: Mapping[str, float]) -> None:
    directory = measures.directory
    new = {tag: value for tag, value in values.items() if tag not in known}
    if values and not new:
        log(f"  {directory.path}: these evaluators have seen step {step:,} on these sets already")
        return
    # First whose each tag is: a kill between here and the log leaves nothing to be taken for another set's.
    measures.keep()
    # Without a purge step: what the run has logged at this step and beyond stays true.
    with contextlib.closing(EventWriter(directory.events)) as writer:
        measures.write(writer, step, new)
    evaluators = [dump(e) for e in measures.context.recipe.evaluators]
    history.evaluated(directory.path, evaluators, step, measures.by_metric(values), measures.record())
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    log(f"  {directory.path}, step {step:,}: {shown}")
