"""The training loop: next batch with the stream's state after it, micro-batches, backward, step; then what is due.

All ranks take every branch that leads to a collective together. What only one rank can see (a signal, a request file, a
sample that cannot be decoded, a clock) goes through an Agreement first; everything else that is branched on (losses,
train state, cadences in steps) is the same number on every rank.

The host runs one step ahead of the device: the result of a step is read once the next one is queued. Logs, evaluations
and saves read it first, so that they stand on all that was done; what a step itself rests on (the limit of its loss)
looks back one step further, and is the same whether something was read early or not.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vit_dist.config.ema import EMA_TAG
from vit_dist.core.errors import DataError
from vit_dist.core.log import WARNING, log
from vit_dist.core.progress import Progress
from vit_dist.core.run import log as runlog
from vit_dist.core.seeding import hash64
from vit_dist.core.store_patience import run_has_begun
from vit_dist.data.batch import Batch, Replacement
from vit_dist.data.stream import StreamState, TrainStream
from vit_dist.data.takedown import left_out
from vit_dist.engines._protocol import PendingStep, StepResult
from vit_dist.optim import OptimizerConfig
from vit_dist.train.agreement import Agreement, Requests
from vit_dist.train.bad_steps import record_bad_step
from vit_dist.train.checkpoint.saver import SupersededError
from vit_dist.train.feed import Feed, MicroBatches
from vit_dist.train.health import guards
from vit_dist.train.norms import StepNorms
from vit_dist.train.progress.performance import measure
from vit_dist.train.rewind import can_rewind, rewind
from vit_dist.train.run import Run
from vit_dist.train.saving import save
from vit_dist.train.state import TrainState

_TAG_STEP = 0x53544550  # "STEP"
_COLLECT_EVERY = 1000
"""Steps, where nothing is due for longer."""


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
    with _collecting_by_hand():
        while not _train_until_rewind(run):
            rewind(run)


@contextlib.contextmanager
def _collecting_by_hand() -> Iterator[None]:
    """Python looks for garbage when the loop says so, on all ranks at once: else each stops the others in turn."""
    enabled = gc.isenabled()
    gc.collect()
    # What is there now stays: modules, model and engine need not be walked through again.
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _train_until_rewind(run: Run) -> bool:
    """Train from the run's state. True: the attempt has ended; False: rewind, then call again. A collective."""
    plan, clock, config = run.plan, run.clock, run.recipe.guards
    requests, flight = Requests(), None
    feed = Feed(run.recipe, plan.micro_batch, run.engine.device, run.teacher)
    with (
        TrainStream(
            run.data,
            run.recipe,
            run.world,
            run.state.position,
            reuse=True,
            taken_down=left_out(run.state.taken_down),
            told=run.record.waits,
        ) as stream,
        Progress(
            "  training", plan.total_steps, "step", quiet=not run.world.is_main, done=run.state.step, summary=False
        ) as progress,
    ):
        clock.follow(stream.pace)
        clock.enter("wait")
        for batch, after in stream:
            clock.enter("train")
            before = run.state
            # What was taken down follows from the train state: only what is broken has to be told.
            agreement = Agreement(run, [r for r in batch.replaced if not r.taken_down], requests)
            step = _queue(run, feed.micro_batches(batch), batch.ordinals, after)
            agreed = agreement.wait()
            # Before the state moves on: a superseded attempt writes neither log nor checkpoint from here.
            if agreed.superseded:
                raise SupersededError(agreed.superseded)
            bad = frozenset(r.ordinal for r in agreed.replaced)
            run.state = state = before.advance(position=after.position, quarantined=bad)
            clock.step_begun()
            if step.norms and run.writer is not None:
                run.writer.scalars(state.step, step.norms)
            # The step before, while the device computes this one.
            _settle(run, flight)
            flight = step
            _trace(run, batch)
            _quarantine(run, agreed.replaced, state)
            done = state.step >= plan.total_steps
            # The order is part of the contract. Weights are compared before anything is made of them; the log is
            # written before the checkpoint, which flushes it, so that no checkpoint is ahead of its log; the
            # evaluation comes before the checkpoint whose marker holds its metrics. checksum, eval and save are
            # collectives; a cadence in seconds is decided by rank 0's clock for all (Agreement).
            checks, logs = clock.due("checksum", before, state), clock.due("log", before, state) or done
            evaluators = clock.due_evaluators(before, state)
            evaluates = bool(evaluators) or done
            saves = clock.due("save", before, state) or agreed.save or done or bool(agreed.stop)
            if checks or logs or evaluates or saves or step.norms or clock.in_first_step or config.spike == "rewind":
                # Whatever comes next rests on what this step did.
                spike, flight = _settle(run, flight), None
                if spike and config.spike == "rewind" and can_rewind(run):
                    return False
            if checks:
                guards.check_replicas(run.engine, run.world, state.step)
            if logs:
                _log(run, step.pending.read(), progress)
            if logs or evaluates or saves or state.step % _COLLECT_EVERY == 0:
                gc.collect()
            if evaluates:
                _evaluate(run, run.state, progress, None if done else evaluators)
            if saves:
                save(run)
            if done or agreed.stop:
                _end(run, "" if done else agreed.stop)
                break
            clock.enter("wait")
    return True


@dataclass(frozen=True)
class _Step:
    """A step that was queued.

    Attributes:
        number: of the step.
        pending: its result.
        limit: the loss above which it is a spike.
        ordinals: of this rank's examples.
        norms: what was measured in it, by tag; mostly nothing.
    """

    number: int
    pending: PendingStep
    limit: float
    ordinals: Tensor
    norms: Mapping[str, float]


def _queue(run: Run, batch: MicroBatches, ordinals: Tensor, after: StreamState) -> _Step:
    """Begin the next step. A collective.

    Its collectives are those of gradients (and of weights under ZeRO-3), and the mean loss, which is the same float on
    every rank, so that all later decisions that rest on it are too.
    """
    state, config = run.state, run.recipe.guards
    if run.profiler is not None:
        run.profiler.before(state.step + 1)
    norms = StepNorms(run.engine, run.world) if run.clock.due("norms", state, after) else None
    _seed_step(run, state.step)
    limit = guards.loss_limit(config, state)
    pending = run.engine.train_step(
        batch,
        _lr(run, state.step),
        skip_over=limit if config.spike == "skip" else math.inf,
        on_gradients=norms.on_gradients if norms is not None else None,
    )
    begins = run.plan.average_from
    if begins is not None and state.step >= begins and (average := run.engine.average) is not None:
        with run.engine.timer.phase("optimizer"):
            average.update(pending.applied)
    if run.profiler is not None:
        run.profiler.after(state.step + 1)
    values = norms.finish() if norms is not None else {}
    return _Step(state.step + 1, pending, limit, ordinals, values)


def _settle(run: Run, step: _Step | None) -> bool:
    """Wait for a step that was queued, and draw what follows from its result; whether it was a spike. A collective.

    Raises:
        RunError: too many steps in a row were not applied.
    """
    if step is None:
        return False
    result = step.pending.read()
    run.state, spike = guards.learn(run.recipe.guards, run.state, step.number, result, step.limit)
    run.clock.step_done(result)
    # `spike` and `applied` come from the all-reduced loss and gradient norm: every rank enters here, or none.
    if spike or not result.applied:
        record_bad_step(run, step.number, step.ordinals.tolist(), result, limit=step.limit)
    return spike


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
    optim = run.recipe.optim
    assert isinstance(optim, OptimizerConfig)
    return run.plan.lr_at(step, optim.lr)


def _seed_step(run: Run, step: int) -> None:
    # Dropout and stochastic depth draw from a generator that is a function of the step: there is no state to save.
    seed, device = hash64(run.recipe.seed, _TAG_STEP, step, run.world.rank), run.engine.device
    # Not torch.manual_seed, which goes through all devices and backends that there are, in each step.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


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


def _log(run: Run, result: StepResult, progress: Progress) -> None:
    state = run.state
    window = run.clock.since_last_log()
    # Collective: what tells a slow rank from the others is known to itself alone.
    performance = measure(window, run.info, run.world, run.engine.device, trained=state.examples)
    run.record.examples_per_s = window.examples_per_s or run.record.examples_per_s
    run.record.metrics[runlog.TRAIN_LOSS] = window.loss
    run.record.stall = performance.stall.text if performance.stall is not None else ""
    if run.world.is_main:
        run.stalls.tell(performance.stall)
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
    progress.update(state.step, metrics={"epoch": epoch, runlog.TRAIN_LOSS: window.loss, **performance.shown})


def _evaluate(run: Run, state: TrainState, progress: Progress, due: frozenset[int] | None) -> None:
    """Run the evaluators at these places, None: all, on the state after a step. A collective."""
    run.clock.enter("eval")
    # Every rank evaluates its part and gets the reduced values. They go into the marker of the next checkpoint, so
    # they must be known on all ranks and not on the one that logs.
    values = run.evaluation.run(state.step, due=due)
    run.clock.enter("train")
    if run.world.is_main:
        run.evaluation.keep()
        _warn_of_values(run, state, values, due)
    run.metrics = (state.step, values)
    run.record.metrics.update(values)
    if values and run.writer is not None:
        run.evaluation.write(run.writer, state.step, values)
        epoch = state.position / run.data.num_samples
        progress.update(state.step, metrics={"epoch": epoch, **values}, force=True)


def _warn_of_values(run: Run, state: TrainState, values: dict[str, float], due: frozenset[int] | None) -> None:
    """Say which values cannot be, or that what the best checkpoint is kept by was not measured."""
    recipe = run.recipe
    rules, best = run.evaluation.rules(), recipe.checkpoint.keep_best
    for tag, value in values.items():
        problem = rules[tag].problem(value) if tag in rules and math.isfinite(value) else ""
        if problem:
            log(f"  {recipe.name}: {tag} at step {state.step:,}: {problem}; it is never the best", WARNING)
    whose = {
        i
        for i, one in enumerate(recipe.evaluators)
        if best.removeprefix(EMA_TAG) in (one.metrics(recipe) or {})  # type: ignore[attr-defined]
    }
    # Of the average there is nothing to measure until a step counts in it.
    expected = not best.startswith(EMA_TAG) or any(tag.startswith(EMA_TAG) for tag in values)
    if best and best not in values and expected and not (whose and due is not None and whose.isdisjoint(due)):
        log(
            f"  checkpoint.keep_best={best}: not measured at step {state.step:,}; measured: {', '.join(values)}",
            WARNING,
        )
