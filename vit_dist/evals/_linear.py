"""Linear probes, all in one pass over features that are shared out among the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vit_dist.core.errors import ConfigError
from vit_dist.core.files import write_bytes
from vit_dist.core.log import log
from vit_dist.core.seeding import I64, permutation
from vit_dist.core.tables import csv_text
from vit_dist.core.world import World
from vit_dist.data.subset import select
from vit_dist.evals import EvalContext
from vit_dist.evals._features import BlockOutputs, Shard, features, gather
from vit_dist.evals.linear import LinearConfig

_MOMENTUM = 0.9
_TAG_ORDER = 0x50524F4245  # "PROBE"
_TAG_HELD = 0x48454C44  # "HELD"
_AT_ONCE = 4096
"""Examples that are scored at a time."""


@dataclass(frozen=True)
class Space:
    """Columns of the features that a probe sees, and what they are called."""

    name: str
    columns: tuple[slice, ...]

    @property
    def width(self) -> int:
        """D."""
        return sum(part.stop - part.start for part in self.columns)

    def of(self, x: Tensor) -> Tensor:
        """[b, all columns] -> [b, D]."""
        return torch.cat([x[:, part] for part in self.columns], dim=1)


@dataclass(frozen=True)
class Probes:
    """Trained probes: for each space weights [D, R, K] and biases [R, K], R learning rates each."""

    spaces: tuple[Space, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def logits(self, i: int, x: Tensor) -> Tensor:
        """Features [b, all columns] -> [b, R, K] of the i-th space."""
        rates, classes = self.biases[i].shape
        flat = torch.addmm(self.biases[i].flatten(), self.spaces[i].of(x), self.weights[i].flatten(1))
        return flat.view(-1, rates, classes)


@dataclass(frozen=True)
class Training:
    """How probes are trained: steps of `batch` examples on all ranks, momentum 0.9, a cosine from each rate to zero."""

    rates: Sequence[float]
    batch: int
    passes: int
    seed: int


def probed(config: LinearConfig, context: EvalContext) -> tuple[float, float]:
    """Top-1 of the chosen probe on the test set and on the held-out slice; the same on every rank. A collective."""
    train_set, test_set = config.open_sets(context.recipe)
    subset = None if config.train_subset is None else select(train_set, config.train_subset)
    tap = BlockOutputs(context.engine.module, config.last_blocks)
    # Before the first image is read: the model is known.
    wanted = _spaces_wanted(config, tap)
    shard = gather(context, train_set, subset=subset, crop=config.crop, tap=tap)
    spaces = tuple(_space(pooling, n, tap) for pooling, n in wanted)
    labelled = _labelled(shard, context)
    held = labelled[
        np.sort(permutation(len(labelled), config.seed, _TAG_HELD)[: round(config.heldout * len(labelled))])
    ]
    rest = np.setdiff1d(labelled, held, assume_unique=True)
    if not (len(held) and len(rest)):
        raise ConfigError(
            f"evaluators: linear of {config.set!r}: only {len(labelled):,} examples of its train set have a label, too "
            f"few to hold out {config.heldout:g} of them"
        )
    scaled = [rate * config.batch / 256 for rate in config.rates]
    how = Training(scaled, config.batch, config.passes, config.seed)
    probes = train(shard, rest, spaces, how, train_set.num_classes, context)
    top1, loss = scored(probes, shard, held, context)
    place, rate = _best(config, top1, loss)
    heldout = float(top1[place, rate])
    _tell(config, context, spaces, (top1, loss), (place, rate))
    if config.refit:
        how = Training(scaled[rate : rate + 1], config.batch, config.passes, config.seed)
        probes, rate = train(shard, labelled, spaces[place : place + 1], how, train_set.num_classes, context), 0
    else:
        probes = Probes(spaces[place : place + 1], probes.weights[place : place + 1], probes.biases[place : place + 1])
    device = context.engine.device
    correct = torch.zeros(2, dtype=torch.float64, device=device)
    for batch, x in features(context, test_set, crop=config.crop, tap=tap):
        labels = batch.labels.to(device, non_blocking=True)
        guess = probes.logits(0, x)[:, rate].argmax(1, keepdim=True)
        known = (labels >= 0).any(1)
        correct += torch.stack([((labels == guess).any(1) & known).sum(), known.sum()])
    hits, tried = _summed(correct, context.world).tolist()
    return hits / tried, heldout


def _spaces_wanted(config: LinearConfig, tap: BlockOutputs) -> list[tuple[str, int]]:
    """Pooling and number of last blocks of each space."""
    for pooling in config.poolings:
        if pooling.startswith("cls") and not tap.prefix:
            raise ConfigError(
                f"evaluators: linear of {config.set!r}: poolings: {pooling}, but the model has no class token; give "
                f"poolings: [head, mean]"
            )
    return [
        (pooling, n)
        for pooling in dict.fromkeys(config.poolings)
        for n in (dict.fromkeys(config.layers) if pooling != "head" else (0,))
    ]


def _space(pooling: str, n: int, tap: BlockOutputs) -> Space:
    if pooling == "head":
        return Space("head", (tap.spans["head", 0],))
    first = "mean" if pooling == "mean" else "cls"
    columns = [tap.spans[first, i] for i in range(1, n + 1)]
    if pooling == "cls+mean":
        columns.append(tap.spans["mean", 1])
    return Space(f"{pooling} of {n}", tuple(columns))


def _labelled(shard: Shard, context: EvalContext) -> I64:
    """Positions of all ranks' examples that have a label, ascending. A collective."""
    known = torch.zeros(shard.total, dtype=torch.int64, device=context.engine.device)
    known[shard.start : shard.start + len(shard.x)] = (shard.first_labels >= 0).to(known)
    return np.flatnonzero(_summed(known, context.world).cpu().numpy())


def train(
    shard: Shard, positions: I64, spaces: Sequence[Space], how: Training, num_classes: int, context: EvalContext
) -> Probes:
    """Train a probe for each space and learning rate. A collective.

    Probes know nothing of each other: each is what it would be alone, up to how products of matrices round. On any
    number of ranks a step has the same examples; each rank gives the gradients of those that it holds.

    Args:
        shard: this rank's features, and labels of which the first counts.
        positions: of the examples that are learned from, of all ranks.
        spaces: what probes see.
        how: rates, batch, epochs and seed.
        num_classes: K.
        context: whose engine's device computes, and whose ranks share the set.
    """
    device, rates = context.engine.device, torch.tensor(how.rates, device=context.engine.device)
    sizes = [(space.width + 1) * len(rates) * num_classes for space in spaces]
    # One tensor, so that ranks sum their gradients at once: of each space the weights, and a last row of biases.
    values = torch.zeros(sum(sizes), device=device)
    gradients, momenta = torch.zeros_like(values), torch.zeros_like(values)
    parts = [
        tuple(part.view(space.width + 1, len(rates), num_classes) for part in split)
        for space, *split in zip(spaces, *(torch.split(t, sizes) for t in (values, gradients, momenta)), strict=True)
    ]
    total = how.passes * -(-len(positions) // how.batch)
    for step, (rows, size) in enumerate(_steps(positions, shard, how)):
        x = shard.x[rows.to(shard.x.device)].to(device)
        labels = shard.first_labels[rows.to(shard.x.device)].to(device)
        for space, (value, gradient, _) in zip(spaces, parts, strict=True):
            _gradient(space.of(x), labels, value, size, out=gradient)
        if context.world.size > 1:
            torch.distributed.all_reduce(gradients)
        momenta.mul_(_MOMENTUM).add_(gradients)
        decay = 0.5 * (1 + math.cos(math.pi * step / total))
        for value, _, momentum in parts:
            value -= momentum * (rates * decay)[:, None]
    return Probes(tuple(spaces), tuple(p[0][:-1] for p in parts), tuple(p[0][-1] for p in parts))


def _gradient(x: Tensor, labels: Tensor, value: Tensor, size: int, *, out: Tensor) -> None:
    """Of the mean softmax cross-entropy over a step's `size` examples, these examples' part.

    Args:
        x: [b, D].
        labels: int64 [b].
        value: [D + 1, R, K], the biases last.
        size: of the step, on all ranks.
        out: [D + 1, R, K], filled.
    """
    _, rates, classes = value.shape
    logits = torch.addmm(value[-1].flatten(), x, value[:-1].flatten(1)).view(len(x), rates, classes)
    error = logits.softmax(dim=2)
    error.scatter_add_(2, labels[:, None, None].expand(-1, rates, 1), torch.full_like(error[:, :, :1], -1.0))
    error /= size
    torch.mm(x.T, error.flatten(1), out=out[:-1].flatten(1))
    torch.sum(error, dim=0, out=out[-1])


def _steps(positions: I64, shard: Shard, how: Training) -> Iterator[tuple[Tensor, int]]:
    """For each step which of this rank's rows are in it, int64 [b], and how many examples it has on all ranks."""
    steps = -(-len(positions) // how.batch)
    for epoch in range(how.passes):
        order = positions[permutation(len(positions), how.seed, _TAG_ORDER, epoch)]
        places = np.flatnonzero((order >= shard.start) & (order < shard.start + len(shard.x)))
        rows = torch.from_numpy(order[places] - shard.start)
        ends = np.searchsorted(places, np.arange(steps + 1) * how.batch)
        for step in range(steps):
            size = min(how.batch, len(order) - step * how.batch)
            yield rows[ends[step] : ends[step + 1]], size


def scored(probes: Probes, shard: Shard, positions: I64, context: EvalContext) -> tuple[Tensor, Tensor]:
    """Top-1 and mean loss of each space and rate on some of the examples, float64 [S, R] each. A collective."""
    device, (rates, _) = context.engine.device, probes.biases[0].shape
    own = positions[(positions >= shard.start) & (positions < shard.start + len(shard.x))] - shard.start
    sums = torch.zeros(2, len(probes.spaces), rates, dtype=torch.float64, device=device)
    for rows in torch.split(torch.from_numpy(own).to(shard.x.device), _AT_ONCE):
        x, labels = shard.x[rows].to(device), shard.labels[rows].to(device)
        for i in range(len(probes.spaces)):
            logits = probes.logits(i, x)
            guess = logits.argmax(2)
            sums[0, i] += (labels[:, None, :] == guess[:, :, None]).any(2).sum(0)
            chosen = logits.gather(2, labels[:, :1, None].expand(-1, rates, 1)).squeeze(2)
            sums[1, i] += (logits.logsumexp(2) - chosen).sum(0, dtype=torch.float64)
    top1, loss = _summed(sums, context.world) / len(positions)
    return top1, loss


def _best(config: LinearConfig, top1: Tensor, loss: Tensor) -> tuple[int, int]:
    """Space and rate of the probe with the best top-1, of equals the one with the lowest loss.

    Raises:
        ConfigError: all have diverged.
    """
    found = [
        (float(top1[i, r]), -float(loss[i, r]), i, r)
        for i in range(top1.shape[0])
        for r in range(top1.shape[1])
        if math.isfinite(float(loss[i, r]))
    ]
    if not found:
        raise ConfigError(
            f"evaluators: linear of {config.set!r}: the loss of every probe is not finite; give smaller rates than "
            f"{min(config.rates):g}"
        )
    _, _, space, rate = max(found, key=lambda one: (one[0], one[1], -one[2], -one[3]))
    return space, rate


def _tell(
    config: LinearConfig,
    context: EvalContext,
    spaces: Sequence[Space],
    found: tuple[Tensor, Tensor],
    chosen: tuple[int, int],
) -> None:
    """Which probe was chosen among which, as a line and a table; on rank 0."""
    if not context.world.is_main:
        return
    top1, loss = (values.tolist() for values in found)
    place, rate = chosen
    log(
        f"  linear of {config.set!r}: of {len(spaces) * len(config.rates)} probes, {spaces[place].name} with rate "
        f"{config.rates[rate]:g} is best on the held-out slice: top-1 {top1[place][rate]:.4g}"
    )
    if context.outputs is None:
        return
    rows = [
        (space.name, config.rates[r], top1[i][r], loss[i][r], int((i, r) == chosen))
        for i, space in enumerate(spaces)
        for r in range(len(config.rates))
    ]
    heads = ("features", "rate", "heldout_top1", "heldout_loss", "chosen")
    write_bytes(str(context.outputs / f"linear-{config.set}.csv"), csv_text([heads, *rows]).encode())


def _summed(values: Tensor, world: World) -> Tensor:
    """Over all ranks. A collective."""
    if world.size > 1:
        torch.distributed.all_reduce(values)
    return values
