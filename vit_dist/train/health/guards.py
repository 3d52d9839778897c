"""Guards over a run's numbers: losses and gradients that are not finite, loss spikes, replicas that differ."""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor

from vit_dist.config.schema import GuardConfig
from vit_dist.core.errors import RunError
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.engines._collectives import all_gather_object
from vit_dist.engines._protocol import Engine, StepResult
from vit_dist.train.state import TrainState

_LEAST_LOSSES = 16
_LAG = 2
"""The limit of step k rests on results of steps up to k - 2: that of k - 1 is still on its way when k is queued."""


def loss_limit(config: GuardConfig, state: TrainState) -> float:
    """The loss above which the next step is a spike: median + z * 1.4826 * MAD of losses; inf while there are few.

    Of the last losses up to the step before the last, whether that of the last is known already or not: so it is one
    number in every run, wherever that was stopped or has waited for its results.

    The scale is at least a hundredth of the median, lest a run whose loss has come to rest calls every ripple a spike.
    1.4826 makes the median absolute deviation a standard deviation where losses are normal.
    """
    losses = [loss for step, loss in state.losses if step <= state.step + 1 - _LAG][-config.spike_window :]
    if config.spike == "off" or len(losses) < min(_LEAST_LOSSES, config.spike_window):
        return math.inf
    middle = median(losses)
    scale = 1.4826 * median(abs(loss - middle) for loss in losses)
    return middle + config.spike_z * max(scale, 0.01 * abs(middle))


def learn(
    config: GuardConfig, state: TrainState, step: int, result: StepResult, limit: float
) -> tuple[TrainState, bool]:
    """The state once a step's result is known, and whether the step was a spike.

    Args:
        config: of the recipe.
        state: that may have moved on to a later step meanwhile.
        step: the oldest whose result was not known.
        result: of it.
        limit: under which it was taken.
    """
    finite = math.isfinite(result.loss)
    spike = finite and result.loss > limit
    remembered = state.losses
    if finite and result.applied:
        # One more than are looked at: the newest may be too new for the next limit.
        remembered = (*state.losses, (step, result.loss))[-(config.spike_window + _LAG - 1) :]
    losses = remembered if config.spike != "off" else ()
    return state.learned(applied=result.applied, spike=spike, losses=losses), spike


def check_in_row(config: GuardConfig, state: TrainState, step: int, directory: RunDir) -> None:
    """Stop a run that does not apply its steps any more, up to a step.

    Raises:
        RunError: so many in a row.
    """
    if state.bad_in_row >= config.max_in_row:
        raise RunError(
            f"the last {state.bad_in_row} steps, up to step {step}, were not applied: their loss or gradient was "
            f"not finite, or they were skipped as spikes; weights are those of step {step - state.bad_in_row}. "
            f"The examples' keys are in {directory.nonfinite}; try a lower optim.lr, gradient clipping or "
            f"precision=fp32, or raise guards.max_in_row"
        )


def checksum(engine: Engine) -> Tensor:
    """One number for what is replicated, sensitive to every bit and every place. int64 [1]."""
    # Integer sums over bits: exact in any order, so that it is the same number on equal ranks whatever kernels do, and
    # wrapping around is harmless. Weights by place notice values that were exchanged.
    total = torch.zeros(1, dtype=torch.int64, device=engine.device)
    for place, (_, tensor) in enumerate(engine.replicated()):
        flat = tensor.detach().reshape(-1)
        bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        weights = torch.arange(1, len(bits) + 1, device=bits.device, dtype=torch.int64)
        total += (bits.to(torch.int64) * weights).sum() * (2 * place + 1)
    return total


def check_replicas(engine: Engine, world: World, step: int) -> None:
    """Compare what must be the same on every rank, and on each its weights with their master weights. A collective.

    Raises:
        RunError: on every rank, naming those that are at fault or differ from most.
    """
    # One collective for both, and a verdict that every rank reaches from the same list: all raise, or none.
    gathered = all_gather_object((engine.master_mismatch(), int(checksum(engine))), world)
    mismatches, sums = [mismatch for mismatch, _ in gathered], [total for _, total in gathered]
    # First, since it names the rank for certain; the comparison of sums can only name who differs from most.
    if any(mismatches):
        ranks = [rank for rank, name in enumerate(mismatches) if name]
        raise RunError(
            f"after step {step} the weights that ranks {ranks} compute with are not those that their optimizers hold "
            f"(master-weight mismatch, first in {mismatches[ranks[0]]}): memory or a kernel is at fault there. The "
            f"checkpoints before are complete; start again, without the nodes of these ranks if it happens twice"
        )
    usual = max(set(sums), key=sums.count)
    outliers = [rank for rank, value in enumerate(sums) if value != usual]
    if outliers:
        raise RunError(
            f"after step {step} the weights of ranks {outliers} differ from those of the others: memory, a link or a "
            f"kernel is at fault there. The checkpoints before are complete; start the run again, without the nodes of "
            f"these ranks if it happens twice"
        )
