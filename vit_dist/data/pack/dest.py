"""The destination of a packing: held for one process, and cleared of what an earlier packing left there. No torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vit_dist.core import locks
from vit_dist.core.errors import RunError
from vit_dist.core.files import explained, file_system, is_remote, join_url, local_path, redact, remove_tree
from vit_dist.core.folders import refuse_others
from vit_dist.data.pack.copies import COPIES_LIST
from vit_dist.data.pack.plan import PLAN_FILE
from vit_dist.data.pack.shards import STATE_FOLDER

BAD_LIST = "bad.jsonl"
_TRIES = 100


def refuse_strangers(dest: str) -> None:
    """Nothing, where a local destination is new or empty, or holds a packing or a set; before anything is read.

    Raises:
        ConfigError: other files lie there, among which shards would be strewn.
    """
    # Under a prefix of a store anything may lie, and asking what does may take an hour.
    if is_remote(dest):
        return
    folder = local_path(dest)
    # What packed there, or what set lies there, is asked once the source is known.
    if any((folder / name).exists() for name in (PLAN_FILE, "manifest.json")):
        return
    refuse_others(folder, lambda _: False, what="a packing", do="give another destination, or --force")


def remove_markers(dest: str) -> None:
    """Remove what is needed until a packing is complete: done markers, locks, scratch."""
    if is_remote(dest):
        with explained(dest, "cleared"):
            system, path = file_system(join_url(dest, STATE_FOLDER))
            system.invalidate_cache()
            if system.exists(path):
                system.rm_tree(path)
    else:
        remove_tree(local_path(dest) / STATE_FOLDER)


def clear(dest: str) -> None:
    """Remove an earlier packing: its manifest first, then done markers and shards; nothing else in the directory."""
    system, root = file_system(dest)
    with explained(dest, "cleared"):
        for folder in ("", "train", "val"):
            path = f"{root}/{folder}".rstrip("/")
            if not system.isdir(path):
                continue
            names = system.names(path)
            # The manifest first: a reader that comes in between finds no dataset, not one with shards missing.
            shards = [n for n in names if n.startswith("shard-") and n.endswith((".tar", ".idx.npz"))]
            for name in ["manifest.json", PLAN_FILE, BAD_LIST, COPIES_LIST, *shards]:
                if name in names:
                    system.rm_file(f"{path}/{name}")
    if is_remote(dest):
        remove_markers(dest)
    else:
        # Not the folder itself: the lock and the listing of this very process lie there.
        for marker in (local_path(dest) / STATE_FOLDER).glob("*.json"):
            marker.unlink()


@contextlib.contextmanager
def claimed(dest: str, label: str) -> Iterator[None]:
    """Hold a local destination for this process.

    Raises:
        RunError: another process packs into it, or its state lies behind a link.
    """
    if is_remote(dest):
        yield
        return
    folder = local_path(dest) / STATE_FOLDER
    if folder.is_symlink():
        raise RunError(f"{folder}: a symbolic link, through which nothing is written or removed; remove it")
    created = not folder.parent.exists()
    lock = folder / f"lock-{label}"
    with contextlib.ExitStack() as stack:
        with explained(str(lock), "written"):
            _lock(stack, lock, dest)
        try:
            yield
        finally:
            stack.close()
            # Empty folders are left by a packing that failed before its first shard; rmdir spares the others.
            with contextlib.suppress(OSError):
                folder.rmdir()
            if created:
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()


def _lock(stack: contextlib.ExitStack, lock: Path, dest: str) -> None:
    for left in reversed(range(_TRIES)):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.held(lock, f"process {os.getpid()}\n", remove=True))
        except locks.LockHeldError as error:
            raise RunError(
                f"{redact(dest)}: another process is packing into it right now ({error}); wait for it, or stop it"
            ) from None
        except (FileNotFoundError, FileExistsError):
            # A packing that ends removes its empty folder, perhaps just when another makes it.
            if not left:
                raise
            continue
        return
