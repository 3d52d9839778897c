"""What there is to look at in a model, by name. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vit_dist.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class View:
    """One thing to look at: what it shows in a line, and whether it takes images, or the weights alone."""

    name: str
    shows: str
    needs_images: bool


VIEWS = {
    view.name: view
    for view in (
        View("rollout", "where in an image the output looks, through all layers (attention rollout)", True),
        View("distance", "how far each head of each layer looks, in pixels (mean attention distance)", True),
        View("layers", "which patches the class token looks at, layer by layer", True),
        View("positions", "how alike the position embeddings of any two patches are", False),
        View("filters", "principal components of the filters on the image's pixels", False),
        View("field", "which pixels a unit in the middle depends on, stage by stage (effective receptive field)", True),
    )
}
OF_ATTENTION = frozenset({"rollout", "distance", "layers"})
"""Those that come out of one forward pass."""


def chosen_views(names: Sequence[str]) -> tuple[str, ...]:
    """The views of these names, each once, in the order of a page; none given: all.

    Raises:
        ConfigError: there is no such view.
    """
    for name in names:
        if name not in VIEWS:
            raise ConfigError(
                f"{name!r} is nothing to look at{did_you_mean(name, VIEWS)}; there are {', '.join(VIEWS)}"
            )
    return tuple(name for name in VIEWS if name in names or not names)
