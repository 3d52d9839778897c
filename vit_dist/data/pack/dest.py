"""The destination of a packing: held for one process, and cleared of what an earlier packing left there. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator

from vit_dist.core.errors import RunError
from vit_dist.core.files import explained, file_system, is_remote, join_url, local_path
from vit_dist.data.pack.plan import PLAN_FILE
from vit_dist.data.pack.shards import STATE_FOLDER

BAD_LIST = "bad.jsonl"


def remove_markers(dest: str) -> None:
    """Remove what is needed until a packing is complete: done markers, locks, scratch."""
    if is_remote(dest):
        with explained(dest, "cleared"):
            system, path = file_system(join_url(dest, STATE_FOLDER))
            system.invalidate_cache()
            if system.exists(path):
                system.rm(path, recursive=True)
    else:
        shutil.rmtree(local_path(dest) / STATE_FOLDER, ignore_errors=True)


def clear(dest: str) -> None:
    """Remove an earlier packing: its manifest first, then done markers and shards; nothing else in the directory."""
    system, root = file_system(dest)
    with explained(dest, "cleared"):
        for folder in ("", "train", "val"):
            path = f"{root}/{folder}".rstrip("/")
            if not system.isdir(path):
                continue
            names = [e.rstrip("/").rpartition("/")[2] for e in system.ls(path, detail=False)]
            # The manifest first: a reader that comes in between finds no dataset, not one with shards missing.
            shards = [n for n in names if n.startswith("shard-") and n.endswith((".tar", ".idx.npz"))]
            for name in ["manifest.json", PLAN_FILE, BAD_LIST, *shards]:
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
        RunError: another process packs into it.
    """
    if is_remote(dest):
        yield
        return
    folder = local_path(dest) / STATE_FOLDER
    created = not folder.parent.exists()
    with explained(dest, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"lock-{label}"
    with explained(str(lock), "written"):
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
    try:
        # The kernel drops the lock when the process dies, however it dies: there is no stale one to clean up.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RunError(f"{dest}: another process is packing into it right now; wait for it, or stop it") from None
    try:
        yield
    finally:
        os.close(handle)
        lock.unlink(missing_ok=True)
        # Empty folders are left by a packing that failed before its first shard; rmdir spares the others.
        with contextlib.suppress(OSError):
            folder.rmdir()
        if created:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
