"""The cache of shards that a machine gives its jobs: a directory and a size, in variables that cluster files set."""

from __future__ import annotations

import os
from collections.abc import Mapping

DIR_VARIABLE = "VIT_DIST_DATA_CACHE"
SIZE_VARIABLE = "VIT_DIST_DATA_CACHE_SIZE"


def of_machine(environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Directory and size as the environment has them; each '' where it says none.

    Args:
        environ: of this process.
    """
    env = os.environ if environ is None else environ
    return env.get(DIR_VARIABLE, ""), env.get(SIZE_VARIABLE, "")
