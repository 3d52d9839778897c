"""All views of one model over some images, within the memory that there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.memory import available_memory
from vit_dist.core.units import format_bytes
from vit_dist.data.decode import normalize
from vit_dist.inspect.field import Field, layers_of, receptive_fields
from vit_dist.inspect.maps import Attended, attention_maps
from vit_dist.inspect.tokens import Tokens, inner, tokens_of
from vit_dist.inspect.views import OF_ATTENTION, VIEWS, chosen_views
from vit_dist.inspect.weights import filter_components, first_filters, position_similarity, positions_of

SHOWN = 12
"""Images of which there are maps."""
_OF_FIELD = 32
_MOST_AT_ONCE, _ROOM = 64, 1 << 30
# Queries times keys, their softmax, and what is made of them.
_COPIES = 5


@dataclass(frozen=True)
class Look:
    """What was seen in a model; of a view that was not to be had, None or nothing, and the reason in `left_out`.

    Attributes:
        name: of the model.
        image_size: in pixels.
        views: that were looked at.
        images: the first of those that were given, uint8 [n, 3, S, S].
        labels: a word or two for each of these, or ''.
        num_images: that were given.
        attended: of `rollout`, `distance` and `layers`.
        tokens: how a model's tokens lie that has any.
        similarity: of `positions`, [L, L].
        own_positions: later layers add positions of their own; `similarity` is of those of the first.
        components: of `filters`, [k, 3, P, Q], with the share of variance of each, [k], and the layer's name.
        fields: of `field`.
        left_out: {view: why it is not there}.
    """

    name: str
    image_size: int
    views: tuple[str, ...]
    images: Tensor
    labels: tuple[str, ...] = ()
    num_images: int = 0
    attended: Attended | None = None
    tokens: Tokens | None = None
    similarity: Tensor | None = None
    own_positions: bool = False
    components: tuple[Tensor, Tensor, str] | None = None
    fields: tuple[Field, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def look_inside(
    model: nn.Module,
    images: Tensor | None,
    *,
    image_size: int,
    views: Sequence[str] = (),
    labels: Sequence[str] = (),
    name: str = "",
    device: str | torch.device = "cpu",
) -> Look:
    """Look at a model: one of this project, one of timm, or any whose parts have timm's names.

    The model is moved to `device`, in evaluation mode and without gradients of its weights from then on.

    Args:
        model: images [B, 3, S, S] in [-1, 1] -> anything.
        images: uint8 [N, 3, S, S]; None: weights alone are looked at.
        image_size: S, for which the model was built.
        views: names of `VIEWS`; none: all that this model has.
        labels: a word or two for each image.
        name: of the model.
        device: where it runs.

    Raises:
        ConfigError: a view that was asked for is not to be had of this model, or needs images.
        DataError: there is not enough memory.
    """
    name = name or type(inner(model)).__name__
    wanted = chosen_views(views)
    model.to(device).eval().requires_grad_(False)
    shown = torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8) if images is None else images[:SHOWN]
    look = Look(name, image_size, (), shown, tuple(labels[: len(shown)]), 0 if images is None else len(images))
    with _memory_explained(name, image_size):
        for group in (tuple(v for v in wanted if v in OF_ATTENTION), *((v,) for v in wanted if v not in OF_ATTENTION)):
            if not group:
                continue
            try:
                if images is None and VIEWS[group[0]].needs_images:
                    raise ConfigError("needs images, and none were given")
                seen = _LOOKS[group[0]](model, images, look, torch.device(device))
            except ConfigError as error:
                if views:
                    raise ConfigError(f"{', '.join(group)}: {error}") from None
                look = replace(look, left_out={**look.left_out, **dict.fromkeys(group, str(error))})
            else:
                look = replace(look, **seen, views=(*look.views, *group))
    return look


def images_at_once(tokens: Tokens, num_heads: int, free: int | None) -> int:
    """How many images' attention of one layer may be held at once.

    Args:
        tokens: of the model.
        num_heads: of a layer.
        free: bytes; None: not known.

    Raises:
        ConfigError: not one.
    """
    each = _COPIES * 4 * num_heads * tokens.count**2
    room = _ROOM if free is None else free
    if each > room:
        raise ConfigError(
            f"the attention of one layer among {tokens.count:,} tokens in {num_heads} heads takes "
            f"{format_bytes(each)} for one image, {format_bytes(room)} are free; give smaller images (--image-size), "
            f"or look on a machine with more memory"
        )
    return max(1, min(_MOST_AT_ONCE, min(room // 2, _ROOM) // each))


def heads_of(model: nn.Module) -> int:
    """Attention heads of a layer; where the model does not say, many."""
    blocks: Any = getattr(inner(model), "blocks", None)
    attention = getattr(blocks[0], "attn", None) if blocks else None
    return int(getattr(attention, "num_heads", 16))


def _attended(model: nn.Module, images: Tensor | None, look: Look, device: torch.device) -> dict[str, Any]:
    assert images is not None
    tokens = tokens_of(model, look.image_size, look.name)
    batch = images_at_once(tokens, heads_of(model), _free(device))

    def forward(some: Tensor) -> None:
        with torch.no_grad():
            model(_input(some, model, device))

    return {"tokens": tokens, "attended": attention_maps(forward, images, tokens, batch=batch, shown=SHOWN)}


def _similarity(model: nn.Module, images: Tensor | None, look: Look, device: torch.device) -> dict[str, Any]:  # noqa: ARG001
    tokens = tokens_of(model, look.image_size, look.name)
    table, own = positions_of(model, tokens, look.name)
    return {"tokens": tokens, "similarity": position_similarity(table), "own_positions": own}


def _filters(model: nn.Module, images: Tensor | None, look: Look, device: torch.device) -> dict[str, Any]:  # noqa: ARG001
    filters, path = first_filters(model, look.name)
    return {"components": (*filter_components(filters), path)}


def _fields(model: nn.Module, images: Tensor | None, look: Look, device: torch.device) -> dict[str, Any]:
    assert images is not None
    layers = layers_of(model, look.image_size, look.name)
    step = -(-len(images) // _OF_FIELD)
    some = _input(images[::step], model, device)
    # All that a backward pass needs is kept: small images many at once, large ones one by one.
    batch = max(1, 8 * 64**2 // look.image_size**2)
    return {"fields": tuple(receptive_fields(model, some, layers, batch=min(batch, 32)))}


_LOOKS: dict[str, Callable[[nn.Module, Tensor | None, Look, torch.device], dict[str, Any]]] = {
    **dict.fromkeys(OF_ATTENTION, _attended),
    "positions": _similarity,
    "filters": _filters,
    "field": _fields,
}


def _input(images: Tensor, model: nn.Module, device: torch.device) -> Tensor:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return normalize(images.to(device), dtype)


def _free(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


@contextlib.contextmanager
def _memory_explained(name: str, image_size: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and "out of memory" not in text and "allocate memory" not in text:
            raise
        raise DataError(
            f"{name} on images of {image_size} pixels: there is not enough memory: {str(error).splitlines()[0][:200]}; "
            f"look at fewer views at once, or at smaller images"
        ) from None
