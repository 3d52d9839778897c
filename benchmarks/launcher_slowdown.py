"""What loading costs the thread that launches kernels: decode threads and decode processes, against none of ours.

A thread launches tiny operations of torch on one core, as fast as it can. All of the loader, its threads or processes
with their parent's, is on another core, decodes photographs of 500 x 375 pixels and about 100 kB at full pace, and its
batches are thrown away. What it is held to is a decoder on that core in a process of its own, which shares memory and
caches with the launching thread, and no lock. The kinds take turns; medians of the rounds count, with the lowest and
highest. The slowdown is that decoder's rate of launches over a kind's, less one: what Python's lock costs.

Then the CPU time of the training process but for its launching thread, an image: of threads that is their decoding too;
of processes, all that a rank does for an image.

It needs two cores on which nothing else runs; the load of the machine is printed.

    python -m benchmarks.launcher_slowdown [--seconds 5] [--rounds 7] [--kinds quiet,decoder,threads,processes]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.synthetic import SyntheticSet, pool_of_photos, write
from vit_dist.config.load import resolve
from vit_dist.core.world import World
from vit_dist.data.decode import decode
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

BATCH, SIZE = 64, 224
KINDS = ("quiet", "decoder", "threads", "processes")


@dataclass
class Measured:
    """Rounds of one kind."""

    launches: list[float] = field(default_factory=list)
    images: list[float] = field(default_factory=list)
    micros: list[float] = field(default_factory=list)


class Loader:
    """A stream whose batches are thrown away, all of it on one core."""

    def __init__(self, manifest: str, core: int, workers: int) -> None:
        self.images = 0
        self._over, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._read, args=(manifest, core, workers))
        self._thread.start()
        self._begun.wait()

    def _read(self, manifest: str, core: int, workers: int) -> None:
        # Of this thread, and of all that it starts.
        os.sched_setaffinity(0, {core})
        recipe = resolve(
            {
                "horizon": "1000 epochs",
                "global_batch": BATCH,
                "model": "ViT-B/16",
                "data": {
                    "num_classes": 1000,
                    "train": manifest,
                    "image_size": SIZE,
                    "lanes": 16,
                    "decode_threads": 1,
                    "decode_workers": workers,
                },
                "optim": {"name": "adamw", "lr": 1e-3},
                "schedule": {"name": "linear", "warmup": "0 steps"},
            }
        )
        with TrainStream(open_training_set(recipe), recipe, World(), 0, reuse=True, at_once=bool(workers)) as stream:
            for number, (batch, _) in enumerate(stream):
                self.images += len(batch.images)
                batch.give_back()
                if number == 2:
                    self._begun.set()
                if self._over.is_set():
                    return

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def other_decoder(core: int) -> Iterator[None]:
    """A process that decodes on a core, and shares nothing with this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.launcher_slowdown", "--decode-on", str(core)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def decode_on(core: int) -> None:
    """Decode until killed."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    files = [content for _, content in pool_of_photos(64)]
    print("begun", flush=True)
    while True:
        for content in files:
            decode(content)


def launch(seconds: float) -> tuple[float, float]:
    """Launch tiny operations for a while. -> how many a second, and the CPU time of this thread."""
    x, count = torch.zeros(4), 0
    began, spent = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < seconds:
        for _ in range(100):
            x.add_(1.0)
        count += 100
    return count / (time.perf_counter() - began), time.thread_time() - spent


def measure(kind: str, manifest: str, core: int, seconds: float, into: Measured) -> None:
    """One round."""
    if kind in ("quiet", "decoder"):
        if kind == "quiet":
            into.launches.append(launch(seconds)[0])
            return
        with other_decoder(core):
            into.launches.append(launch(seconds)[0])
        return
    loader = Loader(manifest, core, int(kind == "processes"))
    try:
        images, began, wall = loader.images, time.process_time(), time.perf_counter()
        rate, own = launch(seconds)
        images = loader.images - images
        into.launches.append(rate)
        into.images.append(images / (time.perf_counter() - wall))
        into.micros.append((time.process_time() - began - own) / max(1, images) * 1e6)
    finally:
        loader.close()


def spread(values: list[float], form: str) -> str:
    """Median, lowest and highest."""
    middle, low, high = (format(v, form) for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="a round of a kind")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which; those of: %(default)s")
    parser.add_argument("--decode-on", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode_on is not None:
        decode_on(args.decode_on)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one launches, the other loads")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kinds = [kind for kind in KINDS if kind in args.kinds.split(",")]
    found: dict[str, Measured] = {kind: Measured() for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write(SyntheticSet(num_shards=8, samples_per_shard=400, photos=True), Path(folder))
        os.sched_setaffinity(0, {cores[0]})
        for _ in range(args.rounds):
            for kind in kinds:
                measure(kind, manifest, cores[-1], args.seconds, found[kind])
    print(f"load of the machine {os.getloadavg()[0]:.1f}; median (lowest to highest)")
    report(found)


def report(found: dict[str, Measured]) -> None:
    """A line a kind, and the slowdowns."""
    for kind, measured in found.items():
        line = f"  {kind:<10} {spread([1e6 / rate for rate in measured.launches], '.2f')} us a launch"
        if measured.images:
            line += (
                f"; {spread(measured.images, '.0f')} images/s; "
                f"{spread(measured.micros, '.1f')} us of CPU an image in the training process"
            )
        print(line)
    for kind in ("threads", "processes"):
        if kind in found and "decoder" in found:
            pairs = zip(found["decoder"].launches, found[kind].launches, strict=True)
            print(f"  slowdown by {kind:<10} {spread([100 * (other / own - 1) for other, own in pairs], '.1f')} %")


if __name__ == "__main__":
    main()
