"""`vit-dist data order`: the keys of any slice of the global order. No torch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from vit_dist.cli._data_common import count, out, parser, positive
from vit_dist.data.index import ShardIndex
from vit_dist.data.manifest import ShardManifest

_CHUNK = 1 << 16
_CACHED_BYTES = 256 << 20


def main(argv: list[str]) -> int:
    """Print sample keys, one a line, or their digest."""
    p = parser(
        "order",
        "Print the keys of examples in the order they are trained on, one a line.",
        "The order is a function of manifest, subset, lanes, window, seed and epoch: the same for every number of\n"
        "processes. Any slice costs the same, wherever it begins.",
        "  vit-dist data order runs/data/pets/manifest.json --count 10\n"
        "  vit-dist data order s3://bucket/pets --subset 30k --epoch 3 --start 1M --count 100\n"
        "  vit-dist data order runs/data/pets --digest          # one line that names the order of the epoch",
    )
    p.add_argument("manifest", help="URL of a manifest.json, or of the directory that holds it")
    p.add_argument("--subset", type=positive, metavar="N", help="the first N examples of the nested order (30k, 1.5M)")
    p.add_argument("--subset-seed", type=count, default=0, metavar="S", help="which nested family of subsets (0)")
    p.add_argument("--seed", type=count, default=0, metavar="S", help="the run's seed (0)")
    p.add_argument("--epoch", type=count, default=0, metavar="E", help="from which epoch, counted from 0 (0)")
    p.add_argument(
        "--start", type=count, default=0, metavar="P", help="position in the epoch; at its end or later: goes on (0)"
    )
    p.add_argument("--count", type=count, metavar="K", help="how many (to the end of the epoch)")
    p.add_argument("--lanes", type=positive, metavar="C", help="parallel streams; default as in a recipe")
    p.add_argument("--window", type=positive, metavar="K", help="samples permuted together; default as in a recipe")
    p.add_argument("--digest", action="store_true", help="print one SHA-256 of the lines instead of them")
    args = p.parse_args(argv)

    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.order import GlobalOrder, resolve_lanes
    from vit_dist.data.pack.progress import Progress
    from vit_dist.data.subset import select

    manifest = read_manifest(args.manifest)
    subset = select(manifest, args.subset, args.subset_seed)
    lanes, window = resolve_lanes(subset.num_samples, subset.num_bytes, args.lanes, args.window)
    order = GlobalOrder(subset.counts, seed=args.seed, lanes=lanes, window=window)
    begin = args.epoch * order.num_samples + args.start
    wanted = args.count if args.count is not None else order.num_samples - args.start % order.num_samples
    keys = _Keys(manifest)
    digest = hashlib.sha256()
    with Progress("order", wanted, "keys") as progress:
        for first in range(begin, begin + wanted, _CHUNK):
            positions = np.arange(first, min(first + _CHUNK, begin + wanted), dtype=np.int64)
            _, shards, samples = order.locate_many(positions)
            if subset.chosen is not None:
                samples = np.array([subset.chosen[a][b] for a, b in zip(shards, samples, strict=True)], np.int64)
            lines = "".join(f"{key}\n" for key in keys.find(subset.shards[shards], samples))
            if args.digest:
                digest.update(lines.encode())
            else:
                out(lines)
            progress.advance(len(positions))
    if args.digest:
        out(f"{digest.hexdigest()}\n")
    return 0


class _Keys:
    """Keys by shard and sample; the indexes used last are kept, up to a number of bytes."""

    def __init__(self, manifest: ShardManifest) -> None:
        self._manifest = manifest
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._bytes = 0

    def find(self, shards: np.ndarray, samples: np.ndarray) -> list[str]:
        """int64 [n], int64 [n] -> n keys. Each shard's index is looked up once."""
        keys = [""] * len(shards)
        by_shard = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[by_shard])) + 1
        for places in np.split(by_shard, cuts) if len(shards) else []:
            index = self._index(int(shards[places[0]]))
            for place in places.tolist():
                keys[place] = index.key(int(samples[place]))
        return keys

    def _index(self, shard: int) -> ShardIndex:
        index = self._indexes.pop(shard, None)
        if index is None:
            index = self._manifest.read_index(shard)
            self._bytes += _size(index)
        self._indexes[shard] = index
        while self._bytes > _CACHED_BYTES and len(self._indexes) > 1:
            self._bytes -= _size(self._indexes.popitem(last=False)[1])
        return index


def _size(index: ShardIndex) -> int:
    return sum(array.nbytes for array in vars(index).values())
