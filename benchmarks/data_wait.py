"""How long training waits for data where the loader alone is twice as fast as the step: aim under 2% of its time.

The real loop (train/loop.py: micro-batches, agreements, logs every ten steps, two evaluations, two checkpoints) trains
a small ViT from tars of photographs of 500 x 375 pixels and about 100 kB: on the local disk, over HTTP with 50 ms to
the first byte, and from a real S3 server on this machine. Ends of shards and windows are met; of epochs, where the set
is gone through in time (3,200 photographs).

One core trains and another loads: all of the stream, its threads or its processes, and the server. First the loader
runs alone; then each step is held up, without Python's lock, until it has taken `--ratio` times as long as the loader
took for a batch, as a GPU would hold it up. So the two do not contend for a core, as they would not beside a GPU; what
is left of contention (Python's lock with decode threads, caches) makes a step longer, and is shown by the last column.

With `--sleep-ms` a view that sleeps so long stands for the decoder, and takes no core: for more decoders than there are
cores, and for a machine that others use. All the rest is real.

Told for each case: the loop's own figure (`train/data_wait`, over the logs); the same by a clock around the stream,
outside of the loop; the longest wait; and the time of a step, without evaluations and saves, over what it was held to.

    python -m benchmarks.data_wait [--seconds 20] [--stores local http s3] [--decode threads processes] [--ratio 2]
                                   [--sleep-ms 20 --decoders 4]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.synthetic import SyntheticSet, served, write

BATCH, SIZE = 32, 224
GOAL = 0.02
FIRST_BYTE_S = 0.05
STORES, KINDS = ("local", "http", "s3"), ("threads", "processes")
_LOADS_S = 5.0
_RECIPE = """
name: data-wait
global_batch: {batch}
horizon: {steps} steps
precision: fp32
model: {{name: vit, patch_size: 32, width: 32, depth: 2, num_heads: 2}}
data:
  num_classes: 1000
  train: {train}
  val: {val}
  image_size: {size}
  decode_threads: {decoders}
  decode_workers: {workers}
optim: {{name: adamw, lr: 1e-4}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: plain}}
log: {{every: 10 steps}}
eval: {{every: {half} steps}}
checkpoint: {{every: {half} steps, probe: 0}}
"""


class Watched:
    """In place of the loop's stream: the same, on a core of its own, with a clock around it.

    Attributes:
        asked: when the loop asked for each batch, and had it.
        apart: seconds of evaluations and saves; `apart_before`: those before the last batch.
    """

    def __init__(self, trains: int, loads: int) -> None:
        self._trains, self._loads = trains, loads
        self.asked: list[tuple[float, float]] = []
        self.apart = self.apart_before = 0.0

    def open(self, *args: Any, **options: Any) -> Watched:
        """Called as TrainStream is."""
        from vit_dist.data.stream import TrainStream

        # Threads and processes have the CPUs of the thread that begins them.
        os.sched_setaffinity(0, {self._loads})
        try:
            self._stream = TrainStream(*args, **options)
        finally:
            os.sched_setaffinity(0, {self._trains})
        self.pace = self._stream.pace
        return self

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._stream)
        while True:
            asked = time.perf_counter()
            batch = next(batches)
            self.asked.append((asked, time.perf_counter()))
            self.apart_before = self.apart
            yield batch

    def counted_apart(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time is not training's."""

        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.apart += time.perf_counter() - began

        return timed


def sleeps(seconds: float, *_: Any) -> Any:
    """A view that takes so long, and no core."""
    import torch

    yield 1
    time.sleep(seconds)
    return torch.zeros((3, SIZE, SIZE), dtype=torch.uint8)


def recipe_of(args: argparse.Namespace, steps: int) -> Any:
    from vit_dist.config.load import load_recipe

    text = _RECIPE.format(
        batch=BATCH,
        steps=steps,
        half=max(1, steps // 2),
        train=args.train,
        val=args.val,
        size=SIZE,
        # Threads are there in both kinds: they make the first batches.
        decoders=args.decoders,
        workers=args.decoders if args.here == "processes" else 0,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.yaml").write_text(text)
        return load_recipe(f"{folder}/recipe.yaml", [])


def loader_alone(args: argparse.Namespace, watched: Watched) -> float:
    """Seconds that the loader takes for a batch when nobody else is at work."""
    from vit_dist.core.world import World
    from vit_dist.data.sets import open_training_set

    recipe = recipe_of(args, 1000)
    with watched.open(open_training_set(recipe), recipe, World(), 0, reuse=True, at_once=True) as stream:
        batches = iter(stream)
        for batch, _ in itertools.islice(batches, recipe.data.prefetch_batches + 2):
            batch.give_back()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < _LOADS_S:
            next(batches)[0].give_back()
            count += 1
        return (time.perf_counter() - began) / count


def held_up(queue: Callable[..., Any], step_s: float) -> Callable[..., Any]:
    """The loop's step, which takes so long, and no core for what is left of it."""

    def step(*args: Any) -> Any:
        began = time.perf_counter()
        queued = queue(*args)
        time.sleep(max(0.0, step_s - (time.perf_counter() - began)))
        return queued

    return step


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One case, in this process."""
    import torch

    from tests.s3_server import free_ports
    from vit_dist.core.events.reader import read_run
    from vit_dist.core.world import World
    from vit_dist.data import stream
    from vit_dist.train import loop
    from vit_dist.train.attempt import attempt

    trains, loads = args.cores
    os.sched_setaffinity(0, {trains})
    torch.set_num_threads(1)
    if args.sleep_ms is not None:
        # By the name under which decode processes find it.
        from benchmarks import data_wait

        stream._augmented = functools.partial(data_wait.sleeps, args.sleep_ms / 1e3)  # type: ignore[assignment]
    batch_s = loader_alone(args, Watched(trains, loads))
    step_s = args.ratio * batch_s
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    watched, run = Watched(trains, loads), Path(args.answer).with_suffix(".run")
    loop.TrainStream = watched.open  # type: ignore[assignment, misc]
    loop._queue = held_up(loop._queue, step_s)
    loop._evaluate, loop.save = watched.counted_apart(loop._evaluate), watched.counted_apart(loop.save)
    began = time.perf_counter()
    attempt(recipe_of(args, 10 * max(2, round(args.seconds / step_s / 10))), run, World())
    # The attempt's first step is no part of what the loop reports.
    waits = [got - asked for asked, got in watched.asked][1:]
    training_s = watched.asked[-1][1] - watched.asked[1][0] - watched.apart_before
    logged = read_run(f"{run}/tb", ["train/*"]).scalars
    by_loop, rates = logged["train/data_wait"].values, logged["train/examples_per_s"].values
    return {
        "load_ms": batch_s * 1e3,
        "step_ms": step_s * 1e3,
        "steps": len(waits),
        # Of logs as far apart in steps, weighed by how long those took.
        "by_loop": float(sum(by_loop / rates) / sum(1 / rates)),
        "outside": sum(waits) / training_s,
        "longest_ms": max(waits) * 1e3,
        "longest_at": waits.index(max(waits)) + 2,
        "period": training_s / len(waits) / step_s,
        "all_s": time.perf_counter() - began,
        "logs": [round(float(value), 4) for value in by_loop],
    }


@contextlib.contextmanager
def stored(store: str, data: SyntheticSet, folder: Path) -> Iterator[str]:
    """URL or path of the manifest of the set at a kind of store."""
    if store == "local":
        yield str(folder / "manifest.json")
    elif store == "http":
        with served(data, first_byte_s=FIRST_BYTE_S) as url:
            yield f"{url}/manifest.json"
    else:
        from tests.s3_server import running_s3
        from vit_dist.core.files import file_system

        with tempfile.TemporaryDirectory() as scratch, running_s3(Path(scratch)) as bucket:
            files, _ = file_system(bucket)
            for path in sorted(folder.iterdir()):
                files.put_file(str(path), f"{bucket.removeprefix('s3://')}/set/{path.name}")
            yield f"{bucket}/set/manifest.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training, a case")
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--decode", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--ratio", type=float, default=2.0, help="time of a step over the loader's of its batch")
    parser.add_argument("--sleep-ms", type=float, help="of an image, in place of decoding it")
    parser.add_argument("--decoders", type=int, default=1, help="threads or processes; more than one need --sleep-ms")
    for hidden in ("--here", "--train", "--val", "--answer"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--cores", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        Path(args.answer).write_text(json.dumps(measure(args)))
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one trains, the other loads")
    # Servers, which are begun from here, are on the core that loads.
    os.sched_setaffinity(0, {cores[-1]})
    print(f"load of the machine {os.getloadavg()[0]:.1f}; aim: waiting under {GOAL:.0%} of the time")
    print(f"{'':18} {'batch, ms':>9} {'step, ms':>9} {'steps':>5} {'waits: loop':>11} {'clock':>7}", end=" ")
    print(f"{'longest, ms (step)':>18} {'step over its due':>17}", flush=True)
    data, held = SyntheticSet(8, 400, photos=True), SyntheticSet(1, 64, photos=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, small = Path(scratch) / "train", Path(scratch) / "val"
        folder.mkdir()
        small.mkdir()
        write(data, folder)
        for store in args.stores:
            with stored(store, data, folder) as train:
                for kind in args.decode:
                    options = ["--train", train, "--val", write(held, small), "--answer", f"{scratch}/{store}-{kind}"]
                    found = of_case(kind, [*options, "--cores", str(cores[0]), str(cores[-1])], args)
                    print(
                        f"{store + ', ' + kind:18} {found['load_ms']:9.1f} {found['step_ms']:9.1f} "
                        f"{found['steps']:5d} {found['by_loop']:11.2%} {found['outside']:7.2%} "
                        f"{found['longest_ms']:11.1f} ({found['longest_at']:4d}) {found['period']:17.3f}",
                        flush=True,
                    )


def of_case(kind: str, options: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own found: torch and the stream begin anew."""
    more = ["--seconds", str(args.seconds), "--ratio", str(args.ratio), "--decoders", str(args.decoders)]
    more += [] if args.sleep_ms is None else ["--sleep-ms", str(args.sleep_ms)]
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_wait", "--here", kind, *options, *more],
        check=False,
        stdout=None if os.environ.get("SHOW_LOG") else subprocess.DEVNULL,
        stderr=None if os.environ.get("SHOW_LOG") else subprocess.PIPE,
        text=True,
    )
    if said.returncode:
        sys.exit(f"training ended with status {said.returncode}:\n{(said.stderr or '')[-2000:]}")
    found: dict[str, Any] = json.loads(Path(options[options.index("--answer") + 1]).read_text())
    return found


if __name__ == "__main__":
    main()
