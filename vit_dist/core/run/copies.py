"""A run's logs and records on a store, beside the copies of its checkpoints: sent as they grow, brought back when lost.

What is carried is names.CARRIED. Event files only grow, so that what was sent once is never shortened: a file is sent
whole when it has changed. The run's name (run.json) is the first to arrive, and what lies under one of another name is
never written over. No torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_dist.core.errors import DataError, MissingError, RefusalError
from vit_dist.core.files import (
    copy_here,
    explained,
    file_system,
    folder_url,
    is_remote,
    join_url,
    local_path,
    read_bytes,
    redact,
)
from vit_dist.core.run import names, records
from vit_dist.core.small_files import DamagedError, checked, parse_json, read_small
from vit_dist.core.store_errors import is_without_bucket

# Not named after the file: what a kill leaves of an event file must not be read as one.
_PARTIAL = ".being-copied"
_COUNTED = {names.BY_RANKS, names.BY_SUPERVISOR, names.BY_PEOPLE, names.HEARTBEAT, *names.FORMER} - {
    names.FORMER_EVALUATED
}


class Copies:
    """The copies of one run's logs and records. For one thread at a time.

    Args:
        directory: of the run.
        remote: URL or path that `checkpoint.remote` gives.
    """

    def __init__(self, directory: Path, remote: str) -> None:
        self._directory, self._remote = directory, folder_url(remote)
        self._sent: dict[str, tuple[int, int]] = {}
        self._there: dict[str, int] | None = None

    def send(self) -> None:
        """Send what has changed since the last call.

        Raises:
            DataError: the store refused, or is away.
            RefusalError: the copies of another run lie there.
        """
        if self._there is None:
            self._check_whose()
            self._there = _listed(self._remote)
        for name in self._files():
            path = self._directory / name
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            stamp = (status.st_size, status.st_mtime_ns)
            # A log of an attempt before, that was sent by it.
            is_there = name.startswith(f"{names.EVENTS}/") and self._there.get(name) == status.st_size
            if self._sent.get(name) != stamp and not is_there:
                _put(path, join_url(self._remote, name))
            self._sent[name] = stamp

    def _files(self) -> Iterator[str]:
        """What there is to be carried, in the order of CARRIED, by names relative to the run's directory."""
        for name in names.CARRIED:
            path = self._directory / name
            # What a link leads to may be somebody else's.
            if path.is_symlink():
                continue
            if path.is_dir():
                yield from (f"{name}/{inner}" for inner in _inside(path, names.CARRIED_FOLDERS[name]))
            elif path.is_file():
                yield name

    def _check_whose(self) -> None:
        theirs = _identity(self._remote)
        try:
            ours = _parsed(read_small(self._directory / names.RUN), str(self._directory / names.RUN))
        except FileNotFoundError:
            return
        if theirs is not None and theirs != ours:
            raise RefusalError(_of_another(self._remote, ""))


def bring_back(directory: Path, remote: str, identity: Mapping[str, Any]) -> int:
    """Fetch the logs and records of a run whose directory is lost; where it is not, nothing is asked or done.

    Args:
        directory: of the run.
        remote: URL or path that `checkpoint.remote` gives.
        identity: what is known by now of what the run is; copies of another run are refused.

    Returns:
        How many files were fetched.

    Raises:
        DataError: the store cannot be read.
        RefusalError: the copies of another run lie there.
    """
    if not remote or not _lost(directory) or not holds_copies_of(remote, identity):
        return 0
    count, begun = 0, os.path.lexists(directory / names.BY_SUPERVISOR)
    # The run's name last: where a kill comes in between, all that is missing is fetched by the next attempt.
    there = sorted(_listed(remote), key=lambda name: (name == names.RUN, name))
    for name in there:
        target = directory / name
        if name.partition("/")[0] in names.MADE_ANEW or os.path.lexists(target):
            continue
        # A supervisor has begun to count attempts here: two counts of one run would be taken for one.
        if begun and name in _COUNTED:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(_PARTIAL)
        copy_here(join_url(folder_url(remote), name), partial)
        partial.replace(target)
        count += 1
    return count


def holds_copies_of(remote: str, identity: Mapping[str, Any]) -> bool:
    """Whether copies of a run lie at a place; False where there are none at all.

    Args:
        remote: URL or path that `checkpoint.remote` gives.
        identity: what is known by now of what the run is.

    Raises:
        DataError: the store cannot be read.
        RefusalError: the copies of another run lie there.
    """
    theirs = _identity(remote)
    if theirs is None:
        return False
    changed = [key for key, value in identity.items() if key in theirs and theirs[key] != value]
    if changed:
        raise RefusalError(_of_another(remote, f" (they differ in {', '.join(sorted(changed))})"))
    return True


def check_place(remote: str) -> None:
    """Ask the store of copies whether it can be listed, before anything is begun. A local folder may come to be later.

    Raises:
        DataError: it cannot: the credentials, the bucket or the address are wrong, or it does not answer.
    """
    system, root = file_system(folder_url(remote))
    if not is_remote(remote):
        return
    with explained(remote, "listed"):
        try:
            system.ls(root)
        except FileNotFoundError as error:
            # Nothing was written yet.
            if is_without_bucket(error):
                raise


def _inside(folder: Path, depth: int) -> Iterator[str]:
    """Files of a folder by their names in it, those of folders in it too, as deep as that; no links."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_file():
            yield path.name
        elif depth > 1 and path.is_dir():
            yield from (f"{path.name}/{inner}" for inner in _inside(path, depth - 1))


def _lost(directory: Path) -> bool:
    return not (directory / names.RUN).exists() or not any((directory / names.EVENTS).glob("*"))


def _listed(remote: str) -> dict[str, int]:
    """The carried files that a store holds: size by name relative to the run's directory."""
    system, root = file_system(folder_url(remote))
    with explained(remote, "listed"):
        system.invalidate_cache()
        try:
            found = {path: info for path, info in system.find(root).items() if path.startswith(f"{root}/")}
        except FileNotFoundError as error:
            if is_without_bucket(error):
                raise
            return {}
    sizes = {path.removeprefix(f"{root}/"): int(info.get("size") or 0) for path, info in found.items()}
    return {name: size for name, size in sizes.items() if _is_carried(name)}


def _is_carried(name: str) -> bool:
    """Whether a name on a store, where anybody may have written, is one that this module writes."""
    folder, slash, inner = name.partition("/")
    if not slash:
        return name in names.CARRIED and name not in names.CARRIED_FOLDERS
    parts = inner.split("/")
    return len(parts) <= names.CARRIED_FOLDERS.get(folder, 0) and all(names.is_plain_name(part) for part in parts)


def _identity(remote: str) -> dict[str, Any] | None:
    """Whose copies lie there, as run.json says it; None where there are none."""
    url = join_url(folder_url(remote), names.RUN)
    try:
        return _parsed(read_bytes(url), redact(url))
    except MissingError:
        return None


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = checked(parse_json(content), records.FIELDS.get(names.RUN, {})).get("identity", {})
    except DamagedError as error:
        raise DataError(f"{where}: damaged: {error}") from None
    return found


def _of_another(remote: str, what: str) -> str:
    return (
        f"{redact(remote)}: the checkpoints and logs of another run lie there{what}; give this one a checkpoint.remote "
        f"of its own, such as {redact(folder_url(remote))}-2"
    )


def _put(path: Path, url: str) -> None:
    with explained(url, "written"):
        if is_remote(url):
            system, target = file_system(url)
            system.put_file(str(path), target)
            return
        # A store shows the old file or the new one; so does a disk where the new one is renamed into its place.
        here = local_path(url)
        here.parent.mkdir(parents=True, exist_ok=True)
        partial = here.with_name(_PARTIAL)
        shutil.copyfile(path, partial)
        partial.replace(here)
