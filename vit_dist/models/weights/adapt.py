"""Making a state fit a model: what is missing, extra or of another shape; positions; the head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vit_dist.core.errors import DataError
from vit_dist.models import ModelConfig
from vit_dist.models._positions import Grid, Resampling, resize_positions
from vit_dist.models.weights.names import OPTIONS, Wording, is_of_head, prefix_hint

State = dict[str, Tensor]
Head = Literal["keep", "new"]
_SHOWN = 5

# The name that timm and Google have for it too.
_REPRESENTATION = "pre_logits"


def shapes_of(config: ModelConfig, num_classes: int, image_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model's state, without its weights."""
    with torch.device("meta"):
        model = config.build(num_classes=num_classes, image_size=image_size)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def fit(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    num_classes: int,
    image_size: int,
    source: str,
    head: Head = "keep",
    positions: Resampling = "public",
    missing: Sequence[str] = (),
    extra: Sequence[str] = (),
    wording: Wording = OPTIONS,
) -> State:
    """A state whose tensors have the shapes of the model.

    Args:
        state: tensors by our names.
        config: the model.
        num_classes: of the model's head.
        image_size: of the model's images, in pixels.
        source: where the tensors come from, for errors.
        head: `new`: a head of zeros (and the config's bias) in place of the one that is there, and of its
            representation layer where the model has none.
        positions: how position embeddings are resampled where the number of patches differs.
        missing: names that the source should have had.
        extra: names that it should not have.
        wording: of advice.

    Raises:
        DataError: says which tensors are missing, too many, or of another shape; or that the classes differ.
    """
    shapes = shapes_of(config, num_classes, image_size)
    fitted: State = {}
    wrong: list[str] = []
    absent = list(missing)
    if head == "new":
        # Fine-tuning takes all of the head away, a representation layer too (section 3.2 of the paper), whatever it is:
        # two heads, an MLP.
        state = {name: tensor for name, tensor in state.items() if name in shapes or not is_of_head(name)}
        kept = any(name.startswith(_REPRESENTATION) for name in shapes)
        extra = [name for name in extra if kept or not name.startswith(_REPRESENTATION)]
        absent = [name for name in absent if "head" not in name]
        fitted["head.weight"] = torch.zeros(shapes["head.weight"])
        fitted["head.bias"] = torch.full(shapes["head.bias"], config.head_bias)
    elif "head.bias" in state and len(state["head.bias"]) != num_classes:
        raise DataError(
            f"{source}: has {len(state['head.bias']):,} classes, {num_classes:,} are asked for; give "
            f"{wording.num_classes.removesuffix('N')}{len(state['head.bias'])}, or start a new head of zeros "
            f"({wording.new_head})"
        )
    prefix = 1 if "cls_token" in shapes else 0
    for name, shape in shapes.items():
        if name in fitted:
            continue
        if name not in state:
            absent += [] if missing else [name]
            continue
        tensor = state[name]
        if tuple(tensor.shape) != shape:
            tensor = _resized(name, tensor, shape, prefix, positions)
        if tuple(tensor.shape) != shape:
            wrong.append(f"{name} is {_shape(tensor.shape)}, not {_shape(shape)}")
            continue
        fitted[name] = tensor
    more = sorted({*extra, *(name for name in state if name not in shapes)})
    complaints = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (("missing", absent), ("too many", more), ("of another shape", wrong))
        if names
    ]
    if complaints:
        hint = prefix_hint(state, shapes) if absent else ""
        if absent and not more and not wrong and all("head" in name for name in absent):
            hint = f"; it has no head: start a new one of zeros ({wording.new_head})"
        raise DataError(f"{source}: not the weights of {config.name}: {'; '.join(complaints)}{hint}")
    return {name: fitted[name] for name in shapes}


def _resized(name: str, tensor: Tensor, shape: tuple[int, ...], prefix: int, method: Resampling) -> Tensor:
    grids = _grids(name, tensor, shape, prefix)
    if grids is None:
        return tensor
    return resize_positions(name, tensor, *grids, prefix=prefix, method=method)


def _grids(name: str, tensor: Tensor, shape: tuple[int, ...], prefix: int) -> tuple[Grid, Grid] | None:
    """The square grids of patches of a table and of the one that is asked for; None: not a table, or not square."""
    if tensor.ndim != 3 or len(shape) != 3 or (tensor.shape[0], tensor.shape[2]) != (shape[0], shape[2]):
        return None
    sides: list[Any] = [_side(name, length, prefix) for length in (tensor.shape[1], shape[1])]
    return None if None in sides else ((sides[0], sides[0]), (sides[1], sides[1]))


def _side(name: str, length: int, prefix: int) -> int | None:
    if name in {"pos_embed_x", "pos_embed_y"}:
        return length
    if name not in {"pos_embed", "pos_relative"}:
        return None
    patches = length - prefix if name == "pos_embed" else length
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        return None
    return side if name == "pos_embed" else (side + 1) // 2


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
