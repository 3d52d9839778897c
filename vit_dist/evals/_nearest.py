"""Nearest neighbours among a rank's features: candidates in single precision, and the exact ones in double.

Products of single precision find every neighbour that matters, and say of most queries all that is asked; double
precision is for the few of which they do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.evals._features import Shard

ERROR = 1e-5
"""More than single precision errs in a cosine of a few thousand features."""
BATCH = 256
"""Queries that a product is of."""
TILE = 1 << 23
"""Similarities in memory at a time, on a rank; of a GPU four times as many."""
GRID = 2.0**44
"""Cosines in double precision are multiples of one over it: two equal examples stay equal, however a product sums."""
TINY = 1e-30
"""What lengths are at least, so that features of zeros are similar to nothing."""


@dataclass(frozen=True)
class Candidates:
    """Of each query the rows of a rank's features with the largest cosines in single precision, the largest first.

    Attributes:
        similarity: float32 [q, n]; -inf where there are fewer.
        row: int64 [q, n]; 0 where there are fewer.
    """

    similarity: Tensor
    row: Tensor


@dataclass(frozen=True)
class Neighbours:
    """The nearest examples of each query, the nearest first, of equals that which is stored first: [q, k] each.

    Attributes:
        similarity: float64; -inf where there are fewer.
        label: int64.
        position: int64, in the whole set.
    """

    similarity: Tensor
    label: Tensor
    position: Tensor

    def first(self, k: int) -> Neighbours:
        """The k nearest of these, in order."""
        by_place = self.position.argsort(dim=1)
        by_similarity = self.similarity.gather(1, by_place).argsort(dim=1, descending=True, stable=True)
        order = by_place.gather(1, by_similarity)[:, :k]
        return Neighbours(*(part.gather(1, order) for part in (self.similarity, self.label, self.position)))


def candidates(queries: Tensor, train: Shard, scale: Tensor, width: int) -> Candidates:
    """The `width` nearest of this rank's examples, as single precision sees them.

    Args:
        queries: float32 [q, D], of any length.
        train: this rank's part.
        scale: float32 [n]: one over the lengths of its features.
        width: how many.
    """
    own, labels = train.x, train.first_labels
    device, unit = own.device, functional.normalize(queries, dim=1)
    bare = bool((labels < 0).any())
    best = torch.full((len(queries), 0), -torch.inf, device=device)
    rows = torch.zeros((len(queries), 0), dtype=torch.int64, device=device)
    step = max(1, (TILE if device.type == "cpu" else 4 * TILE) // BATCH)
    # One piece of memory for all products: what is freed and asked for again costs a page fault every 4 KiB.
    memory = torch.empty(BATCH * min(step, len(own)), device=device)
    for start in range(0, len(own), step):
        some = own[start : start + step] * scale[start : start + step, None]
        unlabelled = labels[None, start : start + step] < 0 if bare else None
        found = []
        for batch in torch.split(unit, BATCH):
            similarity = torch.mm(batch, some.T, out=memory[: len(batch) * len(some)].view(len(batch), -1))
            if unlabelled is not None:
                similarity.masked_fill_(unlabelled, -torch.inf)
            found.append(largest(similarity, width))
        values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        best, rows = torch.cat([best, values], 1), torch.cat([rows, indices + start], 1)
        if best.shape[1] > width:
            best, kept = best.topk(width, dim=1)
            rows = rows.gather(1, kept)
    missing = (0, width - best.shape[1])
    return Candidates(functional.pad(best, missing, value=-torch.inf), functional.pad(rows, missing))


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As values.topk(min(k, n), dim=1), for wide rows in a fraction of the time.

    Columns are taken in groups. The k largest lie in the k groups with the largest maxima, and finding maxima is what
    processors do fast. Half as many columns a group as would be the fewest in all: topk reads maxima that lie together,
    but the columns of the groups have to be gathered.

    Args:
        values: float [q, n].
        k: at least 1.
    """
    n = values.shape[1]
    each = int(math.sqrt(n / k) / 2)
    if each < 2:
        found = values.topk(min(k, n), dim=1)
        return found.values, found.indices
    # Of a group the columns lie `groups` apart, so that maxima are of whole rows.
    groups = n // each
    maxima = torch.unflatten(values[:, : each * groups], 1, (each, groups)).amax(1)
    chosen = largest(maxima, k)[1]
    offsets = torch.arange(each, device=values.device) * groups
    columns = (offsets[:, None] + chosen[:, None, :]).flatten(1)
    if each * groups < n:
        rest = torch.arange(each * groups, n, device=values.device).expand(len(values), -1)
        columns = torch.cat([columns, rest], 1)
    best, places = largest(values.gather(1, columns), k)
    return best, columns.gather(1, places)


def nearest(queries: Tensor, found: Candidates, train: Shard, k: int) -> Neighbours:
    """The k nearest of this rank's examples by float64 cosines; -inf where it has fewer.

    Which they are depends neither on how products of single precision round nor on who has which examples.

    Args:
        queries: float32 [q, D], of any length.
        found: their candidates, at least k.
        train: this rank's part.
        k: how many.
    """
    own, labels, best, rows = train.x, train.first_labels, found.similarity, found.row
    exact = torch.full(best.shape, -torch.inf, dtype=torch.float64, device=own.device)
    label = torch.full(best.shape, -1, dtype=torch.int64, device=own.device)
    position = torch.full(best.shape, train.total, dtype=torch.int64, device=own.device)
    if len(own) and len(queries):
        # Those that are further from the k-th than single precision errs in both are none of the k, whatever they are.
        edge = best[:, k - 1, None] - 2 * ERROR
        there = max(1, int((best >= edge).sum(1).max()))
        for some in _parts(len(queries), there * own.shape[1]):
            unit = functional.normalize(queries[some].double(), dim=1)
            cosine = _cosines(unit, own[rows[some, :there]])
            exact[some, :there] = torch.where(best[some, :there].isinf(), -torch.inf, cosine)
        label[:, :there], position[:, :there] = labels[rows[:, :there]], rows[:, :there] + train.start
    by_rank = Neighbours(exact, label, position).first(k)
    if best.shape[1] >= len(own) or not len(queries):
        return by_rank
    # Where the last candidate may be as near as the k-th, so may others be that are none.
    open_ended = best[:, -1] >= best[:, k - 1] - 2 * ERROR
    if bool(open_ended.any()):
        forced = _by_force(queries[open_ended], train, k)
        for part, whole in zip(_fields(by_rank), _fields(forced), strict=True):
            part[open_ended] = whole
    return by_rank


def _fields(some: Neighbours) -> tuple[Tensor, Tensor, Tensor]:
    return some.similarity, some.label, some.position


def _by_force(queries: Tensor, train: Shard, k: int) -> Neighbours:
    """The same among all of this rank's examples, of which there are at least k; without candidates."""
    unit, labels = functional.normalize(queries.double(), dim=1), train.first_labels
    best = torch.empty((len(unit), 0), dtype=torch.float64, device=unit.device)
    rows = torch.empty((len(unit), 0), dtype=torch.int64, device=unit.device)
    for some in _parts(len(train.x), max(len(unit), train.x.shape[1])):
        wide = train.x[some].double()
        cosine = unit @ wide.T / torch.linalg.vector_norm(wide, dim=1).clamp(min=TINY)
        cosine.masked_fill_(labels[some] < 0, -torch.inf)
        own = torch.arange(len(train.x), device=rows.device)[some].expand(len(unit), -1)
        best, rows = torch.cat([best, _on_grid(cosine)], 1), torch.cat([rows, own], 1)
        # Stable, and parts come in order: of equals the first stays.
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, rows = best[:, :k], rows.gather(1, order[:, :k])
    return Neighbours(best, labels[rows], rows + train.start)


def _cosines(unit: Tensor, examples: Tensor) -> Tensor:
    """Float64 [q, m] of float64 [q, D], each of length 1, with float32 [q, m, D]."""
    wide = examples.double()
    cosine = torch.bmm(wide, unit[:, :, None]).squeeze(2) / torch.linalg.vector_norm(wide, dim=2).clamp(min=TINY)
    return _on_grid(cosine)


def _on_grid(cosine: Tensor) -> Tensor:
    return (cosine * GRID).round() / GRID


def _parts(total: int, width: int) -> Iterator[slice]:
    """What `total` rows of `width` numbers are cut into, so that memory holds a part in double precision."""
    step = max(1, TILE // max(1, width))
    return (slice(start, start + step) for start in range(0, total, step))
