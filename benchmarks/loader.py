"""Images a second of the training stream against webdataset's WebLoader: the same tars, transform and two threads.

Photographs of 500 x 375 pixels, Inception crop to 224, flip; uint8 batches of 64. webdataset gets two workers and
torchvision's transforms on uint8; the stream two decode threads. Runs take turns; the best of each counts.

    python -m benchmarks.loader [--images 2000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset
from torchvision.transforms import v2

from benchmarks.synthetic import SyntheticSet, write
from vit_dist.config.load import resolve
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

BATCH, SIZE = 64, 224


def ours(manifest: str) -> Iterator[Any]:
    recipe = resolve(
        {
            "horizon": "100 epochs",
            "global_batch": BATCH,
            "model": "ViT-B/16",
            "data": {"num_classes": 1000, "train": manifest, "image_size": SIZE, "decode_threads": 2},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "linear", "warmup": "0 steps"},
        }
    )
    with TrainStream(open_training_set(recipe), recipe, World(), 0) as stream:
        for batch, _ in stream:
            yield batch.images


class Transform:
    """Bytes of a JPEG -> uint8 [3, 224, 224]."""

    def __init__(self) -> None:
        self._views = v2.Compose(
            [v2.RandomResizedCrop(SIZE, (0.05, 1.0), antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )

    def __call__(self, image: Any) -> torch.Tensor:
        return self._views(image)


def theirs(manifest: str) -> Iterator[Any]:
    urls = [str(path) for path in sorted(Path(manifest).parent.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(urls, resampled=True, shardshuffle=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(Transform())
        .batched(BATCH)
    )
    for images, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=2):
        yield images


def rate(batches: Iterator[Any], images: int) -> float:
    """Images a second after the first four batches."""
    for _ in itertools.islice(batches, 4):
        pass
    began, count = time.perf_counter(), 0
    for batch in batches:
        assert batch.shape == (BATCH, 3, SIZE, SIZE)
        count += len(batch)
        if count >= images:
            break
    spent = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    return count / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="to measure over, each round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        data = SyntheticSet(num_shards=8, samples_per_shard=400, photos=True)
        manifest = write(data, Path(folder))
        size = sum(len(content) for _, content in data.pool) / len(data.pool)
        print(f"{data.num_shards * data.samples_per_shard} JPEGs of 500 x 375, mean {size / 1e3:.0f} kB")
        best: dict[str, float] = {}
        for _ in range(args.rounds):
            for name, make in ("stream, 2 threads", ours), ("webdataset, 2 workers", theirs):
                best[name] = max(best.get(name, 0.0), rate(make(manifest), args.images))
        load = os.getloadavg()[0]
        for name, images in best.items():
            print(f"  {name:<24}{images:8.0f} images/s")
        print(
            f"  ratio {best['stream, 2 threads'] / best['webdataset, 2 workers']:.2f} (load of the machine {load:.1f})"
        )


if __name__ == "__main__":
    main()
