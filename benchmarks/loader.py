"""Images a second of the training stream against other loaders, from local files, on one and on two cores.

Photographs of 500 x 375 pixels and about 100 kB, Inception crop to 224, flip, batches of 64; uint8 where a loader can.
Ours with torchvision's decoder, and with the optional one; webdataset as open_clip sets it up, ImageFolder, timm's
create_loader, DALI on the CPU, LitData, MosaicML Streaming and SPDL, each with the transform that is usual there; and
webdataset and LitData with our decoder and crop. Each loads in a process of its own, pinned to as many cores as it has
workers; they take turns, and the median of the rounds counts, with the lowest and highest. What is not installed is
left out, and said: benchmarks/peers.py has the packages.

    python -m benchmarks.loader [--images 2000] [--rounds 3] [--cores 1 2] [--only ours webdataset ...]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.peers import Batches, Place
from benchmarks.synthetic import SyntheticSet, write

BATCH, SIZE = 64, 224


def ours(place: Place, *, decoder: str) -> Iterator[Any]:
    import torch

    from vit_dist.config.load import resolve
    from vit_dist.core.world import World
    from vit_dist.data.sets import open_training_set
    from vit_dist.data.stream import TrainStream

    torch.set_num_threads(1)
    data = {"num_classes": 1000, "train": str(place.root / "tars" / "manifest.json"), "image_size": SIZE}
    recipe = resolve(
        {
            "horizon": "100 epochs",
            "global_batch": place.batch,
            "model": "ViT-B/16",
            "data": {**data, "decode_threads": place.workers, "decode_workers": 0, "decoder": decoder},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "linear", "warmup": "0 steps"},
        }
    )
    with TrainStream(open_training_set(recipe), recipe, World(), 0, reuse=True) as stream:
        for batch, _ in stream:
            yield batch.images
            batch.give_back()


REFERENCE = "webdataset as in open_clip"
CONTESTANTS: dict[str, tuple[str, Batches]] = {
    "ours": ("torchvision", functools.partial(ours, decoder="torchvision")),
    "ours, region": ("nvidia.nvimgcodec", functools.partial(ours, decoder="nvimgcodec")),
    REFERENCE: ("webdataset", peers.webdataset_pil),
    "webdataset, our decoder": ("webdataset", functools.partial(peers.webdataset_ours, region=False)),
    "webdataset, our region": ("webdataset nvidia.nvimgcodec", functools.partial(peers.webdataset_ours, region=True)),
    "ImageFolder": ("torchvision", peers.image_folder),
    "timm": ("timm", peers.timm),
    "DALI": ("nvidia.dali", peers.dali),
    "LitData": ("litdata", peers.litdata_floats),
    "LitData, our region": ("litdata nvidia.nvimgcodec", functools.partial(peers.litdata_ours, region=True)),
    "MosaicML Streaming": ("streaming", peers.streaming),
    "SPDL": ("spdl", peers.spdl),
}


def installed(modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules.split())
    except ModuleNotFoundError:
        return False


def measure(name: str, place: Place, images: int, cores: int, answer: Any) -> None:
    """In a process of its own: images a second after the first four batches."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    warnings.simplefilter("ignore")
    # Loaders like to talk.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    try:
        batches = CONTESTANTS[name][1](place)
        for _ in itertools.islice(batches, 4):
            pass
        began, count = time.perf_counter(), 0
        for batch in batches:
            count += len(batch[0]) if isinstance(batch, list | tuple) else len(batch)
            if count >= images:
                break
        answer.send(count / (time.perf_counter() - began))
    except Exception:
        answer.send(traceback.format_exc())
    # Workers and threads of others are not waited for.
    os._exit(0)


def once(name: str, place: Place, images: int, cores: int) -> float:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, place, images, cores, there))
    process.start()
    there.close()
    try:
        rate = here.recv() if here.poll(180) else f"{name}: no batch in three minutes"
    finally:
        process.kill()
        process.join()
    if not isinstance(rate, float):
        raise RuntimeError(f"{name}: {rate}")
    return rate


def prepare(root: Path, images: int) -> None:
    """The same images for all loaders."""
    (root / "tars").mkdir()
    # More than what is kept in memory whole: 256 MiB.
    shards = -(-max(images, 3000) // 500)
    data = SyntheticSet(num_shards=shards, samples_per_shard=500, photos=True)
    write(data, root / "tars")
    files = [(data.pool[i % len(data.pool)][1], i % 10) for i in range(images)]
    for number, (content, label) in enumerate(files):
        (root / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        (root / "folder" / str(label) / f"{number:06d}.jpg").write_bytes(content)
    for module, make, name in ("streaming", peers.write_mds, "mds"), ("litdata", peers.write_litdata, "litdata"):
        if installed(module):
            with contextlib.redirect_stdout(None):
                make(files, root / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="measured each time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="contestants whose names begin so")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    # Imported once, before what forks.
    import torchvision  # noqa: F401
    import webdataset  # noqa: F401

    chosen = [name for name in CONTESTANTS if name.startswith(tuple(args.only))]
    there = [name for name in chosen if installed(CONTESTANTS[name][0])]
    for name in chosen:
        if name not in there:
            print(f"not installed, left out: {name}")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args.images)
        for cores in args.cores:
            rates: dict[str, list[float]] = {name: [] for name in there}
            for _ in range(args.rounds):
                for name in list(rates):
                    try:
                        rates[name].append(once(name, Place(Path(folder), BATCH, cores), args.images, cores))
                    except RuntimeError as error:
                        print(f"left out: {error}")
                        del rates[name]
            report(cores, rates)


def report(cores: int, rates: dict[str, list[float]]) -> None:
    middle = {name: statistics.median(found) for name, found in rates.items()}
    unit = middle.get(REFERENCE)
    print(f"\n{cores} core{'s' if cores > 1 else ''}: images/s, median [lowest, highest]; over {REFERENCE}")
    for name, found in rates.items():
        over = f"{middle[name] / unit:6.2f}" if unit else ""
        print(f"  {name:28s} {middle[name]:7.0f} [{min(found):.0f}, {max(found):.0f}] {over}", flush=True)


if __name__ == "__main__":
    main()
