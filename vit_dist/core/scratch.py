"""Folders for as long as a process needs them; what one that was killed has left is removed by the next. No torch.

Such a folder is named after its process: one whose process lives, is on another machine or is another user's is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from vit_dist.core.files import explained, remove_tree
from vit_dist.core.process import lives


@contextlib.contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A new hidden folder in `folder`, which is made where it is missing; gone afterwards.

    Args:
        folder: where; of several users, maybe.
        name: what it is for, such as 'start'.

    Raises:
        DataError: it cannot be made.
    """
    head = f".{name}-{re.sub(r'[^A-Za-z0-9.]+', '-', socket.gethostname())}-"
    path = folder / f"{head}{os.getpid()}-{secrets.token_hex(4)}"
    with explained(str(path), "made"):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left(folder, head)
        path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            remove_tree(path)


def in_scratch(path: Path) -> bool:
    """Whether a file lies in such a folder: written for a process, and nothing that a person knows."""
    return re.fullmatch(r"\..+-[0-9]{1,9}-[0-9a-f]{8}", path.parent.name) is not None


def _remove_left(folder: Path, head: str) -> None:
    pattern = re.compile(re.escape(head) + r"([0-9]{1,9})-[0-9a-f]{8}")
    with os.scandir(folder) as entries:
        found = [(entry, pattern.fullmatch(entry.name)) for entry in entries if entry.name.startswith(head)]
    for entry, named in found:
        with contextlib.suppress(OSError):
            ours = entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
            if named is not None and ours and not lives(int(named[1])):
                remove_tree(Path(entry.path))
