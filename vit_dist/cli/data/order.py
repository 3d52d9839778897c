"""`vit-dist data order`: the keys of any slice of the global order, of a set or of a recipe's mixture. No torch."""

from __future__ import annotations

import argparse
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit_dist.cli.data.options import count, out, parser, positive
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import redact
from vit_dist.core.places import any_option
from vit_dist.core.seeding import I64
from vit_dist.data.index import ShardIndex
from vit_dist.data.mixture import MixtureOrder
from vit_dist.data.order import GlobalOrder

if TYPE_CHECKING:
    from vit_dist.data.sets import Parts

_CHUNK = 1 << 16
_CACHED_BYTES = 256 << 20

_DETAILS = """
The order is a function of manifest, subset, lanes, window, seed and epoch: the same for every number of
processes. Any slice costs the same, wherever it begins.

A recipe has its own subset, seed, lanes and window; k=v changes them, as for `vit-dist train`. Of a mixture a line is
the name of the set and the key, with a tab between. A mixture has no epochs: --start counts from the beginning of
training.
"""
_EXAMPLES = """
  vit-dist data order runs/data/pets/manifest.json --count 10
  vit-dist data order s3://bucket/pets --subset 30k --epoch 3 --start 1M --count 100
  vit-dist data order runs/data/pets --digest          # one line that names the order of the epoch
  vit-dist data order vit-l16-jft300m data.train=s3://bucket/jft data.subset=30M seed=1 --count 10
  vit-dist data order mixed.yaml --start 1M --count 10 # photos<TAB>key, drawings<TAB>key, ...
"""


def main(argv: list[str]) -> int:
    """Print sample keys, one a line, or their digest."""
    args = _parser().parse_intermixed_args(argv)

    from vit_dist.core.progress import Progress

    parts, order = _of_recipe(args) if _is_recipe(args) else _of_manifest(args)
    mixed = isinstance(order, MixtureOrder)
    if args.epoch and mixed:
        raise ConfigError(
            f"--epoch {args.epoch}: the sets of a mixture have epochs of their own; give --start, the examples "
            "consumed since training began"
        )
    begin = (args.epoch or 0) * order.num_samples + args.start
    rest = order.num_samples if mixed else order.num_samples - args.start % order.num_samples
    wanted = args.count if args.count is not None else rest
    lines = _Lines(parts, order)
    digest = hashlib.sha256()
    with Progress("order", wanted, "key") as progress:
        for first in range(begin, begin + wanted, _CHUNK):
            positions = np.arange(first, min(first + _CHUNK, begin + wanted), dtype=np.int64)
            text = lines.at(positions)
            if args.digest:
                digest.update(text.encode())
            else:
                out(text)
            progress.advance(len(positions))
    if args.digest:
        out(f"{digest.hexdigest()}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    summary = "Print the keys of examples in the order they are trained on, one a line."
    p = parser("order", summary, _DETAILS, _EXAMPLES.strip("\n"))
    p.add_argument(
        "set",
        type=any_option,
        metavar="MANIFEST|RECIPE",
        help="URL of a manifest.json, or of the directory that holds it; or a recipe: a .yaml file, or the name of one",
    )
    p.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides of the recipe")
    p.add_argument("--subset", type=positive, metavar="N", help="the first N examples of the nested order (30k, 1.5M)")
    p.add_argument("--subset-seed", type=count, metavar="S", help="which nested family of subsets (default 0)")
    p.add_argument("--seed", type=count, metavar="N", help="the run's seed (default 0)")
    p.add_argument("--epoch", type=count, metavar="E", help="from which epoch, counted from 0 (default 0)")
    p.add_argument(
        "--start",
        type=count,
        default=0,
        metavar="P",
        help="position in the epoch; at its end or later: in the next ones (default 0)",
    )
    p.add_argument(
        "--count",
        type=count,
        metavar="K",
        help="how many (default: to the end of the epoch; of a mixture: as many as its sets hold)",
    )
    p.add_argument("--lanes", type=positive, metavar="C", help="parallel streams; default as in a recipe")
    p.add_argument("--window", type=positive, metavar="K", help="samples permuted together; default as in a recipe")
    p.add_argument("--digest", action="store_true", help="print one SHA-256 of the lines instead of them")
    return p


def _is_recipe(args: argparse.Namespace) -> bool:
    """A .yaml file, or the name of a recipe that is no path here."""
    from vit_dist.config.load import find_config

    if args.set.endswith((".yaml", ".yml")):
        return True
    if "/" in args.set or Path(args.set).exists():
        return False
    try:
        find_config(args.set, "recipes")
    except ConfigError:
        return False
    return True


def _of_recipe(args: argparse.Namespace) -> tuple[Parts, GlobalOrder | MixtureOrder]:
    from vit_dist.config.load import load_recipe
    from vit_dist.data.sets import open_training_set

    keys = {"subset": "data.subset", "subset_seed": "data.subset_seed", "seed": "seed"}
    keys |= {"lanes": "data.lanes", "window": "data.window"}
    for option, key in keys.items():
        if getattr(args, option) is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')}: {args.set} is a recipe; give {key}={getattr(args, option)}"
            )
    data = open_training_set(load_recipe(args.set, args.overrides))
    return data.parts, data.order


def _of_manifest(args: argparse.Namespace) -> tuple[Parts, GlobalOrder]:
    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.order import resolve_lanes
    from vit_dist.data.sets import Part, Parts
    from vit_dist.data.subset import select

    if args.overrides:
        raise ConfigError(
            f"{args.overrides[0]}: k=v is for a recipe, and {redact(args.set)} is neither a .yaml file nor the name of "
            "one; a manifest takes --subset, --subset-seed, --seed, --lanes and --window"
        )
    manifest = read_manifest(args.set)
    subset = select(manifest, args.subset, args.subset_seed or 0)
    lanes, window = resolve_lanes(subset.num_samples, subset.num_bytes, args.lanes, args.window)
    order = GlobalOrder(subset.counts, seed=args.seed or 0, lanes=lanes, window=window)
    return Parts([Part(manifest, subset)]), order


class _Lines:
    """Lines by position; the indexes used last are kept, up to a number of bytes."""

    def __init__(self, parts: Parts, order: GlobalOrder | MixtureOrder) -> None:
        self._parts, self._order = parts, order
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._bytes = 0

    def at(self, positions: I64) -> str:
        """int64 [n] -> n lines. Each shard's index is looked up once."""
        _, shards, samples = self._order.locate_many(positions)
        lines = [""] * len(shards)
        by_shard = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[by_shard])) + 1
        for places in np.split(by_shard, cuts) if len(shards) else []:
            shard = int(shards[places[0]])
            part, own = self._parts.find(shard)
            index, prefix = self._index(shard), f"{part.name}\t" if part.name else ""
            chosen, inside = part.subset.chosen, samples[places]
            inside = inside if chosen is None else chosen[own][inside]
            for place, sample in zip(places.tolist(), inside.tolist(), strict=True):
                lines[place] = f"{prefix}{index.key(sample)}\n"
        return "".join(lines)

    def _index(self, shard: int) -> ShardIndex:
        """Of a shard, by the order's number."""
        index = self._indexes.pop(shard, None)
        if index is None:
            part, own = self._parts.find(shard)
            index = part.manifest.read_index(int(part.subset.shards[own]))
            self._bytes += _size(index)
        self._indexes[shard] = index
        while self._bytes > _CACHED_BYTES and len(self._indexes) > 1:
            self._bytes -= _size(self._indexes.popitem(last=False)[1])
        return index


def _size(index: ShardIndex) -> int:
    return sum(array.nbytes for array in vars(index).values())
