"""Nearest neighbours over features that are shared out among the ranks; each query meets each of them once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.core.world import World
from vit_dist.data.subset import select
from vit_dist.engines._numerics import full_products
from vit_dist.evals import EvalContext
from vit_dist.evals._features import Shard, gather
from vit_dist.evals._nearest import BATCH, ERROR, TINY, Candidates, Neighbours, candidates, nearest
from vit_dist.evals.knn import KnnConfig

_QUERIES = 2048
"""Of all ranks together, at a time."""
_SPARE = 8
"""Candidates in single precision beyond k, so that the k nearest in double precision are among them."""


def accuracies(config: KnnConfig, context: EvalContext) -> dict[int, float]:
    """Top-1 on the test set for each k; the same on every rank. A collective."""
    train_set, test_set = config.open_sets(context.recipe)
    subset = None if config.train_subset is None else select(train_set, config.train_subset)
    train = gather(context, train_set, subset=subset, crop=config.crop)
    test = gather(context, test_set, crop=config.crop)
    votes = Votes(config.k, config.temperature, train_set.num_classes)
    correct = count_correct(train, test, votes, context.world, context.engine.device)
    *hits, tried = correct.tolist()
    return {k: hit / tried for k, hit in zip(config.k, hits, strict=True)}


@dataclass(frozen=True)
class Votes:
    """How neighbours become a class: for each of several k, the first k vote with exp(similarity / temperature)."""

    k: Sequence[int]
    temperature: float
    num_classes: int


def count_correct(train: Shard, test: Shard, votes: Votes, world: World, device: torch.device) -> Tensor:
    """float64 [len(k) + 1]: test examples that are classified rightly by each k, and those that have a label.

    A collective. Examples without a label are not neighbours, and are not tried.

    Args:
        train: features and labels whose first counts; any lengths.
        test: features and labels; a prediction is right if it is among an example's labels.
        votes: of the neighbours.
        world: whose ranks hold the two.
        device: from which ranks send.
    """
    with full_products():
        counts = _counted(train, test, votes, world, device)
    if world.size > 1:
        counts = counts.to(device)
        torch.distributed.all_reduce(counts)
    return counts


def _counted(train: Shard, test: Shard, votes: Votes, world: World, device: torch.device) -> Tensor:
    """What count_correct gives, of this rank's part of `test`. A collective."""
    place, most, each = train.x.device, max(votes.k), -(-test.total // world.size)
    queries = test.x.to(place)
    scale = torch.linalg.vector_norm(train.x, dim=1).clamp(min=TINY).reciprocal()
    truth = test.labels.to(place)
    counts = torch.zeros(len(votes.k) + 1, dtype=torch.float64, device=place)
    at_once = max(1, _QUERIES // world.size)
    # Every rank goes through as many rounds, with queries of zeros where it has none left.
    for start in range(0, each, at_once):
        mine = queries[start : start + at_once]
        padded = functional.pad(mine, (0, 0, 0, min(at_once, each - start) - len(mine)))
        asked = _all(padded, world, device)
        found = candidates(asked, train, scale, most + _SPARE)
        merged = (torch.split(part, BATCH) for part in _merged(found, train, world, device))
        guess, sure = (torch.cat(parts) for parts in zip(*map(partial(surely, votes), *merged), strict=True))
        sure[len(mine) :] = True
        unsure = _all(~sure, world, device)
        if bool(unsure.any()):
            guess[~sure] = _in_double(asked, found, unsure, train, votes, world, device)[~sure]
        labels = truth[start : start + len(mine)]
        known = (labels >= 0).any(1)
        right = (labels[:, :, None] == guess[: len(mine), None, :]).any(1) & known[:, None]
        counts[:-1] += right.sum(0)
        counts[-1] += known.sum()
    return counts


def surely(votes: Votes, similarity: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Classes as single precision sees them, int64 [q, len(k)], and of which queries double precision says no other.

    Sure is what holds wherever similarities lie within ERROR of what they are said to be: a class whose votes, of
    examples that are certainly among the k nearest and at the least that they weigh, are more than another's, of all
    that may be among them and at the most.

    Args:
        votes: of fewer neighbours than n.
        similarity: float32 [q, n] of the nearest of all, the largest first; -inf where there are no more.
        label: int64 [q, n].
    """
    weights = ((similarity - similarity[:, :1]).double() / votes.temperature).exp()
    label, slack = label.clamp(min=0), math.exp(min(700.0, 2 * ERROR / votes.temperature))
    sure = torch.ones(len(label), dtype=torch.bool, device=label.device)
    guesses = []
    for k in votes.k:
        edge = similarity[:, k - 1, None]
        inside, possible = similarity > edge + 2 * ERROR, similarity >= edge - 2 * ERROR
        least, most = (
            torch.zeros(len(label), votes.num_classes, dtype=torch.float64, device=label.device).scatter_add_(
                1, label, torch.where(counted, weights, 0.0)
            )
            for counted in (inside, possible)
        )
        highest, guess = most.max(1)
        others = most.scatter(1, guess[:, None], 0.0).amax(1)
        ahead = least.gather(1, guess[:, None])[:, 0] / slack > others * slack
        # Nobody else may vote.
        ahead |= (highest > 0) & (others == 0)
        # Beyond the last of them there may be more that are as near.
        all_here = ~possible[:, -1] | similarity[:, -1].isinf()
        sure &= ahead & all_here
        guesses.append(guess)
    return torch.stack(guesses, 1), sure


def vote(similarity: Tensor, label: Tensor, temperature: float, num_classes: int) -> Tensor:
    """The class with the most votes, of equals the first: int64 [q].

    Args:
        similarity: float64 [q, k]; -inf where there is no neighbour.
        label: int64 [q, k].
        temperature: T; a neighbour's vote weighs exp(similarity / T).
        num_classes: K.
    """
    # Less the largest: the same winner, and no overflow at small temperatures.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(len(label), num_classes, dtype=torch.float64, device=label.device)
    return votes.scatter_add_(1, label.clamp(min=0), weights).argmax(1)


def _merged(found: Candidates, train: Shard, world: World, device: torch.device) -> tuple[Tensor, Tensor]:
    """Similarities and labels of the nearest of all ranks' examples, for this rank's own queries. A collective."""
    labels = train.first_labels[found.row] if len(train.x) else torch.full_like(found.row, -1)
    similarity, labels = _exchanged((found.similarity, labels), world, device)
    if world.size == 1:
        return similarity, labels
    best, kept = similarity.topk(found.row.shape[1], dim=1)
    return best, labels.gather(1, kept)


def _in_double(
    asked: Tensor,
    found: Candidates,
    unsure: Tensor,
    train: Shard,
    votes: Votes,
    world: World,
    device: torch.device,
) -> Tensor:
    """Classes of this rank's queries, int64 [c, len(k)], of those that are unsure by float64. A collective."""
    k = max(votes.k)
    own = nearest(asked[unsure], Candidates(found.similarity[unsure], found.row[unsure]), train, k)
    sent = (
        torch.full((len(asked), k), -torch.inf, dtype=torch.float64, device=asked.device),
        torch.full((len(asked), k), -1, device=asked.device),
        torch.full((len(asked), k), train.total, device=asked.device),
    )
    for whole, part in zip(sent, (own.similarity, own.label, own.position), strict=True):
        whole[unsure] = part
    best = Neighbours(*_exchanged(sent, world, device)).first(k)
    return torch.stack(
        [vote(best.similarity[:, :k], best.label[:, :k], votes.temperature, votes.num_classes) for k in votes.k], 1
    )


def _all(padded: Tensor, world: World, device: torch.device) -> Tensor:
    """What ranks have of their queries, one rank's after another's: [c, ...] -> [W c, ...]. A collective."""
    if world.size == 1:
        return padded
    sent = padded.to(device).contiguous()
    parts = [torch.empty_like(sent) for _ in range(world.size)]
    torch.distributed.all_gather(parts, sent)
    return torch.cat(parts).to(padded.device)


def _exchanged(found: Sequence[Tensor], world: World, device: torch.device) -> list[Tensor]:
    """What this rank's examples are to all ranks' queries -> what all ranks' are to its own. A collective.

    Each [W c, k] -> [c, W k].
    """
    if world.size == 1:
        return list(found)
    parts = []
    for part in found:
        sent = part.to(device).contiguous()
        received = torch.empty_like(sent)
        torch.distributed.all_to_all_single(received, sent)
        parts.append(received.view(world.size, -1, part.shape[1]).transpose(0, 1).flatten(1).to(part.device))
    return parts
