"""Making a state fit a model: what is missing, extra or of another shape; positions; the head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.models import ModelConfig
from vit_dist.models._positions import Grid, Resampling, resize_positions
from vit_dist.models.weights.names import OPTIONS, Wording, is_of_head, prefix_hint
from vit_dist.models.weights.promised import Promised

State = dict[str, Tensor]
Head = Literal["keep", "new"]
_SHOWN = 5
_MOST_SHOWN = 160
# Places of a table of positions that is resampled: 256 x 256 patches, or what is so many times as much as is wanted.
_MAX_TABLE, _MAX_LARGER = 65_537, 16
# The name that timm and Google have for it too.
_REPRESENTATION = "pre_logits"


def shapes_of(config: ModelConfig, num_classes: int, image_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model's state, without its weights.

    Raises:
        ConfigError: no such model can be built.
    """
    try:
        with torch.device("meta"):
            model = config.build(num_classes=num_classes, image_size=image_size)
    except (RuntimeError, OverflowError) as error:
        # More numbers in one tensor than torch can count.
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"{config.name} cannot be built for {image_size}-pixel images: {reason}") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def fit(
    state: Mapping[str, Tensor] | Mapping[str, Promised],
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
    """A state whose tensors have the shapes of the model. Tensors that are not read yet are read once all fit.

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
    known, begun = list(state), dict[str, float]()
    absent = list(missing)
    if head == "new":
        # Fine-tuning takes all of the head away, a representation layer too (section 3.2 of the paper), whatever it is:
        # two heads, an MLP.
        kept = any(name.startswith(_REPRESENTATION) for name in shapes)
        extra = [name for name in extra if kept or not name.startswith(_REPRESENTATION)]
        absent = [name for name in absent if "head" not in name]
        begun = {"head.weight": 0.0, "head.bias": config.head_bias}
        known = [name for name in state if name in shapes or not is_of_head(name)]
    elif "head.bias" in state and state["head.bias"].shape[:1] not in ((num_classes,), ()):
        raise DataError(
            f"{source}: has {state['head.bias'].shape[0]:,} classes, {num_classes:,} are asked for; give "
            f"{wording.num_classes.removesuffix('N')}{state['head.bias'].shape[0]}, or start a new head of zeros "
            f"({wording.new_head})"
        )
    prefix = 1 if "cls_token" in shapes else 0
    wanted = {name: shape for name, shape in shapes.items() if name not in begun}
    absent += [] if missing else [name for name in wanted if name not in state]
    grids, wrong = _misfits({name: state[name] for name in wanted if name in state}, wanted, prefix)
    more = sorted({*extra, *(name for name in known if name not in shapes)})
    complaints = [
        f"{len(names)} {what}: {', '.join(map(_named, names[:_SHOWN]))}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (("missing", absent), ("too many", more), ("of another shape", wrong))
        if names
    ]
    if complaints:
        hint = prefix_hint(known, shapes) if absent else ""
        if absent and not more and not wrong and all("head" in name for name in absent):
            hint = f"; it has no head: start a new one of zeros ({wording.new_head})"
        raise DataError(f"{source}: not the weights of {config.name}: {'; '.join(complaints)}{hint}")
    fitted = {name: torch.full(shapes[name], value) for name, value in begun.items()}
    for name in shapes:
        if name not in fitted:
            tensor = _read(state[name])
            if name in grids:
                tensor = resize_positions(name, tensor, *grids[name], prefix=prefix, method=positions)
            fitted[name] = tensor
    return {name: fitted[name] for name in shapes}


def _misfits(
    state: Mapping[str, Tensor | Promised], wanted: Mapping[str, tuple[int, ...]], prefix: int
) -> tuple[dict[str, tuple[Grid, Grid]], list[str]]:
    """Of tensors of another shape than is wanted: those that are resampled, with their grids; the others, in words."""
    grids: dict[str, tuple[Grid, Grid]] = {}
    wrong: list[str] = []
    for name, tensor in state.items():
        there, shape = tuple(tensor.shape), wanted[name]
        if there == shape:
            continue
        of_table = _grids(name, there, shape, prefix)
        if of_table is None:
            wrong.append(f"{name} is {_shape(there)}, not {_shape(shape)}")
        else:
            grids[name] = of_table
    return grids, wrong


def _read(tensor: Tensor | Promised) -> Tensor:
    return tensor.read() if isinstance(tensor, Promised) else tensor


def _named(complaint: str) -> str:
    """A name, or what is said of one, as it is where it is short."""
    return complaint if len(complaint) <= _MOST_SHOWN else f"{complaint[:_MOST_SHOWN]}..."


def _grids(name: str, there: tuple[int, ...], shape: tuple[int, ...], prefix: int) -> tuple[Grid, Grid] | None:
    """The square grids of patches of a table and of the one that is asked for; None: not a table, or not square."""
    if len(there) != 3 or len(shape) != 3 or (there[0], there[2]) != (shape[0], shape[2]):
        return None
    if there[1] > max(_MAX_TABLE, _MAX_LARGER * shape[1]):
        return None
    sides: list[Any] = [_side(name, length, prefix) for length in (there[1], shape[1])]
    return None if None in sides else ((sides[0], sides[0]), (sides[1], sides[1]))


def _side(name: str, length: int, prefix: int) -> int | None:
    if name in {"pos_embed_x", "pos_embed_y"}:
        return length
    if name not in {"pos_embed", "pos_relative"}:
        return None
    patches = length - prefix if name == "pos_embed" else length
    side = math.isqrt(max(patches, 0))
    # Offsets go from -n to n: along an axis there is an odd number of them.
    if side == 0 or side * side != patches or (name == "pos_relative" and side % 2 == 0):
        return None
    return side if name == "pos_embed" else (side + 1) // 2


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
