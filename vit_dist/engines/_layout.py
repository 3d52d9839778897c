"""What wrote a checkpoint, as far as it decides how results are rounded: a marker's `layout`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vit_dist.engines import EngineConfig
from vit_dist.engines._numerics import uses_tf32
from vit_dist.engines._protocol import EngineInputs

CPU = "cpu"


def layout(config: EngineConfig, inputs: EngineInputs, *, compiled: bool = False) -> dict[str, Any]:
    """What every engine's layout holds, beside what the engine is."""
    device = inputs.device
    return {
        "torch": torch.__version__,
        "world_size": inputs.world.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": inputs.precision,
        "tf32": "all" if uses_tf32(inputs.precision) else "none",
        "head": "fp32",
        "reduce_dtype": config.reduce_dtype,
        "deterministic": config.deterministic,
        "attention": config.attention,
        "compile": compiled,
    }


def images_format(config: EngineConfig, model: nn.Module, device: torch.device) -> torch.memory_format:
    """How images lie in memory: as the config says, or as its `auto` means for a model on a device."""
    last = config.channels_last
    if last == "auto":
        # Eager norms give their results in the usual layout, whatever they are given: each convolution would copy.
        last = device.type == "cuda" and config.compiles_on_gpus and getattr(model, "convolutional", False)
    return torch.channels_last if last else torch.contiguous_format


def completed(wrote: Mapping[str, Any], reads: Mapping[str, Any]) -> dict[str, Any]:
    """The layout of a checkpoint, with what layouts of its version did not say yet.

    What was not said then was so: all was eager, torch chose kernels, TF32 was on for convolutions of fp32 on GPUs, the
    head computed as the model did, and DeepSpeed summed gradients its own way, in the dtype of the weights. A key added
    later belongs here too.

    Args:
        wrote: of the checkpoint.
        reads: of the engine that reads it: of the same precision, which a run's identity holds; for want of better
            knowledge on the same device.
    """
    precision, device = reads.get("precision"), reads.get("device", CPU)
    bf16 = "bf16" if precision == "bf16" else "fp32"
    unsaid = {
        "device": device,
        "precision": precision,
        "tf32": "convolutions" if precision == "fp32" and device != CPU else "none",
        "head": bf16,
        "reduce_dtype": bf16 if wrote.get("engine") == "deepspeed" else "fp32",
        "deterministic": False,
        "attention": "auto",
        "compile": False,
        "gradient_sums": "DeepSpeed's",
    }
    return {**{key: value for key, value in unsaid.items() if key in reads}, **wrote}
