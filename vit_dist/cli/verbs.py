"""What commands with verbs of their own share: how help looks, and which function runs a verb. No torch."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

from vit_dist.core.errors import ConfigError, did_you_mean


class Verb(NamedTuple):
    """Where a verb is: a module of the command's package, a function that takes the arguments; and what it does."""

    module: str
    function: str
    summary: str


def verb_parser(prog: str, description: str, epilog: str, *, allow_abbrev: bool = True) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of its texts as they are written."""
    return argparse.ArgumentParser(
        prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
    )


def run_verb(package: str, summary: str, verbs: Mapping[str, Verb], argv: list[str]) -> int:
    """Run one verb of `vit-dist COMMAND`, or print what verbs there are; the exit code.

    Args:
        package: of the command, such as 'vit_dist.cli.data'.
        summary: what the command does.
        verbs: by name. Their modules are imported when they are run, so that help is there at once.
        argv: the verb and its arguments.

    Raises:
        ConfigError: no such verb.
        VitDistError: what the verb finds wrong.
    """
    command = f"vit-dist {package.rpartition('.')[2]}"
    if not argv or argv[0] in {"-h", "--help"}:
        lines = "\n".join(f"  {name:<8} {verb.summary}" for name, verb in verbs.items())
        sys.stdout.write(
            f"usage: {command} VERB ...\n\n{summary}\n\nverbs:\n{lines}\n\n"
            f"`{command} VERB --help` explains a verb and gives examples.\n"
        )
        return 0 if argv else 2
    name, *rest = argv
    if name not in verbs:
        raise ConfigError(f"{command}: unknown verb {name!r}{did_you_mean(name, verbs)}")
    verb = verbs[name]
    code = int(getattr(importlib.import_module(f"{package}.{verb.module}"), verb.function)(rest))
    # Where the reader of a pipe, such as `head`, has gone, that shows here, where it is handled, and not at exit.
    sys.stdout.flush()
    return code
