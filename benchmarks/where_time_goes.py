"""From byte to batch, stage by stage: microseconds of CPU that one image takes in each, on one thread.

Photographs of 500 x 375 pixels and about 100 kB in local tars (read from the page cache), Inception crop to 224, flip.
Each stage is what the stream itself calls. They take turns over the same images; the median of the rounds counts, with
the lowest and highest. One line more says what is left to the rank where processes decode (eight of them, batches of
64), without the system's part of a message; `benchmarks.launcher_slowdown` measures that with it.

    python -m benchmarks.where_time_goes [--images 256] [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import SyntheticSet, write
from vit_dist.config.load import resolve
from vit_dist.data.augment import Augment
from vit_dist.data.batch import Batch, Sample
from vit_dist.data.decode import decode
from vit_dist.data.decode_worker import Done, Task
from vit_dist.data.images import check_jpeg
from vit_dist.data.pace import Interval
from vit_dist.data.ring import Buffers
from vit_dist.data.segments import SegmentReader
from vit_dist.data.sets import open_training_set

BATCH, SIZE, PROCESSES = 64, 224, 8


class Stages:
    """CPU time of each stage of a round, in the order in which they are first met."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent = self.rounds[-1]
        spent[name] = spent.get(name, 0.0) + time.process_time() - began


def recipe_of(manifest: str) -> Any:
    return resolve(
        {
            "horizon": "100 epochs",
            "global_batch": BATCH,
            "model": "ViT-B/16",
            "data": {"num_classes": 1000, "train": manifest, "image_size": SIZE, "lanes": 16},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "linear", "warmup": "0 steps"},
        }
    )


def one_round(stages: Stages, data: Any, augment: Augment, begin: int, images: int) -> None:
    """All stages, each over all images before the next."""
    stages.rounds.append({})
    stage, order = stages.stage, data.order
    reader = SegmentReader(data.parts, 1, lambda: 64)
    windows: dict[Any, Any] = {}
    with stage("plan: which sample"):
        places = [order.place(position) for position in range(begin, begin + images)]
    with stage("read: ranges of the tars, and indexes"):
        for window, _ in places:
            if window not in windows:
                segments = order.window_segments(window)
                windows[window] = (segments, [reader.read(segment).result() for segment in segments])
    found = []
    with stage("index: key, labels, bytes"):
        for window, slot in places:
            for segment, piece in zip(*windows[window], strict=True):
                if slot < segment.length:
                    sample = int(piece.samples[slot])
                    piece.index.sample_labels(sample)
                    found.append((piece, sample, piece.index.key(sample), piece.image(sample)))
                    break
                slot -= segment.length
    # Windows are read whole, and what is left of them is for later batches.
    shares = {"read: ranges of the tars, and indexes": images / sum(order.window_line(w)[1] for w in windows)}
    with stage("headers: is it what the index says"):
        for piece, sample, key, _ in found:
            assert not piece.difference(sample, key)
    with stage("decode: check the header"):
        for *_, content in found:
            check_jpeg(bytearray(content))
    with stage("decode: all, header included"):
        pixels = [decode(content) for *_, content in found]
    stages.rounds[-1]["decode: the rest"] = (
        stages.rounds[-1].pop("decode: all, header included") - stages.rounds[-1]["decode: check the header"]
    )
    with stage("view: draw the crop"):
        draws = [augment.draw(*image.shape[1:], epoch=0, ordinal=i) for i, image in enumerate(pixels)]
    with stage("view: crop, resize, flip"):
        views = [augment.render(image, draw) for image, draw in zip(pixels, draws, strict=True)]
    buffers = Buffers.make(images, SIZE, 1)
    # Batches go round: the first touch of their pages is no part of a step.
    buffers.images.zero_()
    with stage("copy: into the batch"):
        for row, view in enumerate(views):
            buffers.images[row].copy_(view)
    with stage("collate: labels and what is told of the batch"):
        batch = Batch.blank(range(begin, begin + images), buffers, None)
        for row, (piece, sample, key, _) in enumerate(found):
            labels, weights = piece.index.sample_labels(sample)
            batch.labels[row, : len(labels)] = torch.from_numpy(labels)
            batch.weights[row, : len(labels)] = torch.from_numpy(weights)
            batch.samples[row] = Sample(key, "", sample, 0, begin + row)
            batch.ordinals[row] = sample
    reader.close()
    for name, share in shares.items():
        stages.rounds[-1][name] *= share


def messages(stages: Stages, begin: int, images: int) -> None:
    """What a rank does for a batch that processes decode: both ways, without the system's part of it."""
    name = "the rank, where processes decode: messages and what is told of the batch"
    with stages.stage(name):
        for first in range(0, images, BATCH):
            samples: list[Sample] = [Sample("", "", -1, -1, -1)] * BATCH
            for process in range(PROCESSES):
                rows = list(range(process, BATCH, PROCESSES))
                task = pickle.dumps(Task(first, 0, rows, [begin + row for row in rows]))
                told = [(f"{row:012d}", "", row, 0, begin + row) for row in rows]
                done: Done = pickle.loads(pickle.dumps(Done(first, told, [], None, Interval())))
                for row, sample in zip(rows, done.samples, strict=True):
                    samples[row] = Sample(*sample)
                assert task
            torch.tensor([sample.ordinal for sample in samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="a round, in whole batches of 64")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    images = max(1, args.images // BATCH) * BATCH
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        synthetic = SyntheticSet(num_shards=8, samples_per_shard=400, photos=True)
        recipe = recipe_of(write(synthetic, Path(folder)))
        data = open_training_set(recipe)
        augment = Augment.of(recipe.data, 0)
        # The first round is a rehearsal.
        for number in range(args.rounds + 1):
            one_round(stages, data, augment, number * images, images)
            messages(stages, number * images, images)
    print(f"load of the machine {os.getloadavg()[0]:.1f}; CPU microseconds an image: median (lowest to highest), share")
    report(stages, lambda name: not name.startswith("the rank"), images)


def report(stages: Stages, is_stage: Callable[[str], bool], images: int) -> None:
    """A line a stage."""
    found = {name: sorted(spent[name] / images * 1e6 for spent in stages.rounds[1:]) for name in stages.rounds[0]}
    total = sum(statistics.median(times) for name, times in found.items() if is_stage(name))
    for name, times in found.items():
        middle = statistics.median(times)
        share = f"{middle / total:7.1%}" if is_stage(name) else ""
        print(f"  {name:<74}{middle:9.1f} ({times[0]:.1f} to {times[-1]:.1f}){share}")
    print(f"  {'all stages':<74}{total:9.1f}")


if __name__ == "__main__":
    main()
