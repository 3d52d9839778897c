"""The file of a study beside its runs, by which it is found again. No torch."""

from __future__ import annotations

from pathlib import Path

from vit_dist.config.load import find_config, to_yaml
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import write_bytes
from vit_dist.core.run.names import RECIPE, RUN
from vit_dist.study.grid import StudyConfig

KEPT = "study.yaml"


def keep_study(study: StudyConfig, directory: Path) -> None:
    """Write a study as it was read, with what the command line said, beside its runs: by that they are found again.

    Args:
        study: as `load_study` gave it.
        directory: of its runs.

    Raises:
        DataError: it cannot be written.
    """
    recipe = str(find_config(study.recipe, "recipes").absolute())
    write_bytes(str(directory / KEPT), to_yaml({**study.as_read, "recipe": recipe}).encode())


def find_study(name: str, runs: Path) -> str:
    """The file of a study that is named by its file, by a name in configs/studies, or by its directory of runs.

    Args:
        name: as it was typed.
        runs: where directories of studies lie.

    Raises:
        ConfigError: there is none.
    """
    try:
        return str(find_config(name, "studies"))
    except ConfigError:
        folder = next((one for one in (runs / name, Path(name)) if one.is_dir()), None)
        if folder is None:
            raise
        if (folder / KEPT).is_file():
            return str(folder / KEPT)
        if not any((inner / RUN).is_file() or (inner / RECIPE).is_file() for inner in folder.iterdir()):
            raise
    raise ConfigError(
        f"no study file {name!r}; {folder} holds runs, but not the study's file, {KEPT}: name the file that they were "
        f"begun with, or see them by `vit-dist status {folder}`"
    )
