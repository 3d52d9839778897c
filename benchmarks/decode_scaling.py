"""How the stream scales from 1 to 16 decoders, where each waits without Python's lock for as long as decoding takes.

So two cores show what sixteen would: a view that sleeps `--ms` stands for the decoder, and all the rest (order, reads,
messages, batches) is real. By threads and by processes; images a second over those of one decoder, and over what the
sleeps alone would allow. Aim: at least 0.9 of linear at 16. A round takes a minute, by threads and by processes each.

    python -m benchmarks.decode_scaling [--ms 20] [--batches 12] [--rounds 3] [--kinds processes]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.synthetic import SyntheticSet, write
from vit_dist.config.load import resolve
from vit_dist.data.decode import Encoded
from vit_dist.data.decode_pool import Processes
from vit_dist.data.reader import Reader
from vit_dist.data.rows import RowsOf, Stages
from vit_dist.data.sets import open_training_set

BATCH, SIZE, LANES = 128, 32, 64
KINDS = ("threads", "processes")


@dataclass(frozen=True)
class Sleeps:
    """A decoder that takes so many seconds, and no core."""

    seconds: float

    def __call__(self, _image: Encoded, _epoch: int, _ordinal: int) -> Stages:
        yield 1
        time.sleep(self.seconds)
        return torch.zeros((3, SIZE, SIZE), dtype=torch.uint8)


def rate(manifest: str, decoders: int, seconds: float, batches: int, *, processes: bool) -> float:
    """Images a second, after the batches that were begun while the decoders started."""
    recipe = resolve(
        {
            "horizon": "100 epochs",
            "global_batch": BATCH,
            "model": "ViT-B/16",
            "data": {
                "num_classes": 1000,
                "train": manifest,
                "image_size": SIZE,
                "lanes": LANES,
                "decode_threads": 1 if processes else decoders,
                "decode_workers": decoders if processes else 0,
            },
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "linear", "warmup": "0 steps"},
        },
        ["data.image_size=32", "model.patch_size=8"],
    )
    data = open_training_set(recipe)
    rows = RowsOf(data.parts, data.order, Sleeps(seconds), recipe.data, whole_shards=False)
    positions = (range(begin, begin + BATCH) for begin in itertools.count(0, BATCH))
    pool = Processes(decoders, BATCH, data.order.lanes_of, LANES, at_once=True) if processes else None
    reader = Reader(rows, positions, reuse=True, processes=pool)
    try:
        # Those that were made ready while the decoders were started and nobody took any.
        for _ in range(recipe.data.prefetch_batches + 2):
            taken = reader.next()
            assert taken is not None
            taken.give_back()
        began = time.perf_counter()
        for _ in range(batches):
            taken = reader.next()
            assert taken is not None
            taken.give_back()
        return batches * BATCH / (time.perf_counter() - began)
    finally:
        reader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ms", type=float, default=20.0, help="that decoding an image takes")
    parser.add_argument("--batches", type=int, default=12, help=f"of {BATCH}, measured each time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decoders", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    args = parser.parse_args()
    seconds = args.ms / 1000
    with tempfile.TemporaryDirectory() as folder:
        manifest = write(SyntheticSet(40, 1000, image_size=SIZE), Path(folder))
        for kind in args.kinds:
            print(f"{kind}: images/s, over one decoder's, of linear, over the limit of {args.ms:g} ms an image")
            alone = 0.0
            for decoders in args.decoders:
                # So long for one decoder as for sixteen.
                batches = max(2, args.batches * decoders // max(args.decoders))
                found = [
                    rate(manifest, decoders, seconds, batches, processes=kind == "processes")
                    for _ in range(args.rounds)
                ]
                middle = statistics.median(found)
                alone = alone or middle / decoders
                spread = f"[{min(found):.0f}, {max(found):.0f}]"
                limit = middle * seconds / decoders
                speed = middle / alone
                print(
                    f"  {decoders:3d} {middle:8.0f} {spread:14s} {speed:6.2f} {speed / decoders:6.3f} {limit:6.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    # By its name: decode processes import the view from there.
    from benchmarks import decode_scaling

    decode_scaling.main()
