"""Which kind of source SRC is. No torch."""

from __future__ import annotations

from pathlib import Path

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import is_remote, local_path, redact
from vit_dist.data.pack.sources import Source, find_idx, folder_source, idx_source


def open_source(url: str, scratch: Path, *, split_name: str = "") -> Source:
    """The source at a path or URL.

    Args:
        url: of a folder with a directory per class, or a local folder of IDX files.
        scratch: a local folder that is there until the packing ends.
        split_name: which part of a folder of IDX files.

    Raises:
        DataError: missing, or nothing that can be packed.
        ConfigError: an option that does not fit.
    """
    if not is_remote(url):
        path = local_path(url)
        if not path.exists():
            raise DataError(f"{redact(url)}: no such file or directory, so nothing can be packed; check the path")
        if path.is_dir() and find_idx(path):
            return idx_source(path, split_name, scratch)
        if path.is_file():
            raise DataError(f"{redact(url)}: a file of an unknown kind; expected a folder with a directory per class")
    if split_name:
        raise ConfigError(f"--split-name {split_name}: {redact(url)} holds no IDX files, so there is no part to choose")
    return folder_source(url)
