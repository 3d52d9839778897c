"""Whose a folder is: one that a verb writes many files into is new, empty, or its own. No torch.

Hidden files and what file systems and desktops leave in a folder are nobody's, and no reason to refuse it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from vit_dist.core.errors import ConfigError
from vit_dist.core.terminal import clean

_NOBODYS = frozenset({"lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"})
_SHOWN = 3


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what is hidden or nobody's; nothing where there is no folder.

    Raises:
        ConfigError: it is no folder, or cannot be looked into.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise ConfigError(f"{folder}: it, or something above it, is a file; name a directory") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be looked into: {error.strerror}; name another directory") from None
    return [folder / name for name in sorted(names) if not name.startswith(".") and name not in _NOBODYS]


def refuse_others(folder: Path, is_own: Callable[[Path], bool], *, what: str, do: str) -> None:
    """Nothing, where a folder is not there, is empty, or holds nothing but what is its verb's own.

    Args:
        folder: to be written into.
        is_own: of something that lies in it.
        what: that the folder would have to be, such as 'a run'.
        do: what to do in place of it, such as 'give another --run-dir'.

    Raises:
        ConfigError: there is something else in it, which is named; or it is no folder.
    """
    others = [path for path in visible(folder) if not is_own(path)]
    if not others:
        return
    shown = ", ".join(clean(path.name)[:80] + ("/" if path.is_dir() else "") for path in others[:_SHOWN])
    more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
    raise ConfigError(
        f"{folder}: holds something else than {what}: {shown}{more}. Nothing was written there; {do}: one that "
        f"is new or empty, such as {folder / 'new'}"
    )


def check_writable(path: Path, option: str) -> None:
    """Refuse a place where a file could not be made, before hours go into what it is to hold.

    The nearest folder above it that is there is written to: rights alone do not tell of disks that are read only.

    Args:
        path: of a file or folder to come.
        option: that names it, such as --out.

    Raises:
        ConfigError: nothing can be written there.
    """
    if path.exists() and not path.is_dir() and not path.is_file():
        # A pipe, or /dev/stdout.
        return
    above = path if path.is_dir() else path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except NotADirectoryError:
        raise ConfigError(f"{option} {path}: {above} is a file; name a place in a directory") from None
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: nothing can be written in {above}: {error.strerror}; name another place"
        ) from None
