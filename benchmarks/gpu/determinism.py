"""The same steps three times from one seed: are the weights equal bit for bit, and how long does a step take?

Case `default` is torch as it comes, `strict` its deterministic algorithms. A process each, since cuBLAS reads its
setting once.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from benchmarks.gpu.engines import LR, PLAIN, build_engine, make_batch, one_rank
from benchmarks.gpu.kit import Kit
from vit_dist.core.errors import ConfigError
from vit_dist.engines._numerics import strictly_deterministic

# Full width, so that kernels are those of training; two layers of the transformers repeat them enough.
_MODELS = (
    ("ViT-B/16", ["depth=2"], 32),
    ("ViT-H/14", ["depth=2"], 16),
    ("R50x1", [], 16),
    ("R50+ViT-B/16", ["depth=2"], 8),
)
_SMOKE: tuple[tuple[str, list[str], int], ...] = (("vit-test", [], 4), ("bit-test", [], 4), ("hybrid-test", [], 4))
_REPEATS = 3


def measure(kit: Kit) -> None:
    """One line a model; where strict mode refuses an operation, the line says which."""
    with strictly_deterministic() if kit.case == "strict" else contextlib.nullcontext(), one_rank():
        for model, settings, count in _SMOKE if kit.smoke else _MODELS:
            try:
                _compare(kit, model, settings, count)
            except ConfigError as error:
                kit.record(model, refused=str(error)[:200])


def _compare(kit: Kit, model: str, settings: list[str], count: int) -> None:
    size, timed = (28, 2) if kit.smoke else (224, 9)
    first: dict[str, Tensor] = {}
    differing: set[str] = set()
    spent = []
    for _ in range(_REPEATS):
        # As a run is by default: compiled on a GPU.
        config = {**PLAIN, "compile": "auto", "deterministic": kit.case == "strict"}
        engine = build_engine(kit, model, config, micro_batch=count, image_size=size, settings=settings)
        batch = make_batch(kit, count, size)
        kit.seconds(lambda engine=engine, batch=batch: engine.train_step([batch], LR), 2)
        spent.append(kit.seconds(lambda engine=engine, batch=batch: engine.train_step([batch], LR), timed))
        weights = {name: weight.detach() for name, weight in engine.module.named_parameters()}
        first = first or weights
        differing |= {name for name, weight in weights.items() if not torch.equal(weight, first[name])}
    figures = {"equal": not differing, "differing": len(differing), "of": len(first), "ms": 1e3 * min(spent)}
    over = kit.over(figures["ms"], kit.stage, "default", model, "ms") if kit.case == "strict" else None
    if over is not None:
        figures["over_default"] = over
    kit.record(model, **figures, **({"such_as": min(differing)} if differing else {}))
