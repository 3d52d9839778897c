"""A recipe's plug-in files: found, imported before the recipe is checked, and part of what a run is. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, RefusalError
from vit_dist.core.files import write_bytes
from vit_dist.core.plugins import PluginFile, file_of, load_file
from vit_dist.core.run import names

KEY = "plugins"
"""In recipes, and in a run's identity."""


def anchored(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A mapping read from a file in `folder`, its plug-ins' relative paths counted from there."""
    value = raw.get(KEY)
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        return raw  # none, or wrong: `load_plugins` says so
    return {**raw, KEY: [str(folder.absolute() / Path(p).expanduser()) if ":/" not in p else p for p in paths]}


def load_plugins(value: object, where: str) -> tuple[str, ...]:
    """Import the files that a recipe names. Returns their absolute paths.

    Args:
        value: of the key `plugins`: a path or a list of paths, relative ones from the current directory.
        where: which recipe, for messages.

    Raises:
        ConfigError: no list of paths; a file is missing, fails, or registers a name that there is already.
    """
    paths = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
    if paths is None or not all(isinstance(p, str) and p for p in paths):
        raise ConfigError(f"{where}: {KEY}: expected paths of .py files, such as [my_plugin.py]; got {value!r}")
    found = anchored({KEY: paths}, Path.cwd())[KEY]
    for path in found:
        try:
            load_file(Path(path))
        except ConfigError as error:
            raise ConfigError(f"{where}: {KEY}: {error}") from None
    return tuple(found)


def plugin_files(recipe: Recipe) -> dict[str, PluginFile]:
    """'model', 'optim', 'schedule' -> the plug-in file that defines it. Engines and evaluators change no result."""
    files = {key: file_of(type(getattr(recipe, key))) for key in ("model", "optim", "schedule")}
    return {key: file for key, file in files.items() if file is not None}


def plugin_identity(recipe: Recipe) -> dict[str, Any]:
    """The part of a run's identity that says which plug-in code it computes with, by content; {} without."""
    digests = {key: file.digest for key, file in plugin_files(recipe).items()}
    return {KEY: digests} if digests else {}


def check_plugins(recipe: Recipe, run: Mapping[str, Any] | None, where: Path) -> None:
    """Refuse to resume a run whose plug-in code has changed.

    Args:
        recipe: of now.
        run: what the run's `run.json` says; None where it has not begun.
        where: the run's directory, with copies of what it began with.

    Raises:
        RefusalError: names the file.
    """
    before = (run or {}).get("identity", {}).get(KEY, {})
    for key, file in (plugin_files(recipe) if run is not None else {}).items():
        known = before.get(key)
        if known != file.digest:
            copy = next(iter(sorted((where / names.PLUGINS).glob(f"*-{str(known)[:8]}.py"))), None) if known else None
            kept = f" (a copy is {copy})" if copy is not None else ""
            began = (
                f"has changed since this run began: {file.digest[:8]} now, {known[:8]} then"
                if known
                else ("was not what this run began with")
            )
            raise RefusalError(
                f"{where}: the plug-in {file.path}, which defines {key} {getattr(recipe, key).name!r}, {began}. Bring "
                f"back what it was{kept}, or start in another directory"
            )


def with_copies(recipe: Recipe, run_dir: Path) -> Recipe:
    """The recipe with copies of its plug-in files in the run's directory, as they were imported.

    Later edits of the files do not reach jobs that wait, nor what looks at the run once it is done.

    Raises:
        DataError: they cannot be written.
    """
    copies = [copy_file(load_file(Path(path)), run_dir / names.PLUGINS) for path in recipe.plugins]
    return recipe.model_copy(update={"plugins": tuple(map(str, copies))}) if copies else recipe


def copy_file(file: PluginFile, folder: Path) -> Path:
    """Write the content that was imported into a folder, unless it is there. Returns the copy's absolute path.

    Names differ where contents do: a job that waits keeps the one it was given.

    Raises:
        DataError: it cannot be written.
    """
    mark = f"-{file.digest[:8]}"
    copy = folder.absolute() / f"{file.path.stem.removesuffix(mark)}{mark}.py"
    if not copy.is_file() or copy.read_bytes() != file.content:
        write_bytes(str(copy), file.content)
    return copy
