"""The heart: next batch with the stream's state after it, micro-batches, backward, step; then whatever is due."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vit_dist.config.load import recipe_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core import runlog
from vit_dist.core.errors import DataError, VitDistError
from vit_dist.core.events import EventWriter
from vit_dist.core.log import log
from vit_dist.core.rundir import RunDir
from vit_dist.core.seeding import hash64
from vit_dist.core.units import format_seconds
from vit_dist.core.world import World
from vit_dist.data.mixup import draw_mix, mix_micro_batches
from vit_dist.data.reader import Batch, Replacement
from vit_dist.data.sets import TrainingSet
from vit_dist.data.stream import TrainStream
from vit_dist.engines._protocol import Engine, StepResult
from vit_dist.evals import EvalContext, EvaluatorConfig
from vit_dist.optim import OptimizerConfig, ScheduleConfig
from vit_dist.train import checkpoints
from vit_dist.train.cadence import Cadence
from vit_dist.train.losses import make_targets
from vit_dist.train.progress import ProgressLine
from vit_dist.train.state import TrainState

_TAG_STEP = 0x53544550  # "STEP"


@dataclass
class StopRequest:
    """A wish to stop, from a signal; empty while there is none."""

    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on this world: steps, and a rank's share of one as accumulation x micro_batch."""

    total_steps: int
    warmup_steps: int
    micro_batch: int
    accumulation: int


@dataclass
class Run:
    """The collaborators of one attempt, by name."""

    recipe: Recipe
    world: World
    directory: RunDir
    engine: Engine
    data: TrainingSet
    plan: Plan
    evaluation: EvalContext
    identity: dict[str, Any]
    info: runlog.RunInfo
    state: TrainState
    stop: StopRequest
    writer: EventWriter | None = None

    def start_log(self) -> None:
        """Open this attempt's event file, on rank 0. What earlier attempts wrote beyond the restored step is void."""
        if self.world.is_main:
            self.writer = EventWriter(self.directory.events, purge_step=self.state.step + 1 if self.state.step else 0)
            runlog.write_start(self.writer, self.info, recipe_yaml(self.recipe))
            self.directory.write_status("running", self.state.step, self.state.position)

    def finish(self, status: Literal["done", "stopped", "failed"], reason: str = "") -> None:
        """Say in the log, then in status.json, how the attempt ended."""
        if self.writer is not None:
            step, examples = self.state.step, self.state.position
            runlog.write_status(
                self.writer, runlog.RunStatus(status=status, step=step, examples=examples, reason=reason)
            )
            self.directory.write_status(status, step, examples, reason)

    def fail(self, reason: str) -> None:
        """`finish` as failed. The disk may be what failed: then the error that is on its way says so."""
        with contextlib.suppress(VitDistError):
            self.finish("failed", reason)

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()


def train(run: Run, began: float) -> None:
    """Train until the horizon, or until a stop is asked for. A collective.

    Args:
        run: everything that takes part.
        began: monotonic time at which the attempt began, for the report of the first batch.

    Raises:
        DataError: too many samples cannot be decoded.
        RunError: a checkpoint cannot be written.
    """
    run.start_log()
    state, plan, clock = run.state, run.plan, _Clock(run)
    if state.step >= plan.total_steps:  # killed between its last checkpoint and saying so
        with contextlib.closing(ProgressLine(plan.total_steps, state.step, shown=run.world.is_main)) as progress:
            _evaluate(run, state, clock, progress)
        run.finish("done")
        return
    with (
        TrainStream(run.data, run.recipe, run.world, state.position) as stream,
        contextlib.closing(ProgressLine(plan.total_steps, state.step, shown=run.world.is_main)) as progress,
    ):
        for batch, after in stream:
            clock.batch_came(began)
            _seed_step(run, state.step)
            result = run.engine.train_step(_micro_batches(run, batch), _lr(run, state.step))
            replaced, stopping = _agree(run, batch.replaced)
            quarantined = frozenset(r.ordinal for r in replaced)
            before = state
            state = run.state = state.advance(position=after.position, applied=result.applied, quarantined=quarantined)
            clock.step_done(result)
            _quarantine(run, replaced, state)
            done = state.step >= plan.total_steps
            if clock.due("log", before, state) or done:
                _log(run, state, result, clock, progress)
            if clock.due("eval", before, state) or done:
                _evaluate(run, state, clock, progress)
            if clock.due("save", before, state) or done or stopping:
                _save(run, state, clock)
            if done or stopping:
                run.finish("done" if done else "stopped", "" if done else stopping)
                break
    if run.state.step < plan.total_steps and run.world.is_main:
        log(f"  stopped at step {run.state.step:,} on {stopping}; the same command goes on from here")


def _lr(run: Run, step: int) -> float:
    schedule, optim = run.recipe.schedule, run.recipe.optim
    assert isinstance(schedule, ScheduleConfig)
    assert isinstance(optim, OptimizerConfig)
    return schedule.lr_at(step, base_lr=optim.lr, total_steps=run.plan.total_steps, warmup_steps=run.plan.warmup_steps)


def _seed_step(run: Run, step: int) -> None:
    # Dropout and stochastic depth draw from a generator that is a function of the step: there is no state to save.
    torch.manual_seed(hash64(run.recipe.seed, _TAG_STEP, step, run.world.rank))


def _micro_batches(run: Run, batch: Batch) -> Sequence[tuple[Tensor, Tensor]]:
    targets = make_targets(batch, run.recipe.data.num_classes, run.recipe.loss)
    size, mixup = run.plan.micro_batch, run.recipe.data.mixup
    if mixup is not None:
        firsts = batch.positions[: len(batch.positions) // 2].tolist()
        mixes = [draw_mix(mixup, run.recipe.seed, position, batch.images.shape[-1]) for position in firsts]
        return mix_micro_batches(batch.images, targets, mixes, size, run.engine.device)
    return [(batch.images[i : i + size], targets[i : i + size]) for i in range(0, len(batch.images), size)]


def _agree(run: Run, replaced: list[Replacement]) -> tuple[list[Replacement], str]:
    """What any rank met in this step: samples replaced, and a reason to stop or ''. A collective."""
    reason = run.stop.reason
    if run.world.size == 1:
        return replaced, reason
    flags = torch.tensor([bool(replaced), bool(reason)], dtype=torch.int32, device=run.engine.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    if not flags.any():
        return [], ""
    everyone: list[Any] = [None] * run.world.size
    torch.distributed.all_gather_object(everyone, (replaced, reason))
    return [r for part, _ in everyone for r in part], next((why for _, why in everyone if why), "")


def _quarantine(run: Run, replaced: list[Replacement], state: TrainState) -> None:
    """Record what was replaced; stop the run where it is too much.

    Raises:
        DataError: more of the set than data.max_bad cannot be decoded.
    """
    if not replaced:
        return
    if run.world.is_main:
        with run.directory.quarantine.open("a") as file:
            for r in replaced:
                file.write(json.dumps({"step": state.step, **asdict(r)}) + "\n")
        log(f"  quarantined {replaced[0].key!r} of {replaced[0].shard}: {replaced[0].reason}")
    bad, allowed = len(state.quarantined), math.ceil(run.recipe.data.max_bad * run.data.num_samples)
    if bad > allowed:
        first = replaced[0]
        raise DataError(
            f"{bad} of {run.data.num_samples} examples cannot be decoded, over data.max_bad="
            f"{run.recipe.data.max_bad:g}; the last: {first.key!r} of {first.shard}: {first.reason}. "
            f"All are in {run.directory.quarantine}; repair them, or raise data.max_bad"
        )


def _log(run: Run, state: TrainState, result: StepResult, clock: _Clock, progress: ProgressLine) -> None:
    loss, rate, wait = clock.since_last_log()
    epoch = state.position / run.data.num_samples
    if run.writer is not None:
        run.writer.scalars(
            state.step,
            {
                runlog.TRAIN_LOSS: loss,
                runlog.TRAIN_LR: _lr(run, state.step - 1),
                runlog.TRAIN_GRAD_NORM: result.grad_norm,
                runlog.TRAIN_EXAMPLES_PER_S: rate,
                runlog.TRAIN_EPOCH: epoch,
                runlog.PROGRESS_EXAMPLES: state.position,
                "train/data_wait": wait,
                "train/skipped_steps": state.skipped,
                "train/quarantined": len(state.quarantined),
                **{f"data/epochs/{name}": epochs for name, epochs in run.data.epochs(state.position).items()},
            },
        )
        run.directory.write_status("running", state.step, state.position)
    progress.update(state.step, {"epoch": epoch, "loss": loss, "img/s": rate})


def _evaluate(run: Run, state: TrainState, clock: _Clock, progress: ProgressLine) -> None:
    values: dict[str, float] = {}
    with clock.pause():
        for evaluator in run.recipe.evaluators:
            assert isinstance(evaluator, EvaluatorConfig)
            values.update(evaluator.run(run.evaluation))
    if values and run.writer is not None:
        run.writer.scalars(state.step, values)
        shown = {name.removeprefix("val/"): value for name, value in values.items()}
        progress.update(state.step, {"epoch": state.position / run.data.num_samples, **shown}, force=True)


def _save(run: Run, state: TrainState, clock: _Clock) -> None:
    with clock.pause():
        if run.writer is not None:
            run.writer.flush()  # what the log says must not be behind what the checkpoint holds
        keep = run.recipe.checkpoint.keep
        dumped = state.dump(run.data.identity)
        checkpoints.save(run.directory.checkpoints, run.engine, dumped, run.identity, run.world, keep)


class _Clock:
    """Cadences, throughput and waiting of this attempt. Evaluations and saves do not count as training time."""

    def __init__(self, run: Run) -> None:
        n, batch = run.data.num_samples, run.recipe.global_batch
        durations = {"log": run.recipe.log.every, "eval": run.recipe.eval.every, "save": run.recipe.checkpoint.every}
        self._cadences = {name: Cadence(every, batch, n) for name, every in durations.items()}
        self._world, self._batch, self._device = run.world, batch, run.engine.device
        self._waited = self._paused = 0.0
        self._steps, self._loss = 0, 0.0
        self._mark = self._idle_since = time.monotonic()
        self._first = True

    def batch_came(self, began: float) -> None:
        now = time.monotonic()
        self._waited += now - self._idle_since
        if self._first:
            self._first = False
            if self._world.is_main:
                log(f"  first batch {format_seconds(now - began)} after the start")

    def step_done(self, result: StepResult) -> None:
        self._steps += 1
        self._loss += result.loss
        self._idle_since = time.monotonic()

    def due(self, name: str, before: TrainState, after: TrainState) -> bool:
        cadence = self._cadences[name]
        due = cadence.due(before.position, after.position)
        if cadence.every.unit == "seconds" and self._world.size > 1:
            flag = torch.tensor([due and self._world.is_main], dtype=torch.int32, device=self._device)
            torch.distributed.broadcast(flag, 0)  # one clock decides for all
            due = bool(flag)
        return due

    def pause(self) -> _Pause:
        return _Pause(self)

    def add_pause(self, seconds: float) -> None:
        self._paused += seconds
        self._idle_since = time.monotonic()

    def since_last_log(self) -> tuple[float, float, float]:
        """Mean loss, examples a second, and the share of time spent waiting for data."""
        now = time.monotonic()
        spent = max(1e-9, now - self._mark - self._paused)
        answer = (self._loss / max(1, self._steps), self._steps * self._batch / spent, min(1.0, self._waited / spent))
        self._mark, self._waited, self._paused, self._steps, self._loss = now, 0.0, 0.0, 0, 0.0
        return answer


class _Pause:
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.add_pause(time.monotonic() - self._began)
