"""How long a checkpoint keeps training waiting: in the background, and written before training goes on.

A ViT-B/16 with AdamW (86M parameters, 1.0 GB of weights and moments) on one rank. Both ways run in turns in one
process on the same disk; the ratio of their medians is what counts. Training steps go on between saves, so that the
background's writing has something to disturb.

python benchmarks/checkpoint_async.py [--model ViT-B/16] [--saves 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from vit_dist.config.load import resolve
from vit_dist.core.run.checkpoints import committed
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.engines._protocol import EngineInputs
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.saver import Contents, Saver
from vit_dist.train.checkpoint.store import Retention
from vit_dist.train.losses import make_loss

LIMIT = 0.10
SIZE, CLASSES = 224, 1000


def build(model_name: str):
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": 2,
            "precision": "fp32",
            "model": model_name,
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": "plain"},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=CLASSES, image_size=SIZE)
    inputs = EngineInputs(
        model, recipe.optim.over_layers(model), make_loss(recipe.loss), World(), torch.device("cpu"), "fp32", 1.0, 2, 1
    )
    return recipe.engine.build(inputs)


def step(engine) -> float:
    began = time.perf_counter()
    images = torch.randint(0, 255, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    engine.train_step([(images, torch.nn.functional.one_hot(torch.tensor([1, 2]), CLASSES).float())], 1e-4)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--saves", type=int, default=5)
    args = parser.parse_args()
    engine = build(args.model)
    blocked: dict[bool, list[float]] = {True: [], False: []}
    quiet, disturbed, load_s = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        savers = {}
        for background in (True, False):
            run = RunDir(Path(folder) / str(background))
            run.write_json("owner.json", {"token": "bench"})
            savers[background] = Saver(run, World(), "bench", Retention(1), background=background)
        step(engine)
        for i in range(args.saves + 1):
            for background, saver in savers.items():
                began = time.perf_counter()
                saver.save(engine, Contents({"step": i, "position": i}, {}, engine.layout, {}))
                took = time.perf_counter() - began
                if i:  # the first takes the memory that the others use again
                    blocked[background].append(took)
                times = [step(engine) for _ in range(2)]
                (disturbed if background else quiet).extend(times[:1])
                saver.settle()
        path = committed(Path(folder) / "True" / "checkpoints")[0]
        size = sum(f.stat().st_size for f in path.iterdir())
        began = time.perf_counter()
        engine.load(SliceSource(sorted(path.glob("*.safetensors"))))
        load_s = time.perf_counter() - began
    a, b = statistics.median(blocked[True]), statistics.median(blocked[False])
    ratio = a / b
    print(f"{args.model}: {format_bytes(size)} a checkpoint, {args.saves} saves each, in turns")
    for background, what in ((True, "in the background"), (False, "before it goes on")):
        times = blocked[background]
        spread = f"{min(times):.3f} to {max(times):.3f}"
        print(f"  training waits, written {what}: {statistics.median(times):.3f}s (median; {spread})")
    print(f"  ratio {ratio:.3f} (at most {LIMIT})")
    print(
        f"  the step after a save: {statistics.median(disturbed):.2f}s while the background writes, "
        f"{statistics.median(quiet):.2f}s else; loading: {load_s:.2f}s"
    )
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
