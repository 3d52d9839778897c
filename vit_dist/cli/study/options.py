"""What the verbs of `vit-dist study` share: the arguments that name a study, that study, its records, the console."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_dist.core.errors import ConfigError
from vit_dist.core.places import any_option, local_option, local_or_override
from vit_dist.core.units import counted
from vit_dist.core.urls import parent_url

if TYPE_CHECKING:
    from vit_dist.study.grid import Cell, StudyConfig
    from vit_dist.study.local import CellState


def study_parser(
    verb: str, description: str, *examples: str, word: Callable[[str], str] = local_or_override
) -> argparse.ArgumentParser:
    """A parser of one verb: its description, its examples, and the words that name a study.

    `parse_intermixed_args` it, since overrides may stand between options.

    Args:
        verb: its name.
        description: what it does.
        examples: what may stand behind it.
        word: type of the words that name the study.
    """
    parser = argparse.ArgumentParser(
        prog=f"vit-dist study {verb}",
        description=description,
        epilog="examples:\n" + "\n".join(f"  vit-dist study {verb} {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        type=word,
        nargs="*",
        metavar="STUDY [k=v ...]",
        help="a study file, or the name of one in configs/studies; k=v changes a key of the study, or, for any other "
        "key, of the recipe of every cell",
    )
    return parser


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Where the run directories are."""
    parser.add_argument(
        "--runs",
        type=local_option,
        metavar="DIR",
        default="runs",
        help="run directories are DIR/<study>/<cell> (default runs)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Whether records are written; see `write_records`."""
    parser.add_argument(
        "--json", type=any_option, metavar="FILE", help="write a record a run there; -: to standard output, and no more"
    )


def write_records(target: str, records: Sequence[dict[str, Any]]) -> bool:
    """Write records as JSON to a URL; True where they went to standard output, which is to hold nothing else."""
    from vit_dist.core.files import write_bytes

    text = json.dumps(records, indent=1) + "\n"
    if target == "-":
        print(text, end="")  # noqa: T201
        return True
    write_bytes(target, text.encode())
    return False


def split_words(words: Sequence[str], prog: str) -> tuple[str, list[str]]:
    """The study's name and the overrides.

    Raises:
        ConfigError: no study was named, or several.
    """
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        got = f"{len(names)}: {', '.join(names)}" if names else "none"
        raise ConfigError(f"{prog}: give one study, got {got}")
    return names[0], [word for word in words if "=" in word]


@dataclass(frozen=True)
class NamedStudy:
    """The study that a command line names: its file, its cells, and the directory of their run directories."""

    config: StudyConfig
    cells: list[Cell]
    directory: Path

    @property
    def shape(self) -> str:
        """The shape of the grid: '3 families x 3 sizes x 1 seed'."""
        config = self.config
        counts = (
            ("family", "families", config.families),
            ("size", "sizes", config.subsets),
            ("seed", "seeds", config.seeds),
        )
        grid = " x ".join(f"{len(values)} {one if len(values) == 1 else many}" for one, many, values in counts)
        return f"{grid}, each with {counted(len(config.branches), 'branch')}" if config.branches else grid


def named_study(words: Sequence[str], prog: str, runs: Path) -> NamedStudy:
    """Load and plan the study that the words of a command line name.

    Args:
        words: one study and overrides.
        prog: the command, for messages.
        runs: where the study's directory is.

    Raises:
        ConfigError: not one study, or mistakes in it.
    """
    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.kept import find_study

    name, overrides = split_words(words, prog)
    config = load_study(find_study(name, Path(runs)), overrides)
    directory = runs / config.name
    return NamedStudy(config, [cell.within(directory) for cell in plan(config)], directory)


def refused_by_name(cells: Sequence[Cell], directory: Path) -> dict[str, list[str]]:
    """What cells name beside their sets and cannot have, stores of copies, weights to begin from, lists of keys, asked
    once each: the cells by reason, for `cell_lines`.
    """
    from vit_dist.core.errors import VitDistError
    from vit_dist.train.plan import check_named

    asked, refused = set[str](), dict[str, list[str]]()
    # A place that cannot be had is asked once, too: each may take its time.
    known: dict[tuple[str, ...], str] = {}
    for cell in cells:
        recipe, run_dir = cell.recipe, directory / cell.name
        weights = recipe.init.weights if recipe.init is not None else ""
        begun = str(run_dir) if run_dir.exists() else ""
        named = (recipe.data.takedown, parent_url(recipe.checkpoint.remote), weights, begun)
        if named not in known:
            try:
                check_named(recipe, run_dir, asked)
                known[named] = ""
            except VitDistError as error:
                known[named] = str(error)
        if known[named]:
            refused.setdefault(f"cannot begin: {{}}: {known[named]}", []).append(cell.name)
    return refused


def state_word(cell: Cell, state: CellState) -> str:
    """A cell's state for a table; a directory that another recipe was trained in is not this cell's."""
    if state.recipe_hash is not None and state.recipe_hash != cell.hash:
        return "other recipe"
    return state.state
