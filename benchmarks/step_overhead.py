"""A training step of ours on a CPU, against a bare PyTorch loop on the plain engine, and bare DeepSpeed under ZeRO-1.

Ours is the whole loop of train/loop.py as it runs: micro-batches, flags that ranks agree on, the limit of the loss,
the log every ten steps, the heartbeat beside it. Batches come out of memory in both, so that no image is decoded.
The bare loops are what one would write: zero_grad, forward, cross-entropy, backward, clip, fused AdamW; and
deepspeed.initialize with the configuration that ours has, forward, backward, step. All have the same model.

Ours and the bare step take turns in one process, in both orders; each pair gives one ratio of seconds, ours over bare,
by the wall clock and by the processor time of all threads. Reported are the median of the ratios and its 95% interval
by order statistics. At most 1.05 is the aim.

python -m benchmarks.step_overhead [--pairs 20] [--batch 8] [--model ViT-S/16] [--size 224] [--only plain]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.models_against_timm import interval

_GOAL = 1.05
_WARM_UP = 3
_CLASSES = 1000
_RECIPE = """
name: overhead
global_batch: {batch}
horizon: 1M steps
precision: {precision}
model: {model}
data: {{num_classes: 1000, spare_outputs: true, train: {train}, image_size: {size}, augment: none}}
optim: {{name: adamw, lr: 1e-4, weight_decay: 0.1}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {engine}
log: {{every: 10 steps}}
checkpoint: {{every: 1M steps, probe: 0}}
evaluators: []
"""
_ENGINES = {"plain": ("{name: plain}", "fp32"), "deepspeed": ("{name: deepspeed, zero_stage: 1}", "bf16")}
Step = Callable[[Any, Any], None]


class _MeasuredError(Exception):
    """Ends the loop once all pairs are measured."""


class Turns:
    """In place of the loop's stream: the same batch again and again, and between two of ours a bare step.

    Args:
        recipe: of the run.
        make_bare: the bare step over (uint8 images, labels), made once a process group is there.
        pairs: to measure.
    """

    def __init__(self, recipe: Any, make_bare: Callable[[], Step], pairs: int) -> None:
        from vit_dist.data.pace import Pace

        self.pace = Pace()
        self._recipe, self._make_bare, self._pairs = recipe, make_bare, pairs
        self.spent: list[dict[str, tuple[float, float]]] = []

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch

        from vit_dist.data.batch import Batch
        from vit_dist.data.stream import StreamState

        n, step = self._recipe.global_batch, self._make_bare()
        size = self._recipe.data.image_size
        images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
        labels = torch.randint(0, _CLASSES, (n, 1))
        places = torch.arange(n)

        def bare() -> tuple[float, float]:
            before = _now()
            step(images, labels[:, 0])
            return _since(before)

        for turn in range(_WARM_UP + self._pairs):
            found = {"bare": bare()} if turn % 2 == 0 else {}
            batch = Batch(images, labels, torch.ones(n, 1), places, places + turn * n)
            before = _now()
            # The loop takes its step, and asks for the next batch.
            yield batch, StreamState((turn + 1) * n, self._identity())
            found["ours"] = _since(before)
            self.spent.append(found if found.keys() >= {"bare"} else {**found, "bare": bare()})
        raise _MeasuredError

    def _identity(self) -> Any:
        return self.data.identity

    def of(self, data: Any, *_: object, **__: object) -> Turns:
        """Called as TrainStream is."""
        self.data = data
        return self


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(before: tuple[float, float]) -> tuple[float, float]:
    now = _now()
    return now[0] - before[0], now[1] - before[1]


def bare_torch(recipe: Any) -> Step:
    """zero_grad, forward, cross-entropy, backward, clip, step."""
    import torch
    from torch.nn import functional

    model = recipe.model.build(num_classes=_CLASSES, image_size=recipe.data.image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def step(images: Any, labels: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = model(images.float() / 127.5 - 1)
        functional.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def bare_deepspeed(recipe: Any) -> Step:
    """deepspeed.initialize with our configuration; forward, backward, step."""
    import torch
    from torch.nn import functional

    from vit_dist.core.world import World
    from vit_dist.engines._deepspeed import engine_config, import_deepspeed
    from vit_dist.engines._protocol import EngineInputs

    deepspeed = import_deepspeed()
    model = recipe.model.build(num_classes=_CLASSES, image_size=recipe.data.image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    cpu = torch.device("cpu")
    inputs = EngineInputs(
        model, optimizer, functional.cross_entropy, World(), cpu, recipe.precision, 1.0, recipe.global_batch, 1
    )
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=engine_config(recipe.engine, inputs), dist_init_required=False
        )
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32

    def step(images: Any, labels: Any) -> None:
        logits = engine((images.float() / 127.5 - 1).to(dtype))
        engine.backward(functional.cross_entropy(logits.float(), labels))
        engine.step()

    return step


def measure(case: str, args: argparse.Namespace) -> None:
    """One case, in this process."""
    import warnings

    from tests.shards import write_set
    from vit_dist.config.load import load_recipe
    from vit_dist.core.world import World
    from vit_dist.train import loop
    from vit_dist.train.attempt import attempt

    # torch renamed collectives that DeepSpeed calls.
    warnings.simplefilter("ignore", FutureWarning)
    engine, precision = _ENGINES[case]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with tempfile.TemporaryDirectory() as scratch:
        train = write_set(Path(scratch) / "set", num_samples=64, samples_per_shard=32, num_classes=4)
        path = Path(scratch) / "recipe.yaml"
        path.write_text(
            _RECIPE.format(
                batch=args.batch, precision=precision, model=args.model, size=args.size, train=train, engine=engine
            )
        )
        recipe = load_recipe(str(path), [])
        bare = {"plain": bare_torch, "deepspeed": bare_deepspeed}[case]
        turns = Turns(recipe, lambda: bare(recipe), args.pairs)
        loop.TrainStream = turns.of  # type: ignore[assignment, misc]
        with contextlib.suppress(_MeasuredError):
            attempt(recipe, Path(scratch) / "run", World())
    pairs = turns.spent[_WARM_UP:]
    ratios = [
        sorted(pair["ours"][clock] / pair["bare"][clock] for pair in pairs)
        for clock in (0, 1)  # the wall's, the processor's
    ]
    cells = ["{:.3f} [{:.3f}, {:.3f}]".format(statistics.median(r), *interval(r)) for r in ratios]
    seconds = [statistics.median(pair[name][clock] for pair in pairs) for clock in (0, 1) for name in ("ours", "bare")]
    print(
        f"{case:10} {precision:5} {cells[0]:22} {cells[1]:22} " + " ".join(f"{1e3 * s:9.1f}" for s in seconds),
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", default="ViT-S/16")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--only", choices=tuple(_ENGINES))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measure(args.only, args)
        return 0
    print(f"{args.model}, batch {args.batch}, {args.pairs} pairs: seconds of a step, ours over bare; aim: {_GOAL}")
    heads = ("by the wall clock", "by processor time", "ms: ours", "bare", "CPU: ours", "bare")
    print(" " * 17 + "{:22} {:22} {:>9} {:>9} {:>9} {:>9}".format(*heads), flush=True)
    # Each in a process of its own: DeepSpeed leaves its mark on torch.
    for case in [args.only] if args.only else _ENGINES:
        options = [
            "--pairs",
            str(args.pairs),
            "--batch",
            str(args.batch),
            "--model",
            args.model,
            "--size",
            str(args.size),
        ]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.step_overhead", "--here", "--only", case, *options],
            check=True,
            stderr=subprocess.DEVNULL if not os.environ.get("SHOW_LOG") else None,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
