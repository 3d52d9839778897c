"""Images a second of the training stream, and what decoding does to the training steps of the same process."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.gpu.engines import LR, PLAIN, build_engine, make_batch, one_rank
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.photos import open_stream, write_photos


def measure(kit: Kit) -> None:
    """The stream alone, then steps beside it."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_photos(kit, folder)
        _rates(kit, manifest)
        _interference(kit, manifest)


def _rates(kit: Kit, manifest: str) -> None:
    """By decode threads, each alone; and once with a team of OpenMP in each, as torch has it by default."""
    cpus = os.cpu_count() or 1
    batch, seconds, warm = (16, 0.5, 1) if kit.smoke else (128, 3, 6)
    settings = [(1, 1), (2, cpus)] if kit.smoke else [(2, 1), (4, 1), (8, 1), (12, 1), (16, 1), (12, cpus)]
    for decoders, team in settings:
        torch.set_num_threads(team)
        with open_stream(manifest, batch, decoders) as stream:
            batches = iter(stream)
            for _ in itertools.islice(batches, warm):
                pass
            began, images = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                images += len(next(batches)[0].images)
            rate = images / (time.perf_counter() - began)
        kit.record(f"{decoders} decode threads, OpenMP {team}", images_per_s=rate)
    torch.set_num_threads(1)


def _interference(kit: Kit, manifest: str) -> None:
    """Steps on a batch that lies on the device, while the stream is idle and while it runs as fast as it can."""
    model, size, counts = ("vit-test", 28, (4,)) if kit.smoke else ("ViT-L/16", 224, (8, 64))
    calls = 2 if kit.smoke else 10
    with one_rank():
        for count in counts:
            engine = build_engine(kit, model, PLAIN, micro_batch=count, image_size=size)
            batch = make_batch(kit, count, size)

            def step(engine: object = engine, batch: object = batch) -> None:
                engine.train_step([batch], LR)  # type: ignore[attr-defined]

            kit.seconds(step, 2)
            idle = kit.best(step, calls)
            with _decoding(manifest, *((16, 2) if kit.smoke else (128, 12))):
                busy = kit.best(step, calls)
            kit.record(f"{model}, {count} images", idle_ms=1e3 * idle, decoding_ms=1e3 * busy, slower=busy / idle)


@contextlib.contextmanager
def _decoding(manifest: str, batch: int, decoders: int) -> Iterator[None]:
    """A thread takes batches as fast as other threads decode them; raises what went wrong in it."""
    stop = threading.Event()

    def drain() -> None:
        for _ in batches:
            if stop.is_set():
                break

    with open_stream(manifest, batch, decoders) as stream, ThreadPoolExecutor(1) as thread:
        batches = iter(stream)
        next(batches)
        drained = thread.submit(drain)
        try:
            yield
        finally:
            stop.set()
        drained.result()
