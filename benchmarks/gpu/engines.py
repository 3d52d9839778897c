"""Engines on one rank, built as training builds them, and batches that lie on the device already."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.kit import Kit
from vit_dist.cli.models.options import model_config
from vit_dist.config.load import resolve
from vit_dist.core.world import World
from vit_dist.engines._layout import images_format
from vit_dist.engines._protocol import Engine, EngineInputs
from vit_dist.models._base import ImageModel
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group

PLAIN = {"name": "plain", "compile": False}
"""Eager, as all but what measures compiling: it would take more of a stage's time than what the stage measures."""
FSDP = {"name": "fsdp"}
LR = 1e-4


def zero(stage: int) -> dict[str, Any]:
    """DeepSpeed at a ZeRO stage, as a recipe says it; eager."""
    return {"name": "deepspeed", "zero_stage": stage, "compile": False}


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone, as engines and collectives need."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with process_group(World()):
        yield


def build_model(kit: Kit, name: str, image_size: int, classes: int, settings: Sequence[str] = ()) -> ImageModel:
    """A model on the device, the same weights whenever it is built there."""
    torch.manual_seed(0)
    with kit.device:
        model = model_config(name, settings).build(num_classes=classes, image_size=image_size)
        # A head of zeros, with which training begins, would send no gradient to the layers under it.
        torch.nn.init.normal_(model.head.weight, std=0.02)
    return model


def build_engine(
    kit: Kit,
    name: str,
    engine: dict[str, Any],
    *,
    micro_batch: int,
    image_size: int,
    classes: int = 1000,
    settings: Sequence[str] = (),
    precision: str = "bf16",
    accumulation: int = 1,
) -> Engine:
    """An engine with AdamW, the sigmoid loss and a gradient norm of at most 1."""
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": micro_batch * accumulation,
            "precision": precision,
            "model": "vit-test",  # the recipe is asked for optimizer, loss and engine alone
            "data": {"num_classes": classes, "image_size": 28},
            "optim": {"name": "adamw", "lr": LR},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "loss": {"name": "sigmoid"},
            "engine": engine,
        }
    )
    model = build_model(kit, name, image_size, classes, settings)
    inputs = EngineInputs(
        model=model,
        optimizer=recipe.optim.over_layers(model),
        loss=make_loss(recipe.loss),
        world=World(),
        device=kit.device,
        precision=precision,
        clip=1.0,
        micro_batch=micro_batch,
        accumulation=accumulation,
        image_size=image_size,
        memory_format=images_format(recipe.engine, model, kit.device),
    )
    return recipe.engine.build(inputs)


def make_batch(kit: Kit, count: int, image_size: int, classes: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random uint8 images [count, 3, S, S] and targets [count, K] of one class each, on the device."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, image_size, image_size), dtype=torch.uint8, generator=draw)
    targets = torch.zeros(count, classes)
    targets[torch.arange(count), torch.randint(0, classes, (count,), generator=draw)] = 1
    return images.to(kit.device), targets.to(kit.device)
