"""Looking inside a trained model: where it attends, what its positions and filters have become, how far its units see.

`from vit_dist.inspect import look_inside` looks at any model of this project, and at timm's; the other names are the
methods by themselves. They are loaded when they are first asked for, and torch with them.

views.py        what there is to look at; no torch
tokens.py       how a model's tokens lie: class token, registers, patches on their grid
attention.py    attention weights out of any forward pass, fused kernels included
maps.py         rollout, mean attention distance, where the class token looks
weights.py      cosine similarity of position embeddings, principal components of filters
field.py        effective receptive fields
look.py         all of these over some images, within the memory there is
images.py       images out of files, folders and packed sets
figures.py, write.py    pictures, tables and one page
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_dist.inspect.attention import watched_attention as watched_attention
    from vit_dist.inspect.field import Field as Field
    from vit_dist.inspect.field import receptive_fields as receptive_fields
    from vit_dist.inspect.look import Look as Look
    from vit_dist.inspect.look import look_inside as look_inside
    from vit_dist.inspect.maps import Attended as Attended
    from vit_dist.inspect.maps import attention_maps as attention_maps
    from vit_dist.inspect.maps import mean_distance as mean_distance
    from vit_dist.inspect.maps import rolled_out as rolled_out
    from vit_dist.inspect.maps import uniform_distance as uniform_distance
    from vit_dist.inspect.tokens import Tokens as Tokens
    from vit_dist.inspect.tokens import tokens_of as tokens_of
    from vit_dist.inspect.weights import filter_components as filter_components
    from vit_dist.inspect.weights import position_similarity as position_similarity
    from vit_dist.inspect.write import write_look as write_look

_MODULES = {
    "attention": ("watched_attention",),
    "field": ("Field", "receptive_fields"),
    "look": ("Look", "look_inside"),
    "maps": ("Attended", "attention_maps", "mean_distance", "rolled_out", "uniform_distance"),
    "tokens": ("Tokens", "tokens_of"),
    "weights": ("filter_components", "position_similarity"),
    "write": ("write_look",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
