"""First batch of a stream that resumes at half of an epoch, over that of one that begins, at several sizes of the set.

A server in a process of its own makes up tars and indexes of `--samples` a shard (benchmarks/synthetic.py). Each time a
rank of `--ranks` opens the set, its manifest included, and waits for its first batch: from position 0, and from the
middle of an epoch. The two take turns; the median of the rounds counts, with the lowest and highest ratio. Aim: at
most 1.2.

    python -m benchmarks.stream_resume [--shards 8 800 30000] [--samples 1000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from benchmarks.synthetic import SyntheticSet, served
from vit_dist.config.load import resolve
from vit_dist.config.schema import Recipe
from vit_dist.core.units import parse_count
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream


def first_batch(recipe: Recipe, ranks: int, share: float) -> tuple[float, float]:
    """Seconds to open the set, and from there to the first batch of the last rank at a share of an epoch."""
    began = time.perf_counter()
    data = open_training_set(recipe)
    opened = time.perf_counter() - began
    steps = int(data.num_samples * share) // recipe.global_batch
    began = time.perf_counter()
    with TrainStream(data, recipe, World(ranks - 1, ranks), steps * recipe.global_batch) as stream:
        next(iter(stream))
        return opened, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=parse_count, nargs="+", default=[8, 800, 30_000])
    parser.add_argument("--samples", type=parse_count, default=1000, help="of a shard")
    parser.add_argument("--ranks", type=parse_count, default=16)
    parser.add_argument("--global-batch", type=parse_count, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{'examples':>12} {'open, s':>8} {'start, s':>9} {'at 50%, s':>10} {'ratio':>6}")
    for shards in args.shards:
        synthetic = SyntheticSet(shards, args.samples)
        with served(synthetic, processes=os.cpu_count() or 1) as url:
            recipe = resolve(
                {
                    "horizon": "7 epochs",
                    "global_batch": args.global_batch,
                    "model": "ViT-B/16",
                    "data": {"num_classes": synthetic.num_classes, "train": f"{url}/manifest.json"},
                    "optim": {"name": "adamw", "lr": 1e-3},
                    "schedule": {"name": "linear", "warmup": "10 steps"},
                }
            )
            # The first connection, and what is imported late.
            first_batch(recipe, args.ranks, 0)
            rounds = [
                (first_batch(recipe, args.ranks, 0), first_batch(recipe, args.ranks, 0.5)) for _ in range(args.rounds)
            ]
        ratios = [half[1] / start[1] for start, half in rounds]
        opened, start, half = (
            statistics.median(found)
            for found in ([r[0][0] for r in rounds], [r[0][1] for r in rounds], [r[1][1] for r in rounds])
        )
        told = f"{statistics.median(ratios):6.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"{shards * args.samples:12,} {opened:8.2f} {start:9.2f} {half:10.2f} {told}", flush=True)


if __name__ == "__main__":
    main()
