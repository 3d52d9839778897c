"""`--plugin FILE` of the verbs that take no recipe, and installed plug-ins that cannot be imported. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vit_dist.core.places import local_option


def add_plugin(parser: argparse._ActionsContainer) -> None:
    """The option, which may be given several times."""
    parser.add_argument(
        "--plugin",
        type=local_option,
        metavar="FILE",
        action="append",
        default=[],
        help="a .py file that brings more; docs/plugins.md",
    )


def load_plugins(paths: Sequence[Path]) -> None:
    """Import the files.

    Raises:
        ConfigError: one is missing, fails, or registers a name that there is already.
    """
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.plugins import load_file

    for path in paths:
        try:
            load_file(path.expanduser().absolute())
        except ConfigError as error:
            raise ConfigError(f"--plugin: {error}") from None


def warn_of_broken() -> None:
    """Say on stderr which installed plug-ins could not be imported: what they would bring is not in a list."""
    from vit_dist.core.log import log
    from vit_dist.core.registry import load_installed

    for plugin in load_installed():
        if plugin.problem:
            log(f"warning: {plugin.problem}")
