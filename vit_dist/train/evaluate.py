"""Evaluate a run that has been trained: its newest checkpoint, its evaluators or others; into its own log."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from vit_dist.config.load import identity
from vit_dist.config.plugins import check_plugins
from vit_dist.config.schema import Recipe, dump
from vit_dist.core.errors import RunError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.files import write_bytes
from vit_dist.core.log import log
from vit_dist.core.run import history, names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.log import write_metrics
from vit_dist.core.world import World
from vit_dist.engines._numerics import check_precision, numerics
from vit_dist.evals import EvalContext, EvaluatorConfig
from vit_dist.train.attempt import build_engine
from vit_dist.train.checkpoint import restore as checkpoints
from vit_dist.train.failures import explained
from vit_dist.train.health.patience import patience
from vit_dist.train.initial_weights import recorded
from vit_dist.train.plan import open_training
from vit_dist.train.plugin_code import agreed_plugins
from vit_dist.train.process_group import process_group
from vit_dist.train.state import TrainState


def evaluate(
    recipe: Recipe, run_dir: Path, world: World, *, checkpoint: str = "", out: Path | None = None
) -> dict[str, float]:
    """Values of a recipe's evaluators on a checkpoint of a run, the newest unless one is named. A collective.

    The values go to a new event file of the run, at the step of the checkpoint, and into its history; where that
    says that the same evaluators have seen this step already, nothing is done.

    Args:
        recipe: of the run; its evaluators and places may be others than those it was trained with.
        run_dir: of the run.
        world: any number of ranks, whatever wrote the checkpoint.
        checkpoint: name of one of the run's, such as step-0000001000.
        out: a JSON file for the result.

    Raises:
        RunError: there is no checkpoint, or an attempt of the run holds the directory.
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
        engine, _ = build_engine(recipe, plan, world, device)
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
            raise RunError(f"{run_dir}: no checkpoint in it to evaluate; train it first")
        state = TrainState.load(restored.state, data.identity, str(restored.path))
        checkpoints.agree_on_place((state.step, state.position), restored.path, world)
        step, wanted = state.step, [dump(e) for e in recipe.evaluators]
        before = checkpoints.on_main(lambda: history.evaluation(run_dir, wanted, step), world)
        if before is not None:
            if world.is_main:
                log(f"  {run_dir}: these evaluators have seen step {step:,} already")
                _write_out(out, run_dir, recipe, step, before)
            return before
        context = EvalContext(engine, recipe, world, val)
        values: dict[str, float] = {}
        for evaluator in recipe.evaluators:
            assert isinstance(evaluator, EvaluatorConfig)
            values.update(evaluator.run(context))
        if world.is_main:
            _write(directory, recipe, step, values)
            _write_out(out, run_dir, recipe, step, values)
        return values


def _write_out(out: Path | None, run_dir: Path, recipe: Recipe, step: int, values: dict[str, float]) -> None:
    if out is not None:
        payload = {"run": recipe.name, "directory": str(run_dir), "step": step, "values": values}
        payload["evaluators"] = [dump(e) for e in recipe.evaluators]
        write_bytes(str(out), (json.dumps(payload, indent=1) + "\n").encode())


def _write(directory: RunDir, recipe: Recipe, step: int, values: dict[str, float]) -> None:
    # Without a purge step: what the run has logged at this step and beyond stays true.
    with contextlib.closing(EventWriter(directory.events)) as writer:
        write_metrics(writer, recipe.measured()[0] | recipe.metrics, step)
        writer.scalars(step, values)
    history.evaluated(directory.path, [dump(e) for e in recipe.evaluators], step, values)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    log(f"  {directory.path}, step {step:,}: {shown}")
