"""What a training step of a model keeps in memory, counted on the meta device: no weights, no time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vit_dist.models import ModelConfig
from vit_dist.models._base import Checkpointing, ImageModel
from vit_dist.models._macs import macs_of


@dataclass(frozen=True)
class Counted:
    """Of one model at one image size.

    Attributes:
        params: numbers that are trained.
        macs: multiply-adds of one forward pass of one image, by torch's FlopCounterMode.
        trained_macs: the same in training, where patch dropout leaves patches out.
        activations: bytes an image that the backward pass needs, all kept.
        checkpointed: the same where each block keeps its input alone.
    """

    params: int
    macs: int
    trained_macs: int
    activations: int
    checkpointed: int


def count(config: ModelConfig, *, num_classes: int, image_size: int, precision: str = "bf16") -> Counted:
    """Count one model.

    Raises:
        ConfigError: the image size does not fit the model.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        model = config.build(num_classes=num_classes, image_size=image_size)
    params = sum(p.numel() for p in model.parameters())
    macs, trained_macs = macs_of(model, image_size), macs_of(model, image_size, training=True)
    saved = {}
    modes: tuple[Checkpointing, Checkpointing] = ("none", "full")
    # Fake tensors have a device, and so the fused attention of one; on the meta device attention keeps its weights.
    with FakeTensorMode():
        _fake_weights(model, dtype)
        for mode in modes:
            model.set_activation_checkpointing(mode)
            # Of two images and of one: what does not grow with the batch is no activation.
            saved[mode] = _saved(model, 2, image_size, dtype) - _saved(model, 1, image_size, dtype)
    return Counted(
        params=params,
        macs=macs,
        trained_macs=trained_macs,
        activations=saved["none"],
        checkpointed=saved["full"],
    )


def _fake_weights(model: ImageModel, dtype: torch.dtype) -> None:
    """Give a model of the meta device weights on the current fake device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _saved(model: ImageModel, images: int, image_size: int, dtype: torch.dtype) -> int:
    """Bytes of the distinct tensors that autograd keeps of a forward pass."""
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    batch = torch.zeros(images, 3, image_size, image_size, dtype=dtype)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(batch)
    held = sum(storage.nbytes() for storage in storages.values())
    del logits
    return int(held)
