"""What lies in a directory that is packed, on a disk or in a store. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable

from vit_dist.core.files import explained, file_system, is_remote, local_path
from vit_dist.data.members import IMAGE_EXTENSIONS


def list_directory(url: str, hidden: Callable[[str], None] = lambda _: None) -> tuple[list[str], list[tuple[str, int]]]:
    """Names of the directories, and names and sizes of the files in a directory, each sorted. Hidden ones are left out.

    Args:
        url: of the directory.
        hidden: called with the name of each that is left out, a directory's with a slash behind it.

    Raises:
        DataError: missing, not a directory, or not readable.
    """
    directories: list[str] = []
    files: list[tuple[str, int]] = []
    unseen: list[str] = []
    with explained(url, "listed"):
        if is_remote(url):
            system, path = file_system(url)
            for listed in system.ls(path):
                name = listed["name"].rstrip("/").rpartition("/")[2]
                if listed["name"].rstrip("/") == path.rstrip("/"):
                    continue
                if name.startswith("."):
                    unseen.append(f"{name}/" if listed["type"] == "directory" else name)
                    continue
                if listed["type"] == "directory":
                    directories.append(name)
                else:
                    files.append((name, int(listed["size"] or 0)))
        else:
            with os.scandir(local_path(url)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        unseen.append(f"{entry.name}/" if entry.is_dir() else entry.name)
                        continue
                    if entry.is_dir():
                        directories.append(entry.name)
                    elif entry.is_file():
                        files.append((entry.name, entry.stat().st_size))
                    else:
                        # A link to nowhere: it is counted as unreadable when it is packed.
                        files.append((entry.name, 0))
    for name in sorted(unseen):
        hidden(name)
    return sorted(directories), sorted(files)


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and "." in name
