"""One attempt of a run on one rank: open everything, restore, train, close. The loop itself is train/loop.py."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_dist import __version__
from vit_dist.config.cadences import unrated_checkpoints
from vit_dist.config.load import identity, recipe_hash, shipped_set
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import VitDistError, is_refusal
from vit_dist.core.files import redact
from vit_dist.core.log import WARNING, log
from vit_dist.core.metrics import ACCURACY
from vit_dist.core.process import STOP_SIGNALS, handling, signal_text
from vit_dist.core.run import log as runlog
from vit_dist.core.run.checkpoints import LOG
from vit_dist.core.run.copies import bring_back
from vit_dist.core.run.directory import RunDir, wait_for_stores
from vit_dist.core.run.lineage import Lineage
from vit_dist.core.units import counted, format_bytes
from vit_dist.core.world import World
from vit_dist.data.reader import waits_now
from vit_dist.data.sets import TrainingSet, idle_outputs
from vit_dist.engines._average import averaging_of, check_averages
from vit_dist.engines._collectives import broadcast_object
from vit_dist.engines._layout import images_format
from vit_dist.engines._numerics import check_precision, numerics, slow_bf16
from vit_dist.engines._protocol import Engine, EngineInputs
from vit_dist.engines._timer import StepTimer
from vit_dist.evals import EvalContext
from vit_dist.models import ModelConfig
from vit_dist.models._base import seed_weights
from vit_dist.models._macs import count_macs
from vit_dist.optim import OptimizerConfig, ScheduleConfig
from vit_dist.train.branch import agreed_lineage, plant_missing, trunk_identity
from vit_dist.train.checkpoint import restore as checkpoints
from vit_dist.train.checkpoint.probe import make_probe
from vit_dist.train.checkpoint.saver import Saver
from vit_dist.train.checkpoint.store import Retention, sweep
from vit_dist.train.claim import claim
from vit_dist.train.class_weights import identity_of_file, weights_of_classes
from vit_dist.train.failures import explained
from vit_dist.train.health.monitor import Monitor, Place, Watchdog, leave_after_grace
from vit_dist.train.health.patience import Patience, patience
from vit_dist.train.initial_weights import Initial
from vit_dist.train.loop import train
from vit_dist.train.losses import make_training_loss
from vit_dist.train.measures import open_measures
from vit_dist.train.plan import Plan, open_training
from vit_dist.train.plugin_code import agreed_plugins
from vit_dist.train.process_group import limit_collectives, process_group
from vit_dist.train.profile import Profiler, ProfileSteps
from vit_dist.train.progress.attempt_record import AttemptRecord
from vit_dist.train.progress.clock import Clock, StartUp
from vit_dist.train.progress.goodput import Goodput, carried
from vit_dist.train.progress.performance import describe_device
from vit_dist.train.run import Run, StopRequest
from vit_dist.train.state import TrainState
from vit_dist.train.takedown import agree_on_list, check_list, name_list, with_list
from vit_dist.train.teacher import TeacherWeights


def attempt(recipe: Recipe, run_dir: Path, world: World, profile: ProfileSteps | None = None) -> None:
    """Train from the newest checkpoint, or from the beginning, until done or asked to stop.

    Args:
        recipe: of the run.
        run_dir: of the run.
        world: this rank's place.
        profile: steps of which rank 0 writes a trace.

    Raises:
        VitDistError: what keeps the run from starting or continuing.
        PeerLostError: another rank died (train/failures.py).
    """
    start = StartUp()
    start.mark("imports")
    wait_for_stores(run_dir)
    directory = RunDir(run_dir)
    record = AttemptRecord(directory, world)
    with contextlib.ExitStack() as stack:
        if world.is_main:
            stack.enter_context(directory.locked())
        limits = patience(float(recipe.guards.hang.value))
        # First: cuBLAS reads its setting from the environment when CUDA starts.
        stack.enter_context(numerics(recipe))
        device = stack.enter_context(process_group(world, limits, directory.stacks))
        stop = stack.enter_context(stop_requests())
        check_precision(recipe.precision, device)
        watchdog = stack.enter_context(watched(limits, directory, world, record))
        start.mark("process group")
        try:
            run = stack.enter_context(
                contextlib.closing(open_run(recipe, directory, world, device, stop, record, watchdog, start))
            )
        except (VitDistError, RuntimeError, OSError) as error:
            failure = explained(error, recipe, run_dir, world)
            record.end("failed", str(failure), refused=is_refusal(failure))
            raise failure from (None if failure is error else error)
        try:
            if _is_done(run):
                if world.is_main:
                    log(f"  {run_dir}: this run is done; give another --run-dir or another seed to train anew")
                record.end("done", goodput=record.before.goodput)
            else:
                if profile is not None and world.is_main:
                    run.profiler = Profiler(profile, directory.profile, world.rank, run.state.step)
                train(run)
        except (VitDistError, RuntimeError, OSError) as error:
            failure = explained(error, recipe, run_dir, world, run.plan)
            run.fail(str(failure) if isinstance(failure, VitDistError) else f"{type(error).__name__}: {failure}")
            raise failure from (None if failure is error else error)


@contextlib.contextmanager
def watched(limits: Patience, directory: RunDir, world: World, record: AttemptRecord) -> Iterator[Watchdog]:
    """Notice ranks that die or hang, for as long as the block lasts. A collective."""
    monitor: list[Monitor] = []

    def say_waits() -> None:
        if now := waits_now():
            record.waits(now)

    def ended(reason: str) -> None:
        say_waits()
        record.end("failed", reason)

    def send(message: str) -> None:
        for link in monitor:
            link.send(message)

    def exchange(place: Place | None) -> Place:
        from_main = broadcast_object(place, world)
        assert from_main is not None, "rank 0 gives its address"
        return from_main

    def dump_stacks() -> None:
        say_waits()
        watchdog.dump()

    watchdog = Watchdog(limits, directory.stacks, world.rank, send, ended, waits_now)
    if world.size > 1:
        monitor.append(Monitor(world, exchange, leave_after_grace(world, ended), dump_stacks, record.rank_waits))
        record.pass_on = lambda text: send(f"waits {text}")
    yield watchdog
    # Not in a `finally`: a rank that fails must not send its `bye`, so that the others learn of it from the connection
    # that its end closes and leave the collective they wait in.
    watchdog.close()
    for link in monitor:
        link.close()


def open_run(
    recipe: Recipe,
    directory: RunDir,
    world: World,
    device: torch.device,
    stop: StopRequest,
    record: AttemptRecord,
    watchdog: Watchdog,
    start: StartUp,
) -> Run:
    """Everything a run needs, restored to where it was. A collective."""
    model_config = recipe.model
    assert isinstance(model_config, ModelConfig)
    assert isinstance(recipe.schedule, ScheduleConfig)
    data, val, plan = open_training(recipe, world)
    agree_on_list(recipe, world)
    _bring_back(recipe, data, directory, world)
    check_list(recipe, data, val, directory.path, world)
    initial = Initial(recipe, directory, world, data.class_names)
    teacher = TeacherWeights(recipe, directory, world, data.class_names)
    weights = weights_of_classes(recipe, data, world, device)
    plugins = agreed_plugins(recipe, world)
    digests = {"fingerprint": data.fingerprint, **initial.identity, **teacher.identity, **plugins}
    run_identity = {**identity(recipe), **digests, **identity_of_file(recipe, weights)}
    lineage = agreed_lineage(recipe, directory, run_identity, world)
    run_identity |= trunk_identity(recipe, lineage)
    # Before anything is written or superseded: a run directory of another run must be left as it is.
    if world.is_main:
        claim(directory, recipe, data, run_identity, lineage)
    record.begin()
    record.total_steps = plan.total_steps
    # Until the checkpoint is there nothing is known to be lost: the sums of before, and this start.
    before = record.before
    # When this attempt began, by the wall clock.
    now = time.time() - (time.monotonic() - start.began)
    record.start_heartbeat(Goodput(carried(before.goodput, before.goodput, before.time, now), start.began))
    start.mark("data")

    engine, num_params = build_engine(recipe, plan, world, device, weights=weights)
    start.mark("model and engine", {"compiling": engine.timer.compiling_s})
    probe = make_probe(recipe, data.parts[0], world, recipe.checkpoint.probe)
    plant_missing(recipe, data, directory, run_identity, lineage, world)
    restored = checkpoints.restore(
        directory.checkpoints, engine, run_identity, world, probe=probe, remote=recipe.checkpoint.remote
    )
    state = TrainState()
    if restored is None:
        initial.load(engine)
    else:
        state = TrainState.load(restored.state, data.identity, str(restored.path))
        checkpoints.agree_on_place((state.step, state.position), restored.path, world)
    state = with_list(state, recipe, data, val, world)
    name_list(directory, recipe, world)
    start.mark("restoring" if restored is not None else "probe")
    if world.is_main:
        _announce(recipe, data, plan, engine, world, num_params)
        _announce_restored(restored, state, engine)
    saver, attempt_number = _make_saver(recipe, data, directory, world, record)
    saver.last_step = state.step if restored is not None else None
    if restored is not None:
        saver.distrust(restored.damaged, restored.damaged_copies)
    saver.prepare(engine, recipe.optim.moments if restored is None else 0)  # type: ignore[attr-defined]
    sums = carried(restored.marker.get("goodput", {}) if restored else {}, before.goodput, before.time, now)
    goodput = Goodput(sums, start.began)
    record.start_heartbeat(goodput)
    clock = Clock(recipe, data, world, goodput, watchdog, start, engine.timer)
    info = _run_info(recipe, data, plan, engine, world, num_params, model_config, lineage)
    measures = open_measures(EvalContext(engine, recipe, world, val), directory, world)
    measures.announce(WARNING)
    return Run(
        recipe,
        world,
        directory,
        engine,
        data,
        plan,
        measures,
        run_identity,
        info,
        state,
        stop,
        record,
        saver,
        probe,
        clock,
        attempt_number,
        teacher=teacher.build(device),
        unwritten=restored.marker.get(LOG) if restored is not None else None,
    )


def _bring_back(recipe: Recipe, data: TrainingSet, directory: RunDir, world: World) -> None:
    """Fetch logs and records of a run whose directory is lost, before anything is written there. A collective."""
    remote = recipe.checkpoint.remote
    if not remote:
        return
    known = {**identity(recipe), "fingerprint": data.fingerprint}
    count = checkpoints.on_main(lambda: bring_back(directory.path, remote, known), world)
    if count and world.is_main:
        log(f"  {directory.path}: {counted(count, 'file')} of logs and records were brought back from {redact(remote)}")


def build_engine(
    recipe: Recipe,
    plan: Plan,
    world: World,
    device: torch.device,
    *,
    trains: bool = True,
    weights: Tensor | None = None,
) -> tuple[Engine, int]:
    """The model in its engine, with the weights of the seed, and how many parameters it has. A collective.

    Args:
        recipe: of the run.
        plan: of the run.
        world: this rank's place.
        device: this rank's.
        trains: whether a step will be taken.
        weights: factors of the classes in the loss [K]; None: none.
    """
    config, optim = recipe.model, recipe.optim
    assert isinstance(config, ModelConfig)
    assert isinstance(optim, OptimizerConfig)
    seed_weights(recipe.seed)
    model: Any = config.build(num_classes=recipe.data.num_classes, image_size=recipe.data.image_size)
    model.set_activation_checkpointing(_recomputes(recipe))
    num_params = sum(p.numel() for p in model.parameters())
    inputs = EngineInputs(
        model=model,
        optimizer=optim.over_layers(model),
        loss=make_training_loss(recipe.loss, weights),
        world=world,
        device=device,
        precision=recipe.precision,
        clip=optim.clip,
        clip_layers=optim.clipped_layers(model),
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        memory_format=images_format(recipe.engine, model, device),  # type: ignore[arg-type]
        timer=StepTimer(device),
        image_size=recipe.data.image_size if trains else None,
        averaging=averaging_of(recipe),
    )
    engine: Engine = recipe.engine.build(inputs)  # type: ignore[attr-defined]
    check_averages(recipe, engine)
    limit_collectives(patience(float(recipe.guards.hang.value)))
    return engine, num_params


def _recomputes(recipe: Recipe) -> str:
    return str(getattr(recipe.engine, "activation_checkpointing", "none"))


def _make_saver(
    recipe: Recipe, data: TrainingSet, directory: RunDir, world: World, record: AttemptRecord
) -> tuple[Saver, int]:
    """The writer of this attempt's checkpoints, and the attempt's number. A collective.

    What dead attempts left half written is removed.
    """
    config = recipe.checkpoint
    if world.is_main:
        sweep(directory.checkpoints)
    # Rank 0 alone took the directory, but every rank names its partial directory by the token. The broadcast also makes
    # the sweep come before any rank's first write.
    token, attempt_number = broadcast_object((record.token, record.attempt), world)
    every = config.keep_every
    examples = every and int(every.examples(global_batch=recipe.global_batch, epoch_examples=data.num_samples))
    rule = recipe.metric(config.keep_best, "checkpoint.keep_best") if config.keep_best else ACCURACY
    retention = Retention(config.keep, examples or None, config.keep_best, rule)
    saver = Saver(
        directory,
        world,
        token,
        retention,
        max_failures=config.max_failures,
        remote=config.remote,
        peers_s=patience(float(recipe.guards.hang.value)).other_work_s,
    )
    return saver, attempt_number


def _announce_restored(restored: checkpoints.Restored | None, state: TrainState, engine: Engine) -> None:
    if restored is None:
        return
    if restored.fetched:
        log(f"  restored from {redact(restored.fetched)} at step {state.step:,}; it goes on in {restored.path}")
    else:
        log(f"  resumed from step {state.step:,} ({restored.path})")
    changes = checkpoints.layout_changes(restored.marker["layout"], engine.layout)
    if changes:
        log(
            f"  that checkpoint was written by another layout: {'; '.join(changes)}. Weights and moments are the same "
            f"bit for bit; what follows may round differently"
        )


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGTERM, SIGUSR2 and Ctrl-C ask for a clean stop after the step that runs."""
    stop = StopRequest()

    def ask(number: int, _frame: Any) -> None:
        stop.reason = signal_text(number)

    # Python sets handlers in the main thread only; elsewhere (tests, an embedding program) signals are the caller's.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with handling(STOP_SIGNALS, ask):
        # The command line has held them back: only now is there a handler that they can reach. And again afterwards:
        # what ends now has said how, and a signal must not turn a run that is done into one that was killed.
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            yield stop
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_done(run: Run) -> bool:
    # Only rank 0 has read the status of the attempt before.
    return broadcast_object(run.record.before.status == "done" and run.state.step >= run.plan.total_steps, run.world)


def _announce(recipe: Recipe, data: TrainingSet, plan: Plan, engine: Engine, world: World, num_params: int) -> None:
    micro = f"{plan.accumulation} x {plan.micro_batch}" if plan.accumulation > 1 else str(plan.micro_batch)
    checkpointing = _recomputes(recipe)
    recompute = f", activation checkpointing {checkpointing}" if checkpointing != "none" else ""
    reads = data.order.read_amplification(world.size)
    again = f", each byte read by {counted(reads, 'rank')}" if reads > 1 and data.order.lanes > 1 else ""
    log(
        f"  engine: {engine.description}{recompute}; {world.size} process{'es' if world.size > 1 else ''} on "
        f"{describe_device(engine.device, recipe.precision)}\n"
        f"  model: {recipe.model.name}, {num_params:,} parameters, images of {recipe.data.image_size} x "
        f"{recipe.data.image_size} pixels\n"
        f"  data: {data.num_samples:,} of {counted(data.total_samples, 'example')} ({data.name}, "
        f"{format_bytes(data.num_bytes)}), {counted(data.order.lanes, 'lane')}{again}\n"
        f"  plan: {counted(plan.total_steps, 'step')} of {recipe.global_batch} ({recipe.horizon}), "
        f"a rank runs {micro} a step"
    )
    unrated = unrated_checkpoints(recipe, data.num_samples)
    idle = idle_outputs(recipe.data.num_classes, data.num_classes)
    for remark in filter(None, (unrated, idle, slow_bf16(recipe.precision, engine.device))):
        log(f"  {remark}", WARNING)


def _run_info(
    recipe: Recipe,
    data: TrainingSet,
    plan: Plan,
    engine: Engine,
    world: World,
    num_params: int,
    model: ModelConfig,
    lineage: Lineage,
) -> runlog.RunInfo:
    return runlog.RunInfo(
        name=recipe.name,
        study=recipe.study,
        family=recipe.family or model.family,
        model=model.name,
        num_params=num_params,
        macs_per_image=count_macs(model, recipe.data.num_classes, recipe.data.image_size, training=True),
        macs_method="torch FlopCounterMode, meta device, one forward pass",
        dataset=recipe.data.dataset if shipped_set(recipe) is not None else data.name,
        dataset_fingerprint=data.fingerprint,
        num_classes=recipe.data.num_classes,
        image_size=recipe.data.image_size,
        subset=data.num_samples,
        subset_seed=recipe.data.subset_seed,
        seed=recipe.seed,
        planned_examples=plan.total_steps * recipe.global_batch,
        planned_steps=plan.total_steps,
        global_batch=recipe.global_batch,
        base_lr=recipe.optim.lr,  # type: ignore[attr-defined]
        weight_decay=getattr(recipe.optim, "weight_decay", 0.0),
        precision=recipe.precision,
        engine=engine.description,
        world_size=world.size,
        code_version=__version__,
        recipe_hash=recipe_hash(recipe),
        lineage=lineage,
    )
