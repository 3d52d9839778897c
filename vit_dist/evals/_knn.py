"""Nearest neighbours over features that are shared out among the ranks; each query meets each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.core.world import World
from vit_dist.data.subset import select
from vit_dist.evals import EvalContext
from vit_dist.evals._features import Shard, gather
from vit_dist.evals.knn import KnnConfig

_QUERIES = 256
"""Of a rank, at a time."""
_TILE = 1 << 25
"""Similarities in memory at a time, on a rank."""
_SPARE = 32
"""Candidates in single precision beyond k, so that the k nearest in double precision are among them."""

_ERROR = 1e-5
"""More than single precision errs in a cosine of a few thousand features."""
_TINY = 1e-30
"""What lengths are at least, so that features of zeros are similar to nothing."""


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
    place, most, each = train.x.device, max(votes.k), -(-test.total // world.size)
    queries = test.x.to(place)
    scale = torch.linalg.vector_norm(train.x, dim=1).clamp(min=_TINY).reciprocal()
    truth = test.labels.to(place)
    counts = torch.zeros(len(votes.k) + 1, dtype=torch.float64, device=place)
    # Every rank goes through as many rounds, with queries of zeros where it has none left.
    for start in range(0, each, _QUERIES):
        mine = queries[start : start + _QUERIES]
        padded = functional.pad(mine, (0, 0, 0, min(_QUERIES, each - start) - len(mine)))
        found = _exchanged(_nearest(_all(padded, world, device), train, scale, most), most, world, device)
        labels = truth[start : start + len(mine)]
        known = (labels >= 0).any(1)
        similarity, voters = found.similarity[: len(mine)], found.label[: len(mine)]
        for i, k in enumerate(votes.k):
            guess = vote(similarity[:, :k], voters[:, :k], votes.temperature, votes.num_classes)
            counts[i] += ((labels == guess[:, None]).any(1) & known).sum()
        counts[-1] += known.sum()
    if world.size > 1:
        counts = counts.to(device)
        torch.distributed.all_reduce(counts)
    return counts


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


@dataclass(frozen=True)
class _Neighbours:
    """The nearest examples of each query, the nearest first, of equals that which is stored first: [q, k] each."""

    similarity: Tensor
    label: Tensor
    position: Tensor

    def first(self, k: int) -> _Neighbours:
        """The k nearest of these, in order."""
        by_place = self.position.argsort(dim=1)
        by_similarity = self.similarity.gather(1, by_place).argsort(dim=1, descending=True, stable=True)
        order = by_place.gather(1, by_similarity)[:, :k]
        return _Neighbours(*(part.gather(1, order) for part in (self.similarity, self.label, self.position)))


def _nearest(queries: Tensor, train: Shard, scale: Tensor, k: int) -> _Neighbours:
    """The k nearest of this rank's examples, by float64 cosine similarities; -inf where it has fewer.

    Args:
        queries: float32 [q, D], of any length.
        train: this rank's part.
        scale: float32 [n]: one over the lengths of its features.
        k: how many.
    """
    own, labels = train.x, train.first_labels
    q, device, unit = len(queries), own.device, functional.normalize(queries, dim=1)
    bare = bool((labels < 0).any())
    best = torch.full((q, 0), -torch.inf, device=device)
    rows = torch.zeros((q, 0), dtype=torch.int64, device=device)
    step = max(1, _TILE // max(1, q))
    for start in range(0, len(own), step):
        similarity = (unit @ own[start : start + step].T).mul_(scale[start : start + step])
        if bare:
            similarity.masked_fill_(labels[None, start : start + step] < 0, -torch.inf)
        values, indices = similarity.topk(min(k + _SPARE, similarity.shape[1]), dim=1)
        best, rows = torch.cat([best, values], 1), torch.cat([rows, indices + start], 1)
        best, kept = best.topk(min(k + _SPARE, best.shape[1]), dim=1)
        rows = rows.gather(1, kept)
    # Which of them are the nearest depends neither on how products of single precision round nor on who has which.
    exact = torch.full((q, max(k, best.shape[1])), -torch.inf, dtype=torch.float64, device=device)
    label = torch.full(exact.shape, -1, dtype=torch.int64, device=device)
    position = torch.full(exact.shape, train.total, dtype=torch.int64, device=device)
    if best.shape[1]:
        # Those that are further from the k-th than single precision errs are none of the k, whatever they are.
        edge = best[:, min(k, best.shape[1]) - 1, None] - _ERROR
        there = max(1, int((best >= edge).sum(1).max()))
        best, rows = best[:, :there], rows[:, :there]
        at_once = max(1, _TILE // 4 // (there * own.shape[1]))
        for start in range(0, q, at_once):
            some = slice(start, start + at_once)
            query = functional.normalize(queries[some].double(), dim=1)
            examples = own[rows[some]].double()
            cosine = torch.bmm(examples, query[:, :, None]).squeeze(2)
            cosine /= torch.linalg.vector_norm(examples, dim=2).clamp(min=_TINY)
            exact[some, :there] = torch.where(best[some].isinf(), -torch.inf, cosine)
        label[:, :there], position[:, :there] = labels[rows], rows + train.start
    return _Neighbours(exact, label, position).first(k)


def _all(padded: Tensor, world: World, device: torch.device) -> Tensor:
    """The queries of all ranks, one rank's after another's: [W c, D]. A collective."""
    if world.size == 1:
        return padded
    sent = padded.to(device).contiguous()
    parts = [torch.empty_like(sent) for _ in range(world.size)]
    torch.distributed.all_gather(parts, sent)
    return torch.cat(parts).to(padded.device)


def _exchanged(found: _Neighbours, k: int, world: World, device: torch.device) -> _Neighbours:
    """What all ranks have found for this rank's queries, merged: [c, k]. A collective."""
    if world.size == 1:
        return found
    parts = []
    for part in (found.similarity, found.label, found.position):
        sent = part.to(device).contiguous()
        received = torch.empty_like(sent)
        torch.distributed.all_to_all_single(received, sent)
        # [W, c, k] -> [c, W k]
        parts.append(received.view(world.size, -1, k).transpose(0, 1).flatten(1).to(part.device))
    return _Neighbours(*parts).first(k)
