"""Engines on one rank and batches for the tests of a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vit_dist.config.load import resolve
from vit_dist.config.schema import Recipe
from vit_dist.core.world import World
from vit_dist.engines._average import Averaging
from vit_dist.engines._protocol import Engine, EngineInputs, StepResult
from vit_dist.train.losses import make_loss

SIZE, CLASSES, BATCH = 28, 10, 8
FAMILIES = ("vit-test", "bit-test", "hybrid-test")
PLAIN: dict[str, Any] = {"name": "plain"}
FSDP: dict[str, Any] = {"name": "fsdp"}
RESHARDED: dict[str, Any] = {"name": "fsdp", "reshard_after_forward": True}


def zero(stage: int) -> dict[str, Any]:
    return {"name": "deepspeed", "zero_stage": stage, "reduce_bucket": 1_000_000, "allgather_bucket": 1_000_000}


def recipe(model_name: str, engine: dict[str, Any], precision: str = "fp32") -> Recipe:
    return resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": precision,
            "model": model_name,
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": engine,
        }
    )


def build(
    device: torch.device,
    model_name: str,
    engine: dict[str, Any],
    precision: str = "fp32",
    seed: int = 0,
    image_size: int | None = None,
    averaging: Averaging | None = None,
) -> Engine:
    """An engine with the weights of a seed, whatever the device; without an image size nothing is compiled."""
    settings = recipe(model_name, engine, precision)
    torch.manual_seed(seed)
    model: Any = settings.model.build(num_classes=CLASSES, image_size=SIZE)  # type: ignore[attr-defined]
    model.set_activation_checkpointing(engine.get("activation_checkpointing", "none"))
    torch.nn.init.normal_(model.head.weight, std=0.05)  # zeros would send no gradient to what is below
    optimizer = settings.optim.over_layers(model)  # type: ignore[attr-defined]
    loss = make_loss(settings.loss)
    inputs = EngineInputs(
        model,
        optimizer,
        loss,
        World(),
        device,
        precision,
        1.0,
        BATCH,
        1,
        image_size=image_size,
        averaging=averaging,
    )
    built: Engine = settings.engine.build(inputs)  # type: ignore[attr-defined]
    return built


def batch(step: int) -> tuple[Tensor, Tensor]:
    """uint8 images and one-hot targets on the CPU, the same wherever they are made."""
    draw = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=draw)
    images = torch.randint(0, 100, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)
    images += (labels * 15).to(torch.uint8).view(-1, 1, 1, 1)
    return images, torch.nn.functional.one_hot(labels, CLASSES).float()


def steps(engine: Engine, count: int, begin: int = 0) -> list[StepResult]:
    return [engine.train_step([batch(step)], 1e-3).read() for step in range(begin, begin + count)]


def losses(engine: Engine, count: int, begin: int = 0) -> list[float]:
    return [result.loss for result in steps(engine, count, begin)]
