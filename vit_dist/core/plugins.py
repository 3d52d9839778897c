"""Plug-ins from outside the package: files that a recipe names, and modules that installed packages announce.

Either registers what it brings when it is imported, as our own files do. A file is imported once for its content, under
a name made of it: the same on every rank, wherever the file lies. What it defines is known by that name afterwards.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import REGISTRIES, error_text, load_installed, registering


@dataclass(frozen=True)
class PluginFile:
    """A file that was imported: where it lay, and the bytes that it had then."""

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        """32 hexadecimal digits of the content."""
        return hashlib.sha256(self.content).hexdigest()[:32]

    @property
    def module(self) -> str:
        """The name it is imported under."""
        return f"vit_dist_plugin_{self.digest[:16]}"


_files: dict[str, PluginFile] = {}


def load_file(path: Path) -> PluginFile:
    """Import a plug-in file, unless its content is imported already. One that has changed takes its old self's place.

    Raises:
        ConfigError: missing, no Python file, fails while it is imported, or registers a name that there is already.
    """
    file = _read(path)
    if file.module in _files:
        return file
    load_installed()  # first: what the file imports of an installed plug-in stays that one's
    for old in [f for f in _files.values() if f.path == path]:
        for registry in REGISTRIES:
            registry.forget(str(path))
        del _files[old.module]
    spec = importlib.util.spec_from_file_location(file.module, path, loader=_Loader(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.module] = module  # first: pydantic and dataclasses look their annotations up there
    try:
        with registering(str(path)):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[file.module]
        raise ConfigError(f"{path}{_line(error, path)}: {error_text(error)}{_hint(error, path)}") from None
    _files[file.module] = file
    return file


def file_of(cls: type) -> PluginFile | None:
    """The file that defines a class; None for classes of installed modules."""
    return _files.get(cls.__module__)


class _Loader(SourceFileLoader):
    """Runs the bytes that were hashed, whatever has become of the file since; leaves no .pyc beside it."""

    def __init__(self, file: PluginFile) -> None:
        super().__init__(file.module, str(file.path))
        self._content = file.content

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        return self.source_to_code(self._content, self.path)


def _read(path: Path) -> PluginFile:
    if ":/" in str(path):
        raise ConfigError(f"{path}: a plug-in is a file on this machine or a shared file system, not a URL; copy it")
    if path.suffix != ".py":
        what = "a directory" if path.is_dir() else "no Python file"
        raise ConfigError(f"{path}: {what}; a plug-in is one .py file, or an installed package (docs/plugins.md)")
    try:
        return PluginFile(path, path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; relative paths count from the recipe that names them") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _line(error: BaseException, path: Path) -> str:
    """', line 12': the innermost line of the file that took part in an error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _hint(error: BaseException, path: Path) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and path.with_name(f"{missing}.py").is_file():
        return "; a plug-in file stands alone: make several files an installed package (docs/plugins.md)"
    return ""
