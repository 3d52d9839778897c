"""The attention of a model in training, through its engine, whichever way that has sharded the weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vit_dist.engines._collectives import broadcast_object
from vit_dist.evals import EvalContext
from vit_dist.inspect.figures import draw_look
from vit_dist.inspect.images import read_set
from vit_dist.inspect.look import SHOWN, Look, heads_of, images_at_once
from vit_dist.inspect.maps import attention_maps
from vit_dist.inspect.tokens import tokens_of
from vit_dist.scaling.report.figure_style import to_png

_ROOM = 1 << 28
"""Bytes for attention of one layer. What is free differs from rank to rank, and all have to run as many batches."""


def attended_in_training(
    context: EvalContext, url: str, count: int, views: Sequence[str]
) -> tuple[float, dict[str, bytes]]:
    """Mean attention distance in pixels, the same on every rank; on rank 0 PNGs of views by name. A collective.

    Raises:
        ConfigError: the model has no attention among patches, or not that much room is there.
        DataError: the set cannot be read.
    """
    recipe, module = context.recipe, context.engine.module
    data, name = recipe.data, recipe.model.name
    tokens = tokens_of(module, data.image_size, name)
    images, labels = read_set(url, data.image_size, data.val_fraction, wanted=count, most=count, config=data)
    batch = images_at_once(tokens, heads_of(module), _ROOM)

    def forward(some: Tensor) -> None:
        context.engine.predict(some)

    attended = attention_maps(forward, images, tokens, batch=batch, shown=SHOWN)
    distance: float = broadcast_object(float(attended.distance.mean()), context.world)
    if not context.world.is_main:
        return distance, {}
    look = Look(name, data.image_size, tuple(views), images[:SHOWN], tuple(labels[:SHOWN]), count, attended, tokens)
    return distance, {drawing.name: to_png(drawing.figure) for drawing in draw_look(look)}
