"""Evaluators on features that are in memory, each beside the plain loop that somebody would write who writes it well.

classification  sums that stay on the device, against a loop that reads each batch's result
knn             float64-exact votes, against a matrix product and topk in single precision, a batch of queries at a time
linear          all probes in one pass, against torch's own layers and one SGD for all, over batches that they share
fewshot         several lambdas, against normal equations: one Gram matrix, a solve by Cholesky for each

Both sides are given the same tensors, take turns, and give the same result, which is checked. What counts is the CPU
time of the process, user and system, of the quickest round, in one thread: other programs on the machine stretch that
little, and threads that wait for each other not at all.
Last, alone, few-shot's fit of 25 shots of 1000 classes, 1024 features and three lambdas, in seconds.

    python -m benchmarks.evaluation [--scale 1.0] [--rounds 5]      # some three minutes on two quiet cores
"""

from __future__ import annotations

import argparse
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
SHAPES = ((60_000, 3_000, 384), (20_000, 2_000, 1024), (20_000, 4_000, 64), (1_000, 8_000, 384))
"""Of knn: examples, queries, features."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of examples; 0.02 is a smoke")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    def scaled(n: int) -> int:
        return max(50, round(n * args.scale))

    torch.set_num_threads(1)
    print(f"{CLASSES} classes, one thread; CPU seconds of the quickest of {args.rounds} rounds")
    x, labels = drawn(scaled(60_000), 384)
    beside(f"classification {len(x):,}", *classification(x, labels), args.rounds)
    for n, q, d in SHAPES:
        own, of_own = drawn(scaled(n), d)
        which = torch.arange(scaled(q)) % len(own)
        new = own[which] + 0.5 * torch.randn(len(which), d, generator=torch.Generator().manual_seed(1))
        what = f"knn {len(own):,} x {len(new):,}, D = {d}"
        beside(what, *neighbours(own, of_own, new, of_own[which]), args.rounds)
    few = slice(0, scaled(20_000))
    beside(f"linear {len(x[few]):,}, 6 probes", *probes(x[few], labels[few]), args.rounds)
    beside("fewshot 5,000, 4 lambdas", *lambdas(x, labels, x[: scaled(15_000)]), args.rounds)
    shots, truth = torch.randn(scaled(25_000), 1024).double(), torch.arange(scaled(25_000)) % scaled(1_000)
    began, spent = time.perf_counter(), time.process_time()
    ridge = Ridge(shots, truth, scaled(1_000))
    for l2 in (1.0, 32.0, 1024.0):
        ridge.solve(l2)
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    what = f"fewshot {len(shots):,} shots of {scaled(1_000):,} classes, D = 1024"
    print(f"{what}: {wall:.1f} s, {cpu:.1f} CPU seconds (goal: 60 s)")


def drawn(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Features [n, d] about a place of each class, and labels [n, 1]."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (n, 1), generator=draw)
    places = torch.randn(CLASSES, d, generator=draw)
    return torch.randn(n, d, generator=draw) + 0.3 * places[labels[:, 0]], labels


def beside(what: str, ours: Work, plain: Work, rounds: int) -> None:
    """Time the two, in turns, and print a line."""
    spent: tuple[list[float], list[float]] = ([], [])
    # The first round warms up.
    for _ in range(rounds + 1):
        results = []
        for work, seconds in zip((ours, plain), spent, strict=True):
            began = time.process_time()
            results.append(work())
            seconds.append(time.process_time() - began)
        assert torch.allclose(*results, rtol=1e-3, atol=1e-4), what
    mine, theirs = (min(seconds[1:]) for seconds in spent)
    print(f"{what:<32} {mine:8.3f}, plain loop {theirs:8.3f}: {theirs / mine:5.2f} times as fast", flush=True)


Work = Callable[[], Tensor]


def classification(x: Tensor, labels: Tensor) -> tuple[Work, Work]:
    logits, weights, batch = x[:, :CLASSES].contiguous(), torch.ones(len(x), 1), 256

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
        steps = how.passes * -(-len(x) // how.batch)
        layers = [torch.nn.Linear(x.shape[1], CLASSES) for _ in how.rates]
        for layer in layers:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        groups = [{"params": layer.parameters(), "lr": rate} for layer, rate in zip(layers, how.rates, strict=True)]
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(how.passes):
            order = torch.from_numpy(permutation(len(x), how.seed, _TAG_ORDER, epoch))
            for start in range(0, len(x), how.batch):
                rows = order[start : start + how.batch]
                images, truth = x[rows], labels[rows, 0]
                optimizer.zero_grad()
                torch.stack([functional.cross_entropy(layer(images), truth) for layer in layers]).sum().backward()
                optimizer.step()
                schedule.step()
        return torch.stack([layer.weight.detach().T for layer in layers], dim=1)

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
        gram, right = z.T @ z, z.T @ y
        for l2 in several:
            factor = torch.linalg.cholesky(gram + l2 * torch.eye(z.shape[1], dtype=torch.float64))
            found.append(z_new @ torch.cholesky_solve(right, factor))
        return torch.stack(found)

    return ours, plain


if __name__ == "__main__":
    main()
