"""What the verbs of `vit-dist study` share: the arguments that name a study, and the console."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_dist.core.errors import ConfigError
from vit_dist.core.tables import make_console as make_console
from vit_dist.core.tables import print_table as print_table

if TYPE_CHECKING:
    from vit_dist.study.grid import Cell, StudyConfig
    from vit_dist.study.local import CellState


def study_parser(verb: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser of one verb: its description, its examples, and the words that name a study."""
    parser = argparse.ArgumentParser(
        prog=f"vit-dist study {verb}",
        description=description,
        epilog="examples:\n" + "\n".join(f"  vit-dist study {verb} {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="STUDY [k=v ...]",
        help="a study file, or the name of one in configs/studies; k=v changes a key of the study, or, for any other "
        "key, of the recipe of every cell",
    )
    return parser


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Where the run directories are."""
    parser.add_argument("--runs", metavar="DIR", default="runs", help="run directories are DIR/<study>/<cell> (runs)")


def split_words(words: Sequence[str], verb: str) -> tuple[str, list[str]]:
    """The study's name and the overrides."""
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        got = f"{len(names)}: {', '.join(names)}" if names else "none"
        raise ConfigError(f"vit-dist study {verb}: give one study, got {got}")
    return names[0], [word for word in words if "=" in word]


def grid_line(study: StudyConfig) -> str:
    """The shape of a grid: '3 families x 3 sizes x 1 seed'."""
    counts = (("family", "families", study.families), ("size", "sizes", study.subsets), ("seed", "seeds", study.seeds))
    return " x ".join(f"{len(values)} {one if len(values) == 1 else many}" for one, many, values in counts)


def state_word(cell: Cell, state: CellState) -> str:
    """A cell's state for a table; nothing where it was never started."""
    if state.recipe_hash is not None and state.recipe_hash != cell.hash:
        return "other recipe"
    return "" if state.state == "missing" else state.state
