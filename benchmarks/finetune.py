"""Fine-tuning against training from scratch on the same few images: is pretraining worth anything here?

python -m benchmarks.finetune [--seeds 3] [--steps 120] [--shots 20] [--keep DIR]

A small ViT is pretrained on five classes of Fashion-MNIST (4,000 images of configs/data/fashion-mnist-mini), then goes
over to the other five, of which it gets a few images. Both sides train equally long with equal trials: four learning
rates each, chosen by `vit-dist finetune` on a fifth of the few images, the best then on all of them; three seeds, which
draw other images too. From scratch the weights begin from the seed, and AdamW takes the place of SGD, which suits a
ViT from scratch better. The table says which side won, whichever it is; intervals are those of Student's t, 95%.
Pretrained weights that somebody has published are none in it. In fp32 on one process; some minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_IMAGES = Path(__file__).parent.parent / "configs" / "data" / "fashion-mnist-mini"
_BEFORE, _AFTER = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5% quantile of Student's t, by the number of values that a mean is of."""

_COMMON = ["engine={name: plain}", "precision=fp32", "data.image_size=28", "guards.hang=0s", "log.every=40 steps"]
_SIDES = {
    "fine-tuned, SGD": ["finetune.lrs=[0.01, 0.03, 0.1, 0.3]"],
    "from scratch, AdamW": [
        "finetune.lrs=[0.0003, 0.001, 0.003, 0.01]",
        "optim={name: adamw, lr: 0.001, weight_decay: 0.05}",
        "model=vit-demo",
    ],
    "from scratch, SGD": ["finetune.lrs=[0.01, 0.03, 0.1, 0.3]", "model=vit-demo"],
}


def _idx(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    content = gzip.decompress((_IMAGES / name).read_bytes())
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _write_idx(path: Path, array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), mtime=0))


def pack(classes: tuple[int, ...], folder: Path) -> None:
    """Train and val of these classes as sets of their own, whose labels count from 0."""
    from vit_dist.cli.data import main as data

    images = folder / "idx"
    images.mkdir(parents=True)
    for split in ("train", "t10k"):
        labels = _idx(f"{split}-labels-idx1-ubyte.gz")
        chosen = np.isin(labels, classes)
        _write_idx(images / f"{split}-images-idx3-ubyte.gz", _idx(f"{split}-images-idx3-ubyte.gz")[chosen])
        renumbered = np.searchsorted(np.array(classes), labels[chosen]).astype(np.uint8)
        _write_idx(images / f"{split}-labels-idx1-ubyte.gz", renumbered)
    for split, name in (("train", "train"), ("test", "val")):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            # Small shards: the few images of each seed are the first of another one.
            data(["pack", str(images), str(folder / name), "--split-name", split, "--samples-per-shard", "400"])


def _train_here(recipe: Any, run_dir: Path) -> int:
    from vit_dist.core.errors import VitDistError
    from vit_dist.core.world import World
    from vit_dist.train.attempt import attempt

    try:
        attempt(recipe, run_dir, World())
    except VitDistError as error:
        print(f"{run_dir}: {error}", file=sys.stderr)
        return 1
    return 0


def tuned(side: str, weights: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Top-1 on the test images of the new classes, and how long it took."""
    from vit_dist.cli.finetune import finetune_recipe
    from vit_dist.cli.finetune.here import advance_here
    from vit_dist.study.finetune import FINAL, Finetuning, values_of

    few = args.shots * len(_AFTER)
    words = [*_COMMON, f"seed={seed}", f"data.subset={few}", f"data.subset_seed={seed + 1}", "data.augment=flip"]
    words += ["global_batch=50", f"horizon={args.steps} steps", "schedule.warmup=20 steps", "finetune.held_out=20%"]
    words += [f"checkpoint.every={args.steps} steps", "eval.batch=500", *_SIDES[side]]
    began = time.perf_counter()
    source = weights if side.startswith("fine-tuned") else "none"
    recipe = finetune_recipe("finetune", source, str(folder / "after"), words)
    tuning = Finetuning(recipe, folder / f"{side.replace(' ', '-')}-{seed}")
    with contextlib.redirect_stdout(io.StringIO()):
        advance_here(tuning, attempt=_train_here)
    final = tuning.directory / FINAL
    lr = _chosen(final)
    values = values_of(final, recipe)
    return {"top1": values["val/top1"], "lr": lr, "seconds": time.perf_counter() - began}


def _chosen(final: Path) -> float:
    from vit_dist.config.load import load_recipe

    finetune = load_recipe(str(final / "recipe.yaml")).finetune
    assert finetune is not None
    assert finetune.chosen is not None
    return finetune.chosen.best


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95% interval, in percent."""
    mean = statistics.mean(values)
    if len(values) not in _STUDENT:
        return f"{100 * mean:.1f}"
    half = _STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Pretrain, then both sides seed by seed; prints a table."""
    from vit_dist.config.load import load_recipe

    pack(_BEFORE, folder / "before")
    pack(_AFTER, folder / "after")
    began = time.perf_counter()
    words = [*_COMMON, f"data.train={folder}/before/train", f"data.val={folder}/before/val", "data.num_classes=5"]
    words += [f"horizon={args.pretrain} examples", "eval.every=0 steps", "checkpoint.every=20k examples"]
    pretraining = load_recipe("demo", [*words, "data.augment=flip"])
    if _train_here(pretraining, folder / "pretraining"):
        sys.exit("the pretraining failed")
    spent = time.perf_counter() - began
    print(f"pretrained on 5 classes, {args.pretrain:,} examples, in {spent:.0f} s", flush=True)
    print(f"then {args.shots} images of each of 5 others, {args.steps} steps of 50, 4 rates and a last run a side")
    print(f"{'side':22} {'top-1, %':14} {'each seed':22} {'rates':22} {'s a seed':>8}")
    found: dict[str, list[dict[str, float]]] = {}
    for side in _SIDES:
        found[side] = [tuned(side, str(folder / "pretraining"), folder, seed, args) for seed in range(args.seeds)]
        top1 = [one["top1"] for one in found[side]]
        each, rates = (
            " ".join(f"{v:.3g}" for v in row) for row in ([100 * t for t in top1], [o["lr"] for o in found[side]])
        )
        spent = statistics.mean(one["seconds"] for one in found[side])
        print(f"{side:22} {interval(top1):14} {each:22} {rates:22} {spent:8.0f}", flush=True)
    first = found["fine-tuned, SGD"]
    for side in list(_SIDES)[1:]:
        gained = [a["top1"] - b["top1"] for a, b in zip(first, found[side], strict=True)]
        print(f"fine-tuned less {side}: {interval(gained)} points, seed by seed")


def main() -> int:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--steps", type=int, default=120, help="of each run on the few images (default 120)")
    parser.add_argument("--shots", type=int, default=20, help="images of each new class (default 20)")
    parser.add_argument("--pretrain", type=int, default=80_000, help="examples of the pretraining (default 80000)")
    parser.add_argument("--keep", type=Path, help="a new directory for the runs, to look at afterwards")
    args = parser.parse_args()
    import logging

    import vit_dist.core.log  # noqa: F401 - sets the level that is set anew here

    # torch renamed collectives; what each run says is in its log.
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("vit_dist").setLevel(logging.ERROR)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measure(folder, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
