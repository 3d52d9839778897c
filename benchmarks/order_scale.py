"""The order at the size it is made for: 300 million examples in 30,000 shards, 4096 ranks. `--limits` fails over them.

python benchmarks/order_scale.py [--limits]
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHARDS, SAMPLES, RANKS = 30_000, 10_000, 4096


def seconds(call: Callable[[], Any], repeat: int = 3) -> float:
    """The best of a few runs."""
    spent = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return min(spent)


def make_manifest(folder: Path) -> str:
    from vit_dist.data.manifest import Shard, ShardManifest, write_manifest

    shards = tuple(
        Shard(f"train-{i:06d}.tar", SAMPLES, 10**9 + i, f"{i:032x}", f"train-{i:06d}.idx.npz", f"{i:032x}")
        for i in range(SHARDS)
    )
    write_manifest(ShardManifest(str(folder), "scale", shards, True, 18_291), str(folder / "manifest.json"))
    return str(folder / "manifest.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", action="store_true", help="exit with 1 where a number is over its limit")
    args = parser.parse_args()
    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.order import GlobalOrder, resolve_lanes
    from vit_dist.data.subset import select

    rows: list[tuple[str, float, str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        url = make_manifest(Path(folder))
        rows.append(("open the manifest", seconds(lambda: read_manifest(url)), "s", 2.0))
        manifest = read_manifest(url)

    def build() -> GlobalOrder:
        subset = select(manifest, None)
        lanes, window = resolve_lanes(subset.num_samples, subset.num_bytes, None, None)
        order = GlobalOrder(subset.counts, seed=0, lanes=lanes, window=window)
        order.locate(0)
        return order

    rows.append(("build subset and order, first position", seconds(build), "s", 0.5))
    tracemalloc.start()
    order = build()
    rows.append(("memory of the order", tracemalloc.get_traced_memory()[1] / 1e6, "MB", 200.0))
    tracemalloc.stop()

    positions = np.random.default_rng(0).integers(0, order.num_samples, 20_000).tolist()
    spent = seconds(lambda: [order.locate(p) for p in positions])
    rows.append(("locate(position)", spent / len(positions) * 1e6, "us", 20.0))
    one_rank = np.arange(150_000_000 + RANKS - 1, 150_000_000 + RANKS * 10_000, RANKS)
    spent = seconds(lambda: order.locate_many(one_rank))
    rows.append(
        (f"locate_many, {len(one_rank)} positions of one of {RANKS} ranks", spent / len(one_rank) * 1e6, "us", 20.0)
    )
    epochs = iter(range(1, 100))
    rows.append(
        ("first position of another epoch", seconds(lambda: order.locate(next(epochs) * order.num_samples)), "s", 0.5)
    )
    rows.append(
        ("memory of this process at its highest", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "MB", 400.0)
    )

    print(f"{order.num_samples:,} examples in {SHARDS:,} shards, {order.lanes} lanes, {RANKS} ranks")
    for name, value, unit, limit in rows:
        print(f"  {name:<55} {value:10.3f} {unit:<3} (limit {limit:g})")
    return int(args.limits and any(value > limit for _, value, _, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
