"""Tars of made-up photographs, and the training stream over them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.kit import Kit
from benchmarks.synthetic import SyntheticSet, write
from vit_dist.config.load import resolve
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream


def write_photos(kit: Kit, folder: str) -> str:
    """JPEGs of 500 x 375 pixels in 1000 classes, 8,000 of them; returns the path of their manifest."""
    shards, samples = (2, 50) if kit.smoke else (16, 500)
    return write(SyntheticSet(num_shards=shards, samples_per_shard=samples, photos=True), Path(folder))


def open_stream(manifest: str, batch: int, decode_threads: int) -> TrainStream:
    """Inception crops to 224 pixels and flips, as the paper's recipes have them."""
    recipe = resolve(
        {
            "horizon": "100 epochs",
            "global_batch": batch,
            "model": "ViT-B/16",
            "data": {
                "num_classes": 1000,
                "train": manifest,
                "image_size": 224,
                "decode_threads": decode_threads,
                "read_threads": 4,
            },
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "linear", "warmup": "0 steps"},
        }
    )
    return TrainStream(open_training_set(recipe), recipe, World(), 0)
