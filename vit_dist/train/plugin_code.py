"""The plug-in code of a run: the same on every rank, and part of what the run is."""

from __future__ import annotations

from typing import Any

from vit_dist.config.plugins import plugin_files, plugin_identity
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import RunError
from vit_dist.core.world import World
from vit_dist.engines._collectives import all_gather_object


def agreed_plugins(recipe: Recipe, world: World) -> dict[str, Any]:
    """`plugin_identity`, which is the same on all ranks. A collective.

    Raises:
        RunError: ranks have imported different versions of a file, which was edited while they started.
    """
    everyone = all_gather_object(plugin_identity(recipe), world)
    other = next((rank for rank, digests in enumerate(everyone) if digests != everyone[0]), None)
    if other is not None:
        files = ", ".join(sorted({str(file.path) for file in plugin_files(recipe).values()}))
        raise RunError(f"plugins: rank {other} has read another version of {files} than rank 0; start again")
    return everyone[0]
