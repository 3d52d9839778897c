"""One attempt of a run on one rank: open everything, restore, train, close. The loop itself is train/loop.py."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vit_dist import __version__
from vit_dist.config.load import differences, identity, recipe_hash, recipe_yaml
from vit_dist.config.plugins import check_plugins, with_copies
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.files import write_bytes
from vit_dist.core.log import log
from vit_dist.core.run import log as runlog
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World, rendezvous
from vit_dist.data.sets import TrainingSet
from vit_dist.engines._protocol import Engine, EngineInputs
from vit_dist.evals import EvalContext
from vit_dist.models import ModelConfig
from vit_dist.models._base import seed_weights
from vit_dist.models._macs import count_macs
from vit_dist.optim import OptimizerConfig, ScheduleConfig
from vit_dist.train.checkpoint import restore as checkpoints
from vit_dist.train.checkpoint.probe import make_probe
from vit_dist.train.checkpoint.saver import Saver
from vit_dist.train.checkpoint.store import Retention, sweep
from vit_dist.train.health.monitor import Monitor, Watchdog, leave_after_grace
from vit_dist.train.initial_weights import Initial
from vit_dist.train.loop import train
from vit_dist.train.losses import make_loss
from vit_dist.train.plan import Plan, open_training
from vit_dist.train.plugin_code import agreed_plugins
from vit_dist.train.progress.attempt_record import AttemptRecord
from vit_dist.train.progress.clock import Clock, StartUp
from vit_dist.train.progress.goodput import Goodput, carried
from vit_dist.train.run import Run, StopRequest
from vit_dist.train.state import TrainState


class PeerLostError(Exception):
    """Another rank is gone: no collective can complete, so this one ends at once."""


def attempt(recipe: Recipe, run_dir: Path, world: World) -> None:
    """Train from the newest checkpoint, or from the beginning, until done or asked to stop.

    Raises:
        VitDistError: what keeps the run from starting or going on.
        PeerLostError: another rank died.
    """
    start = StartUp()
    start.mark("imports")
    directory = RunDir(run_dir)
    ledger = AttemptRecord(directory, world)
    with contextlib.ExitStack() as stack:
        if world.is_main:
            stack.enter_context(directory.locked())
        stop = stack.enter_context(stop_requests())
        device = stack.enter_context(process_group(world))
        watchdog = stack.enter_context(watched(recipe, directory, world, ledger))
        start.mark("process group")
        try:
            run = stack.enter_context(
                contextlib.closing(open_run(recipe, directory, world, device, stop, ledger, watchdog, start))
            )
        except (VitDistError, RuntimeError) as error:
            explained = _explained(error)
            ledger.end("failed", str(explained))
            raise explained from (None if explained is error else error)
        try:
            if _is_done(run):
                if world.is_main:
                    log(f"  {run_dir}: this run is done; give another --run-dir or another seed to train anew")
                ledger.end("done", goodput=ledger.before.goodput)
            else:
                train(run)
        except (VitDistError, RuntimeError) as error:
            explained = _explained(error)
            run.fail(str(explained) if isinstance(error, VitDistError) else f"{type(error).__name__}: {explained}")
            raise explained from (None if explained is error else error)


@contextlib.contextmanager
def watched(recipe: Recipe, directory: RunDir, world: World, ledger: AttemptRecord) -> Iterator[Watchdog]:
    """Notice ranks that die or hang, for as long as the block lasts. A collective."""
    monitor: list[Monitor] = []

    def ended(reason: str) -> None:
        ledger.end("failed", reason)

    def tell(message: str) -> None:
        for link in monitor:
            link.tell(message)

    watchdog = Watchdog(float(recipe.guards.hang.value), directory.stacks, world.rank, tell, ended)
    if world.size > 1:
        monitor.append(Monitor(world, _exchange, leave_after_grace(world, ended), lambda: _dump(watchdog)))
    yield watchdog
    # Not in a `finally`: a rank that fails is gone for the others, and they must not wait for it.
    watchdog.close()
    for link in monitor:
        link.close()


def _exchange(address: tuple[str, int] | None) -> tuple[str, int]:
    told: list[Any] = [address]
    torch.distributed.broadcast_object_list(told, 0)
    host, port = told[0]
    return str(host), int(port)


def _dump(watchdog: Watchdog) -> None:
    watchdog.dump()


def open_run(
    recipe: Recipe,
    directory: RunDir,
    world: World,
    device: torch.device,
    stop: StopRequest,
    ledger: AttemptRecord,
    watchdog: Watchdog,
    start: StartUp,
) -> Run:
    """Everything a run needs, restored to where it was. A collective."""
    model_config = recipe.model
    assert isinstance(model_config, ModelConfig)
    assert isinstance(recipe.schedule, ScheduleConfig)
    data, val, plan = open_training(recipe, world)
    initial = Initial(recipe, directory, world)
    plugins = agreed_plugins(recipe, world)
    whole = {**identity(recipe), "fingerprint": data.fingerprint, **initial.identity, **plugins}
    if world.is_main:
        _claim(directory, recipe, whole)
    ledger.begin()
    ledger.total_steps = plan.total_steps
    # Until the checkpoint is there nothing is known to be lost: the sums of before, and this start.
    before = ledger.before
    now = time.time() - (time.monotonic() - start.began)  # when this attempt began, by the clock on the wall
    ledger.beat(Goodput(carried(before.goodput, before.goodput, before.time, now), start.began))
    start.mark("data")

    engine, num_params = build_engine(recipe, plan, world, device)
    start.mark("model and engine")
    probe = make_probe(recipe, data.parts[0].manifest, world, recipe.checkpoint.probe)
    found = checkpoints.restore(
        directory.checkpoints, engine, whole, world, probe=probe, remote=recipe.checkpoint.remote
    )
    state = TrainState()
    if found is None:
        initial.load(engine)
    else:
        state = TrainState.load(found.state, data.identity, str(found.path))
    start.mark("restoring" if found is not None else "probe")
    if world.is_main:
        _announce(recipe, data, plan, engine, world, num_params)
        _announce_restored(found, state, engine)
    saver, attempt_number = _make_saver(recipe, data, directory, world, ledger)
    saver.last_step = state.step if found is not None else None
    sums = carried(found.marker.get("goodput", {}) if found else {}, before.goodput, before.time, now)
    goodput = Goodput(sums, start.began)
    ledger.beat(goodput)
    clock = Clock(recipe, data, world, device, goodput, watchdog, start)
    info = _run_info(recipe, data, plan, engine, world, num_params, model_config)
    context = EvalContext(engine, recipe, world, val)
    return Run(
        recipe,
        world,
        directory,
        engine,
        data,
        plan,
        context,
        whole,
        info,
        state,
        stop,
        ledger,
        saver,
        probe,
        clock,
        attempt_number,
    )


def build_engine(recipe: Recipe, plan: Plan, world: World, device: torch.device) -> tuple[Engine, int]:
    """The model in its engine, with the weights of the seed, and how many parameters it has. A collective."""
    config, optim = recipe.model, recipe.optim
    assert isinstance(config, ModelConfig)
    assert isinstance(optim, OptimizerConfig)
    seed_weights(recipe.seed)
    model: Any = config.build(num_classes=recipe.data.num_classes, image_size=recipe.data.image_size)
    model.set_activation_checkpointing(_recomputes(recipe))
    num_params = sum(p.numel() for p in model.parameters())
    inputs = EngineInputs(
        model=model,
        optimizer=optim.build(model),
        loss=make_loss(recipe.loss),
        world=world,
        device=device,
        precision=recipe.precision,
        clip=optim.clip,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        memory_format=torch.channels_last if recipe.engine.channels_last else torch.contiguous_format,  # type: ignore[attr-defined]
    )
    engine: Engine = recipe.engine.build(inputs)  # type: ignore[attr-defined]
    return engine, num_params


def _recomputes(recipe: Recipe) -> str:
    return str(getattr(recipe.engine, "activation_checkpointing", "none"))


def _make_saver(
    recipe: Recipe, data: TrainingSet, directory: RunDir, world: World, ledger: AttemptRecord
) -> tuple[Saver, int]:
    """The writer of this attempt's checkpoints, and the attempt's number. A collective.

    What dead attempts left half written is removed.
    """
    config = recipe.checkpoint
    told: list[str | int] = [ledger.token, ledger.attempt]
    if world.is_main:
        sweep(directory.checkpoints)
    if world.size > 1:
        torch.distributed.broadcast_object_list(told, 0)
    every = config.keep_every
    examples = every and int(every.examples(global_batch=recipe.global_batch, epoch_examples=data.num_samples))
    retention = Retention(config.keep, examples or None, config.keep_best)
    saver = Saver(
        directory,
        world,
        str(told[0]),
        retention,
        max_failures=config.max_failures,
        remote=config.remote,
    )
    return saver, int(told[1])


def _announce_restored(found: checkpoints.Restored | None, state: TrainState, engine: Engine) -> None:
    if found is None:
        return
    log(f"  resumed from step {state.step:,} ({found.path})")
    changes = checkpoints.layout_changes(found.marker["layout"], engine.layout)
    if changes:
        log(
            f"  that checkpoint was written by another layout: {'; '.join(changes)}. Weights and moments are the same "
            f"bit for bit; what follows may round differently"
        )


@contextlib.contextmanager
def process_group(world: World) -> Iterator[torch.device]:
    """Join the other ranks: NCCL where there are GPUs, gloo else. Yields this rank's device."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", world.local_rank % max(1, torch.cuda.device_count())) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    os.environ.update(rendezvous(), RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo", rank=world.rank, world_size=world.size, init_method="env://"
    )
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGTERM, SIGUSR2 and Ctrl-C ask for a clean stop after the step that runs."""
    stop = StopRequest()

    def ask(number: int, _frame: Any) -> None:
        stop.reason = signal.Signals(number).name

    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.signal(number, ask) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # the command line holds them back while torch is imported
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _claim(directory: RunDir, recipe: Recipe, whole: dict[str, Any]) -> None:
    """Make the directory this run's, or refuse one that is another's."""
    found = directory.read_json(names.RUN)
    if found is not None:
        check_plugins(recipe, found, directory.path)
        changes = differences(whole, found.get("identity", {}))
        if changes:
            raise RunError(
                f"{directory.path}: holds another run: {'; '.join(changes)}. Restore these settings to go on with it, "
                f"or give another --run-dir"
            )
        return
    try:
        text = recipe_yaml(with_copies(recipe, directory.path))
        write_bytes(str(directory.path / names.RECIPE), text.encode())
        directory.write_json(
            names.RUN,
            {"name": recipe.name, "recipe_hash": recipe_hash(recipe), "identity": whole, "vit_dist": __version__},
        )
    except VitDistError as error:
        raise RunError(f"{directory.path}: the run directory cannot be written: {error}") from None


def _is_done(run: Run) -> bool:
    told = [run.ledger.before.status == "done" and run.state.step >= run.plan.total_steps]
    if run.world.size > 1:
        torch.distributed.broadcast_object_list(told, 0)
    return told[0]


def _announce(recipe: Recipe, data: TrainingSet, plan: Plan, engine: Engine, world: World, num_params: int) -> None:
    micro = f"{plan.accumulation} x {plan.micro_batch}" if plan.accumulation > 1 else str(plan.micro_batch)
    checkpointing = _recomputes(recipe)
    recompute = f", activation checkpointing {checkpointing}" if checkpointing != "none" else ""
    reads = data.order.read_amplification(world.size)
    again = f", each byte read by {reads} ranks" if reads > 1 and data.order.lanes > 1 else ""
    log(
        f"  engine: {engine.description}{recompute}; {world.size} process{'es' if world.size > 1 else ''} on "
        f"{engine.device.type}\n"
        f"  model: {recipe.model.name}, {num_params:,} parameters\n"
        f"  data: {data.num_samples:,} of {data.total_samples:,} examples ({data.name}, "
        f"{format_bytes(data.num_bytes)}), {data.order.lanes} lanes{again}\n"
        f"  plan: {plan.total_steps:,} steps of {recipe.global_batch} ({recipe.horizon}), a rank runs {micro} a step"
    )


def _run_info(
    recipe: Recipe, data: TrainingSet, plan: Plan, engine: Engine, world: World, num_params: int, model: ModelConfig
) -> runlog.RunInfo:
    return runlog.RunInfo(
        name=recipe.name,
        study=recipe.study,
        family=recipe.family or model.family,
        model=model.name,
        num_params=num_params,
        macs_per_image=count_macs(model, recipe.data.num_classes, recipe.data.image_size),
        macs_method="torch FlopCounterMode, meta device, one forward pass",
        dataset=data.name if recipe.data.dataset == "custom" else recipe.data.dataset,
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
    )


def _explained(error: Exception) -> Exception:
    """The error itself, or PeerLostError where it only says that another rank has gone."""
    if isinstance(error, VitDistError):
        return error
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting")
    if any(sign in str(error) for sign in signs):
        return PeerLostError(f"a peer is gone ({str(error).splitlines()[0][:120]})")
    return error
