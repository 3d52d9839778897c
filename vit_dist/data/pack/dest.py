"""The destination of a packing: held for one process, and cleared of what an earlier packing left there. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator

from vit_dist.core.errors import RunError
from vit_dist.core.files import explained, file_system, is_remote, join_url, local_path
from vit_dist.data.pack.plan import PLAN
from vit_dist.data.pack.shards import RECEIPTS

BAD_LIST = "bad.jsonl"


def remove_receipts(dest: str) -> None:
    """Remove what was kept of shards while they were packed."""
    if is_remote(dest):
        with explained(dest, "cleared"):
            system, path = file_system(join_url(dest, RECEIPTS))
            system.invalidate_cache()
            if system.exists(path):
                system.rm(path, recursive=True)
    else:
        shutil.rmtree(local_path(dest) / RECEIPTS, ignore_errors=True)


def clear(dest: str) -> None:
    """Remove an earlier packing: its manifest first, then receipts and shards; nothing else in the directory."""
    system, root = file_system(dest)
    with explained(dest, "cleared"):
        for folder in ("", "train", "val"):
            path = f"{root}/{folder}".rstrip("/")
            if not system.isdir(path):
                continue
            names = [e.rstrip("/").rpartition("/")[2] for e in system.ls(path, detail=False)]
            ours = [n for n in names if n.startswith("shard-") and n.endswith((".tar", ".idx.npz"))]
            for name in ["manifest.json", PLAN, BAD_LIST, *ours]:
                if name in names:
                    system.rm_file(f"{path}/{name}")
    if is_remote(dest):
        remove_receipts(dest)
    else:  # the lock and the catalogue of this very process lie there
        for receipt in (local_path(dest) / RECEIPTS).glob("*.json"):
            receipt.unlink()


@contextlib.contextmanager
def claimed(dest: str, label: str) -> Iterator[None]:
    """Hold a local destination for this process.

    Raises:
        RunError: another process packs into it.
    """
    if is_remote(dest):
        yield
        return
    folder = local_path(dest) / RECEIPTS
    created = not folder.parent.exists()
    with explained(dest, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"lock-{label}"
    with explained(str(lock), "written"):
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RunError(f"{dest}: another process is packing into it right now; wait for it, or stop it") from None
    try:
        yield
    finally:
        os.close(handle)
        lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what is left of a packing that failed before its first shard
            folder.rmdir()
        if created:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
