"""What a model costs, by arithmetic on its config: parameters and multiply-adds. No torch, no weights.

Multiply-adds are those of matrix products, convolutions and attention in one forward pass of one image, as torch's
FlopCounterMode counts them; norms, activations and the standardising of kernels are not in it. Configs are read by the
names of their fields, so that this module need not know the models: what is no ViT, BiT or hybrid has no cost here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

FLOPS_PER_MAC = 2
PASSES = 3
"""A training step is one forward pass, and a backward pass of twice its cost: the rule of the ViT paper's Table 6."""


@dataclass(frozen=True)
class Cost:
    """Of one model at one image size: parameters, and multiply-adds of one forward pass of one image."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)


def training_flops(macs: int, examples: int) -> int:
    """FLOPs of training on so many examples: 2 a multiply-add, forward and twice that backward."""
    return FLOPS_PER_MAC * PASSES * macs * examples


@dataclass(frozen=True)
class StateBytes:
    """What training keeps of a model on each device, activations apart.

    Attributes:
        weights: that are computed with.
        gradients: as they come, and their sums in fp32.
        optimizer: moments, and under ZeRO the fp32 weights that it steps on.
        passing: what comes on top for a moment in every step.
    """

    weights: float
    gradients: float
    optimizer: float
    passing: float

    @property
    def held(self) -> float:
        """Bytes between the backward pass and the optimizer's step."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """Bytes at most."""
        return self.held + self.passing


def state_bytes(
    params: int,
    *,
    precision: str,
    moments: float = 2,
    zero_stage: int = 0,
    devices: int = 1,
    reduce_bucket: int = 0,
    reduce_dtype: str = "fp32",
) -> StateBytes:
    """Bytes of weights, gradients and optimizer on each device, for both engines.

    Plain torch keeps everything in fp32, and in bf16 casts weights for the length of a step. ZeRO shards the optimizer
    from stage 1 on, gradients from stage 2 on, weights from stage 3 on. In bf16 stage 1 keeps gradients twice, as they
    come and summed in fp32; the ranks' sums are added up where they lie.

    Args:
        params: numbers that are trained.
        precision: 'bf16'; any other computes in 4 bytes.
        moments: numbers that the optimizer keeps for each weight; of AdamW 2.
        zero_stage: 0 is the plain engine.
        devices: that a run is trained on.
        reduce_bucket: elements of gradients that ZeRO reduces at once, from a buffer in fp32.
        reduce_dtype: 'bf16' casts what ZeRO-1 has summed, to send half the bytes and to receive its own part.
    """
    half = precision == "bf16"
    if zero_stage == 0:
        return StateBytes(4 * params, 4 * params, 4 * moments * params, 2 * params if half else 0)
    each = 2 if half else 4
    weights = each * params / (devices if zero_stage == 3 else 1)
    gradients = 4 * params / devices if zero_stage > 1 else (4 + (2 if half else 0)) * params
    optimizer = 4 * (1 + moments) * params / devices
    in_place = half and zero_stage == 1
    cast = 2 * (params + params / devices) if reduce_dtype == "bf16" and devices > 1 else 0
    passing = cast if in_place else 4 * reduce_bucket
    return StateBytes(weights, gradients, optimizer, passing)


Sums = Literal["none", "whole", "shards"]


def fsdp_state_bytes(
    params: int, *, precision: str, resharded: bool, sums: Sums = "none", moments: float = 2, devices: int = 1
) -> StateBytes:
    """As `state_bytes`, for the FSDP engine: between passes a rank keeps its shards alone, in fp32.

    What one block takes while it is at work comes on top: its weights, its gradients and their copy that is reduced.

    Args:
        params: numbers that are trained.
        precision: 'bf16'; any other computes in 4 bytes.
        resharded: a block's weights are freed after its forward pass; else all are there until the backward pass.
        sums: how micro-batches are summed up: whole before ranks reduce, as shards after it, or there is one alone.
        moments: numbers that the optimizer keeps for each weight; of AdamW 2.
        devices: that a run is trained on.
    """
    gradients, optimizer = 4 * params / devices, 4 * (1 + moments) * params / devices
    gathered = 0 if resharded else (2 if precision == "bf16" else 4) * params
    # All is there when a backward pass begins; what has become a shard when it ends is no longer whole then.
    begins = gathered + {"none": 0, "whole": 4 * params, "shards": gradients}[sums]
    return StateBytes(0, gradients, optimizer, max(0, begins - gradients))


def model_cost(config: Any, *, num_classes: int, image_size: int, training: bool = False) -> Cost | None:
    """The cost of a model, or None where its config is of no family that is known here.

    Args:
        config: of the model.
        num_classes: of its head.
        image_size: of its images, in pixels.
        training: count the forward pass of a training step, where patch dropout leaves patches out.
    """
    if hasattr(config, "blocks") and hasattr(config, "block"):
        return _bit(config, num_classes, image_size)
    if not all(hasattr(config, name) for name in ("patch_size", "width", "depth", "hidden", "pool")):
        return None
    if hasattr(config, "stages"):
        return _hybrid(config, num_classes, image_size, training=training)
    side = image_size // config.patch_size
    embedded = _dense(side * side, config.patch_size**2 * 3, config.width)
    return embedded + _encoder(config, side, num_classes, training=training)


def _dense(positions: int, inputs: int, outputs: int, *, bias: bool = True) -> Cost:
    """A dense layer, or a convolution with `inputs` values under its kernel, at so many positions."""
    return Cost(inputs * outputs + (outputs if bias else 0), positions * inputs * outputs)


def _norm(channels: int) -> Cost:
    return Cost(2 * channels, 0)


def _encoder(config: Any, side: int, num_classes: int, *, training: bool) -> Cost:
    """A ViT behind its patches: side x side tokens, the class token, blocks, pooling and the head."""
    width, hidden = config.width, config.hidden
    patches = config.patches_kept(side * side) if training and hasattr(config, "patches_kept") else side * side
    prefix = 1 if config.pool == "cls" else 0
    registers = getattr(config, "registers", 0)
    tokens = patches + prefix + registers
    total = Cost((prefix + registers) * width, 0) + _positions(config, side, prefix)
    for _ in range(config.depth):
        total += _norm(width) + _dense(tokens, width, 3 * width) + _dense(tokens, width, width)
        total += Cost(2 * width if getattr(config, "layer_scale", None) else 0, 0)
        total += Cost(4 * (width // config.num_heads) if getattr(config, "qk_norm", False) else 0, 0)
        # Queries by keys, and weights by values.
        total += Cost(0, 2 * tokens * tokens * width)
        first = 2 * hidden if getattr(config, "mlp", "") == "swiglu" else hidden
        total += _norm(width) + _dense(tokens, width, first) + _dense(tokens, hidden, width)
    total += _norm(width)
    if config.pool == "map":
        total += Cost(width, 0) + _dense(1, width, width) + _dense(patches, width, 2 * width) + _dense(1, width, width)
        total += Cost(0, 2 * patches * width)
        total += _norm(width) + _dense(1, width, hidden) + _dense(1, hidden, width)
    if config.representation:
        total += _dense(1, width, width)
    return total + _dense(1, width, num_classes)


def _positions(config: Any, side: int, prefix: int) -> Cost:
    kind, width, depth = config.position_embedding, config.width, config.depth
    where = getattr(config, "places", "stem")
    layers = depth if where == "layers" else 1
    if kind == "learned":
        return Cost(layers * (prefix + side * side) * width, 0)
    if kind == "learned-2d":
        return Cost(layers * side * width, 0)
    if kind == "relative":
        offsets = (2 * side - 1) ** 2
        return Cost(layers * offsets * width // config.num_heads, depth * side * side * offsets * width)
    if kind == "conditional":
        used = depth - 1 if where in ("layers", "shared") else 1
        held = depth - 1 if where == "layers" else 1
        return Cost(held * 10 * width, used * side * side * 9 * width)
    return Cost(0, 0)


def _bit(config: Any, num_classes: int, image_size: int) -> Cost:
    width = config.width * config.width_factor
    total, side = _stem(config.stem, width, image_size)
    channels = width
    for stage, count in enumerate(config.blocks):
        outside = config.channels[stage]
        inside = outside if config.block == "basic" else outside // 4
        for block in range(count):
            stride = 2 if block == 0 and stage > 0 else 1
            total += _residual(channels, inside, outside, side, stride, basic=config.block == "basic", first=block == 0)
            total += _norm(channels) + _norm(inside) + (Cost(0, 0) if config.block == "basic" else _norm(inside))
            side, channels = -(-side // stride), outside
    return total + _norm(channels) + _dense(1, channels, num_classes)


def _hybrid(config: Any, num_classes: int, image_size: int, *, training: bool) -> Cost:
    width = config.backbone_width
    total, side = _stem(config.stem, width, image_size)
    total += _norm(width)
    channels = width
    for stage, count in enumerate(config.stages):
        inside, outside = width * 2**stage, 4 * width * 2**stage
        for block in range(count):
            stride, first = (2 if block == 0 and stage > 0 else 1), block == 0
            total += _residual(channels, inside, outside, side, stride, basic=False, first=first)
            total += _norm(inside) + _norm(inside) + _norm(outside) + (_norm(outside) if first else Cost(0, 0))
            side, channels = -(-side // stride), outside
    patch = config.patch_size
    side //= patch
    total += _dense(side * side, channels * patch**2, config.width)
    return total + _encoder(config, side, num_classes, training=training)


def _stem(kind: str, width: int, image_size: int) -> tuple[Cost, int]:
    """The stem without its norm, and the side of the map that leaves it."""
    if kind == "imagenet":
        side = -(-image_size // 2)
        return _dense(side * side, 7 * 7 * 3, width, bias=False), -(-side // 2)
    side = -(-image_size // (2 if kind == "small/2" else 1))
    return _dense(side * side, 3 * 3 * 3, width, bias=False), side


def _residual(channels: int, inside: int, outside: int, side: int, stride: int, *, basic: bool, first: bool) -> Cost:
    """The convolutions of one block; the first of a stage has one on its shortcut too, or needs none."""
    first = first and not (basic and stride == 1 and channels == outside)
    return sum(_convolutions(channels, inside, outside, side, stride, basic, first), Cost(0, 0))


def _convolutions(
    channels: int, inside: int, outside: int, side: int, stride: int, basic: bool, first: bool
) -> Iterator[Cost]:
    before, after = side * side, (-(-side // stride)) ** 2
    if basic:
        yield _dense(after, 9 * channels, inside, bias=False)
        yield _dense(after, 9 * inside, outside, bias=False)
    else:
        yield _dense(before, channels, inside, bias=False)
        yield _dense(after, 9 * inside, inside, bias=False)
        yield _dense(after, inside, outside, bias=False)
    if first:
        yield _dense(after, channels, outside, bias=False)
