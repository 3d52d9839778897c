"""The training loop: next batch with the stream's state after it, micro-batches, backward, step; then what is due.

All ranks take every branch that leads to a collective together. What only one rank can see (a signal, a request file, a
sample that cannot be decoded, a clock) goes through `_agree` or `Clock.due` first; everything else that is branched on
(losses, train state, cadences in steps) is the same number on every rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from vit_dist.core.errors import DataError
from vit_dist.core.log import WARNING, log
from vit_dist.core.progress import Progress
from vit_dist.core.run import history
from vit_dist.core.run import log as runlog
from vit_dist.core.seeding import hash64
from vit_dist.core.store_patience import run_has_begun
from vit_dist.data.mixup import draw_mix, mix_micro_batches
from vit_dist.data.reader import Batch, Replacement
from vit_dist.data.stream import TrainStream
from vit_dist.engines._collectives import all_gather_object, any_rank
from vit_dist.engines._protocol import StepResult
from vit_dist.optim import OptimizerConfig, ScheduleConfig
from vit_dist.train.bad_steps import record_bad_step
from vit_dist.train.checkpoint.saver import SupersededError
from vit_dist.train.health import guards
from vit_dist.train.losses import make_targets
from vit_dist.train.norms import StepNorms
from vit_dist.train.progress.performance import measure
from vit_dist.train.rewind import can_rewind, rewind
from vit_dist.train.run import Run
from vit_dist.train.saving import save
from vit_dist.train.state import TrainState

_TAG_STEP = 0x53544550  # "STEP"
_REQUESTS_EVERY_S = 0.5


def train(run: Run) -> None:
    """Train until the horizon, or until a stop is asked for. A collective.

    Raises:
        DataError: too many samples cannot be decoded.
        RunError: checkpoints cannot be written, or the numbers are beyond help.
        SupersededError: a later attempt owns the run directory.
    """
    run.start_log()
    run_has_begun()
    # The attempt before was killed between its last checkpoint and the line that the run is done.
    if run.state.step >= run.plan.total_steps:
        _end(run, "")
        return
    while not _train_until_rewind(run):
        rewind(run)


def _train_until_rewind(run: Run) -> bool:
    """Train from the run's state. True: the attempt has ended; False: rewind, then call again. A collective."""
    plan, clock, config, state = run.plan, run.clock, run.recipe.guards, run.state
    requests = _Requests()
    with (
        TrainStream(run.data, run.recipe, run.world, state.position) as stream,
        Progress(
            "  training", plan.total_steps, "steps", quiet=not run.world.is_main, done=state.step, summary=False
        ) as progress,
    ):
        clock.enter("wait")
        for batch, after in stream:
            clock.enter("train")
            if run.profiler is not None:
                run.profiler.before(state.step + 1)
            norms = StepNorms(run.engine, run.world) if clock.due("norms", state, after) else None
            _seed_step(run, state.step)
            limit = guards.loss_limit(config, state.losses)
            skip_over = limit if config.spike == "skip" else math.inf
            # Collectives: gradients (and under ZeRO-3 weights), then the mean loss, which is the same float on every
            # rank, so that all later decisions that rest on it are too. Reading that float waits for the device: one
            # synchronisation a step, which the checks for spikes and non-finite steps need before the next batch.
            result = run.engine.train_step(
                _micro_batches(run, batch),
                _lr(run, state.step),
                skip_over=skip_over,
                on_gradients=norms.on_gradients if norms is not None else None,
            )
            if run.profiler is not None:
                run.profiler.after(state.step + 1)
            values = norms.finish() if norms is not None else {}
            # Collective, after the step and not before it: a peer that died meanwhile is met in the step's own
            # collectives, and whoever asks to stop gets the step that runs into the checkpoint.
            agreed = _agree(run, batch.replaced, requests)
            # Before the state moves on: a superseded attempt writes neither log nor checkpoint from here.
            if agreed.superseded:
                raise SupersededError(agreed.superseded)
            before, bad = state, frozenset(r.ordinal for r in agreed.replaced)
            state, spike = guards.after_step(config, state, result, limit, position=after.position, quarantined=bad)
            run.state = state
            clock.step_done(result)
            if values and run.writer is not None:
                run.writer.scalars(state.step, values)
            _trace(run, batch)
            _quarantine(run, agreed.replaced, state)
            # `spike` and `applied` come from the all-reduced loss and gradient norm: every rank enters here, or none.
            if spike or not result.applied:
                record_bad_step(run, batch, result, limit=limit)
                if spike and config.spike == "rewind" and can_rewind(run):
                    return False
            done = state.step >= plan.total_steps
            # The order is part of the contract. Weights are compared before anything is made of them; the log is
            # written before the checkpoint, which flushes it, so that no checkpoint is ahead of its log; the
            # evaluation comes before the checkpoint whose marker holds its metrics. checksum, eval and save are
            # collectives; a cadence in seconds is decided by rank 0's clock for all (Clock.due).
            if clock.due("checksum", before, state):
                guards.check_replicas(run.engine, run.world, state.step)
            if clock.due("log", before, state) or done:
                _log(run, state, result, progress)
            if clock.due("eval", before, state) or done:
                _evaluate(run, state, progress)
            if clock.due("save", before, state) or agreed.save or done or agreed.stop:
                save(run)
            if done or agreed.stop:
                _end(run, "" if done else agreed.stop)
                break
            clock.enter("wait")
    return True


def _end(run: Run, stopping: str) -> None:
    """Wait for the last checkpoint, then log how the attempt ended. A collective."""
    if run.profiler is not None:
        run.profiler.close(run.state.step)
    run.clock.enter("save")
    # The status says `done` or `stopped` only of what is on the disk: all ranks wait for the last commit first.
    run.saver.finish()
    run.finish("stopped" if stopping else "done", stopping)
    run.saver.send_logs()
    if stopping and run.world.is_main:
        log(f"  stopped at step {run.state.step:,} on {stopping}; the same command resumes from here")


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


@dataclass(frozen=True)
class _Agreed:
    """What any rank met in a step, the same on every rank.

    Attributes:
        replaced: samples that could not be decoded.
        save: a checkpoint was asked for.
        stop: a reason to stop, or ''.
        superseded: the later attempt that owns the run directory, in words, or ''.
    """

    replaced: list[Replacement] = field(default_factory=list)
    save: bool = False
    stop: str = ""
    superseded: str = ""


class _Requests:
    """Looks for the request file, now and then: the file system may be a slow one."""

    def __init__(self) -> None:
        self._next = 0.0

    def take(self, run: Run) -> str:
        """'save', 'stop' or ''; always '' on ranks other than 0."""
        now = time.monotonic()
        if not run.world.is_main or now < self._next:
            return ""
        self._next = now + _REQUESTS_EVERY_S
        return history.take_request(run.directory.path)


def _agree(run: Run, replaced: list[Replacement], requests: _Requests) -> _Agreed:
    """What any rank met in this step. A collective.

    A signal reaches ranks at different moments, only rank 0 sees the request file and the heartbeat, and a broken
    sample is met by the rank that reads it. A rank that acted on its own view would leave the others in a collective
    that never completes.
    """
    asked = requests.take(run)
    reason = run.stop.reason or ("the request file" if asked == "stop" else "")
    superseded = run.record.superseded
    if run.world.size == 1:
        return _Agreed(replaced, asked == "save", reason, superseded)
    # Four flags every step; the texts and samples, which are pickled, only in the rare step that has any.
    flags = any_rank([bool(replaced), asked == "save", bool(reason), bool(superseded)], run.world)
    # `flags` is the same on every rank: all return here, or all go on to the second collective.
    if not any(flags):
        return _Agreed()
    views = all_gather_object((replaced, reason, superseded), run.world)
    stop = next((why for _, why, _ in views if why), "")
    return _Agreed([r for part, *_ in views for r in part], flags[1], stop, views[0][2])


def _trace(run: Run, batch: Batch) -> None:
    """Write down what this step was trained on, where the recipe asks for it."""
    if run.recipe.log.order:
        path = run.directory.order / f"attempt-{run.attempt:05d}-rank-{run.world.rank:05d}.jsonl"
        run.lines(path).add({"step": run.state.step, "ordinals": batch.ordinals.tolist()})


def _quarantine(run: Run, replaced: list[Replacement], state: TrainState) -> None:
    """Record what was replaced; stop the run where it is too much.

    Raises:
        DataError: more of the set than data.max_bad cannot be decoded.
    """
    if not replaced:
        return
    if run.world.is_main:
        run.lines(run.directory.quarantine).add(*({"step": state.step, **asdict(r)} for r in replaced))
        log(f"  quarantined {replaced[0].key!r} of {replaced[0].shard}: {replaced[0].reason}", WARNING)
    bad, allowed = len(state.quarantined), math.ceil(run.recipe.data.max_bad * run.data.num_samples)
    if bad > allowed:
        first = replaced[0]
        raise DataError(
            f"{bad} of {run.data.num_samples} examples cannot be decoded, over data.max_bad="
            f"{run.recipe.data.max_bad:g}; the last: {first.key!r} of {first.shard}: {first.reason}. "
            f"All are in {run.directory.quarantine}; repair them, or raise data.max_bad"
        )


def _log(run: Run, state: TrainState, result: StepResult, progress: Progress) -> None:
    window = run.clock.since_last_log()
    # Collective: what tells a slow rank from the others is known to itself alone.
    performance = measure(window, run.info, run.world, run.engine.device, trained=state.examples)
    run.record.examples_per_s = window.examples_per_s or run.record.examples_per_s
    run.record.metrics["loss"] = window.loss
    epoch = state.position / run.data.num_samples
    if run.writer is not None:
        run.writer.scalars(
            state.step,
            {
                runlog.TRAIN_LOSS: window.loss,
                runlog.TRAIN_LR: _lr(run, state.step - 1),
                runlog.TRAIN_GRAD_NORM: result.grad_norm,
                runlog.TRAIN_EPOCH: epoch,
                # Not as a double: TensorBoard's custom chart of it stayed empty then.
                runlog.PROGRESS_EXAMPLES: float(state.examples),
                runlog.TRAIN_DATA_WAIT: window.data_wait,
                "train/skipped_steps": state.skipped,
                "train/spikes": state.spikes,
                "train/quarantined": len(state.quarantined),
                **{f"data/epochs/{name}": epochs for name, epochs in run.data.epochs(state.position).items()},
                **{f"goodput/{bucket}_s": seconds for bucket, seconds in run.clock.goodput.sums().items()},
                "goodput/useful": run.clock.goodput.useful_fraction(),
                **performance.scalars,
            },
        )
    run.write_status()
    progress.update(state.step, metrics={"epoch": epoch, "loss": window.loss, **performance.shown})


def _evaluate(run: Run, state: TrainState, progress: Progress) -> None:
    run.clock.enter("eval")
    # Every rank evaluates its part and gets the reduced values. They go into the marker of the next checkpoint, so
    # they must be known on all ranks and not on the one that logs.
    values = run.evaluation.run()
    run.clock.enter("train")
    if run.world.is_main:
        run.evaluation.keep()
        _warn_of_values(run, state, values)
    run.metrics = (state.step, values)
    run.record.metrics.update({name.removeprefix("val/"): value for name, value in values.items()})
    if values and run.writer is not None:
        run.evaluation.write(run.writer, state.step, values)
        shown = {name.removeprefix("val/"): value for name, value in values.items()}
        epoch = state.position / run.data.num_samples
        progress.update(state.step, metrics={"epoch": epoch, **shown}, force=True)


def _warn_of_values(run: Run, state: TrainState, values: dict[str, float]) -> None:
    """Say which values cannot be, or that what the best checkpoint is kept by was not measured."""
    recipe = run.recipe
    rules, best = run.evaluation.rules(), recipe.checkpoint.keep_best
    for tag, value in values.items():
        problem = rules[tag].problem(value) if tag in rules and math.isfinite(value) else ""
        if problem:
            log(f"  {recipe.name}: {tag} at step {state.step:,}: {problem}; it is never the best", WARNING)
    if best and best not in values:
        log(
            f"  checkpoint.keep_best={best}: not measured at step {state.step:,}; measured: {', '.join(values)}",
            WARNING,
        )
