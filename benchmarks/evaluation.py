"""Evaluators on features that are in memory, each beside the plain loop that somebody would write.

classification  sums that stay on the device, against a loop that reads each batch's result
knn             float64-exact votes, against a matrix product and topk, a batch of queries at a time
linear          all probes in one pass, against torch's own layer and SGD, one probe after the other
fewshot         all lambdas from one eigendecomposition, against a solve for each

Both sides are given the same tensors, take turns, and give the same result, which is checked; the median counts.

    python -m benchmarks.evaluation [--scale 1.0] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.core.world import World
from vit_dist.evals._classification import batch_sums
from vit_dist.evals._features import Shard
from vit_dist.evals._fewshot import BIAS, STD_FLOOR, Ridge
from vit_dist.evals._knn import Votes, count_correct
from vit_dist.evals._linear import _TAG_ORDER, Space, Training, permutation, train

CPU = torch.device("cpu")
CLASSES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of examples; 0.02 is a smoke")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    n, d = round(60_000 * args.scale), 384
    labels = torch.randint(0, CLASSES, (n, 1), generator=draw)
    x = torch.randn(n, d, generator=draw) + functional.one_hot(labels[:, 0], d) * 2.0
    new, truth = x[: n // 4] + 0.5 * torch.randn(n // 4, d, generator=draw), labels[: n // 4]
    print(f"{n:,} examples, {len(new):,} queries, {d} features, {CLASSES} classes, {torch.get_num_threads()} threads")
    for name, ours, plain in (
        ("classification", *classification(x, labels)),
        ("knn", *neighbours(x, labels, new, truth)),
        ("linear", *probes(x, labels)),
        ("fewshot", *lambdas(x, labels, new)),
    ):
        spent: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds):
            results = []
            for work, seconds in zip((ours, plain), spent, strict=True):
                began = time.perf_counter()
                results.append(work())
                seconds.append(time.perf_counter() - began)
            assert torch.allclose(*results, rtol=1e-3, atol=1e-4), name
        mine, theirs = (statistics.median(seconds) for seconds in spent)
        print(f"{name:<15} {mine:8.3f} s, plain loop {theirs:8.3f} s: {theirs / mine:5.2f} times as fast")


Work = Callable[[], Tensor]


def classification(x: Tensor, labels: Tensor) -> tuple[Work, Work]:
    logits, weights, batch = x[:, :CLASSES], torch.ones(len(x), 1), 256

    def ours() -> Tensor:
        sums = torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(x), batch):
            some = slice(start, start + batch)
            sums += batch_sums(logits[some], labels[some], weights[some])
        return sums

    def plain() -> Tensor:
        correct, loss = 0, 0.0
        for start in range(0, len(x), batch):
            some = slice(start, start + batch)
            correct += int((logits[some].argmax(1) == labels[some, 0]).sum())
            loss += float(functional.cross_entropy(logits[some], labels[some, 0], reduction="sum"))
        return torch.tensor([correct, loss, len(x)], dtype=torch.float64)

    return ours, plain


def neighbours(x: Tensor, labels: Tensor, new: Tensor, truth: Tensor) -> tuple[Work, Work]:
    own, queries = Shard(x, labels, 0, len(x)), Shard(new, truth, 0, len(new))

    def ours() -> Tensor:
        return count_correct(own, queries, Votes((20,), 0.07, CLASSES), World(), CPU)[0]

    def plain() -> Tensor:
        unit, correct = functional.normalize(x, dim=1), torch.zeros((), dtype=torch.float64)
        for start in range(0, len(new), 256):
            similarity = functional.normalize(new[start : start + 256], dim=1) @ unit.T
            values, rows = similarity.topk(20, dim=1)
            votes = torch.zeros(len(values), CLASSES).scatter_add_(1, labels[rows, 0], (values / 0.07).exp())
            correct += (votes.argmax(1) == truth[start : start + 256, 0]).sum()
        return correct

    return ours, plain


def probes(x: Tensor, labels: Tensor) -> tuple[Work, Work]:
    how, space = Training([0.01, 0.03, 0.1, 0.3, 1.0, 3.0], 1024, 2, 0), Space("head", (slice(0, x.shape[1]),))
    context: Any = SimpleNamespace(engine=SimpleNamespace(device=CPU), world=World())
    positions = np.arange(len(x))

    def ours() -> Tensor:
        return train(Shard(x, labels, 0, len(x)), positions, [space], how, CLASSES, context).weights[0]

    def plain() -> Tensor:
        found = []
        steps = how.passes * -(-len(x) // how.batch)
        for rate in how.rates:
            layer = torch.nn.Linear(x.shape[1], CLASSES)
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for epoch in range(how.passes):
                order = torch.from_numpy(permutation(len(x), how.seed, _TAG_ORDER, epoch))
                for start in range(0, len(x), how.batch):
                    rows = order[start : start + how.batch]
                    optimizer.zero_grad()
                    functional.cross_entropy(layer(x[rows]), labels[rows, 0]).backward()
                    optimizer.step()
                    schedule.step()
            found.append(layer.weight.detach().T)
        return torch.stack(found, dim=1)

    return ours, plain


def lambdas(x: Tensor, labels: Tensor, new: Tensor) -> tuple[Work, Work]:
    several, shots, truth = (1.0, 32.0, 1024.0, 32768.0), x[:5000].double(), labels[:5000, 0]

    def ours() -> Tensor:
        ridge = Ridge(shots, truth, CLASSES)
        return torch.stack([new.double() @ weight + bias for weight, bias in map(ridge.solve, several)])

    def plain() -> Tensor:
        mean, std = shots.mean(0), shots.std(0, correction=0) + STD_FLOOR
        z, z_new = ((functional.pad((rows - mean) / std, (0, 1), value=BIAS)) for rows in (shots, new.double()))
        y, found = functional.one_hot(truth, CLASSES).double() * 2 - 1, []
        for l2 in several:
            gram = z.T @ z + l2 * torch.eye(z.shape[1], dtype=torch.float64)
            found.append(z_new @ torch.linalg.solve(gram, z.T @ y))
        return torch.stack(found)

    return ours, plain


if __name__ == "__main__":
    main()
