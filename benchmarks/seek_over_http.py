"""Seek to the middle of 300 million examples in 30,000 shards over HTTP, and deliver a batch to one rank of 4096.

A server in a process of its own computes tars, indexes and manifest on request (benchmarks/synthetic.py). Its manifest
takes a minute to make, which is not measured.

    python -m benchmarks.seek_over_http [--shards 30000] [--samples 10000] [--position 150M] [--global-batch 8192]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
import urllib.request

from benchmarks.synthetic import SyntheticSet, served
from vit_dist.config.load import resolve
from vit_dist.core.units import parse_count
from vit_dist.core.world import World
from vit_dist.data.batch import Batch
from vit_dist.data.sets import TrainingSet, open_training_set
from vit_dist.data.stream import TrainStream


def counters(url: str) -> tuple[int, int]:
    """Requests and bytes since the last time."""
    with urllib.request.urlopen(f"{url}/counters") as answer:
        counted = json.load(answer)
    return counted["requests"], counted["bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=parse_count, default=30_000)
    parser.add_argument("--samples", type=parse_count, default=10_000)
    parser.add_argument("--ranks", type=parse_count, default=4096)
    parser.add_argument("--position", type=parse_count, default=150_000_000)
    parser.add_argument("--global-batch", type=parse_count, default=8192)
    args = parser.parse_args()
    synthetic = SyntheticSet(args.shards, args.samples)
    began = time.perf_counter()
    with served(synthetic, processes=os.cpu_count() or 1) as url:
        spent = time.perf_counter() - began
        print(f"{args.shards * args.samples:,} examples in {args.shards:,} tars, made up in {spent:.0f} s")
        recipe = resolve(
            {
                "horizon": "7 epochs",
                "global_batch": args.global_batch,
                "model": "ViT-B/16",
                "data": {"num_classes": synthetic.num_classes, "train": f"{url}/manifest.json"},
                "optim": {"name": "adamw", "lr": 1e-3},
                "schedule": {"name": "linear", "warmup": "10k steps"},
            }
        )
        began = time.perf_counter()
        data = open_training_set(recipe)
        spent = time.perf_counter() - began
        requests, size = counters(url)
        print(f"{'':<34}{'seconds':>9}{'requests':>10}{'MB':>9}")
        row("open manifest, subset and order", spent, requests, size)
        for rank in sorted({0, args.ranks - 1}):
            began = time.perf_counter()
            with TrainStream(data, recipe, World(rank, args.ranks), args.position) as stream:
                batches = iter(stream)
                for name in ("first", "second"):
                    batch, state = next(batches)
                    spent = time.perf_counter() - began
                    requests, size = counters(url)
                    row(f"rank {rank}, {name} batch of {len(batch.images)}", spent, requests, size)
                    check(synthetic, data, batch)
                    began = time.perf_counter()
                assert state.position == args.position + 2 * args.global_batch
                print(f"  read-ahead of at most {stream.memory_bytes / 1e6:.0f} MB")
    print(f"  memory of this process at its highest: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def row(what: str, spent: float, requests: int, size: int) -> None:
    """A line of the table."""
    print(f"{what:<34}{spent:9.2f}{requests:10}{size / 1e6:9.2f}")


def check(synthetic: SyntheticSet, data: TrainingSet, batch: Batch) -> None:
    """What was delivered is what the order says, with the labels that were made up."""
    for position, ordinal, label in zip(batch.positions, batch.ordinals, batch.labels[:, 0], strict=True):
        where = data.order.locate(int(position))
        assert int(ordinal) == where.shard * synthetic.samples_per_shard + where.sample
        assert int(label) == synthetic.labels(where.shard)[where.sample]


if __name__ == "__main__":
    main()
