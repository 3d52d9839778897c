"""Copies of checkpoints on object storage: sent in the background, marker last; fetched where there is no local one."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vit_dist.core.errors import CheckpointError, DataError
from vit_dist.core.files import (
    copy_here,
    explained,
    file_system,
    folder_url,
    is_remote,
    join_url,
    local_path,
    make_folder,
    read_bytes,
    redact,
    write_bytes,
)
from vit_dist.core.log import log
from vit_dist.core.run.checkpoints import MARKER, parse_marker, step_of
from vit_dist.core.small_files import read_small
from vit_dist.train.checkpoint.store import FETCHING, Retention, Saved, remove, saved_of, summaries

_IN_FLIGHT = 4


class Uploader:
    """Copies committed checkpoints to a URL, one at a time; of those that wait only the newest is sent.

    Args:
        root: the run's checkpoints.
        remote: URL of the directory that shall hold the copies.
        retention: which copies stay.
    """

    def __init__(self, root: Path, remote: str, retention: Retention) -> None:
        self._root, self._remote, self._retention = root, folder_url(remote), retention
        self._waiting: Path | None = None
        self._failed: Path | None = None
        self._wake = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None

    def submit(self, checkpoint: Path) -> None:
        """Copy this checkpoint when the one on its way is there."""
        with self._wake:
            self._waiting = checkpoint
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def finish(self, timeout_s: float = 600.0) -> None:
        """Wait until nothing is on its way. A copy that failed is tried once more, then left."""
        with self._wake:
            self._wake.wait_for(lambda: not self._busy and self._waiting is None, timeout_s)
            again = self._failed
        if again is not None:
            self.submit(again)
            with self._wake:
                self._wake.wait_for(lambda: not self._busy and self._waiting is None, timeout_s)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting is not None)
                checkpoint, self._waiting, self._busy = self._waiting, None, True
            assert checkpoint is not None
            try:
                upload(checkpoint, self._remote)
                self._prune()
                self._failed = None
            except FileNotFoundError:
                # Retention has removed it meanwhile; a newer one is coming.
                self._failed = None
            except Exception as error:
                gone = not (checkpoint / MARKER).exists()
                self._failed = None if gone else checkpoint
                if not gone:
                    log(
                        f"  {redact(self._remote)}: {checkpoint.name} COULD NOT BE COPIED: {redact(str(error))}. "
                        f"Training continues; the local checkpoint is complete, and the next one is tried again"
                    )
            with self._wake:
                self._busy = False
                self._wake.notify_all()

    def _prune(self) -> None:
        copies = _copies(self._remote)
        local = {s.step: s for s in summaries(self._root)}
        # Of what is no longer here the copy's own marker is read. One that cannot be read is left, as on the disk.
        complete = [name for name, is_complete in copies.items() if is_complete]
        found = {name: local.get(step_of(name) or 0) or _remote_summary(self._remote, name) for name in complete}
        saved = {name: summary for name, summary in found.items() if summary is not None}
        keep = self._retention.steps_to_keep(list(saved.values()))
        newest = max(complete, default="")
        # Without a marker, and older than what is complete: half sent, or half removed, by an attempt that died.
        half = [name for name, is_complete in copies.items() if not is_complete and name < newest]
        fs, root = file_system(self._remote)
        for name in [*(name for name, s in saved.items() if s.step not in keep), *half]:
            # The marker first: half removed, a copy must not look complete.
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(f"{root}/{name}/{MARKER}")
            fs.rm_tree(f"{root}/{name}")


def upload(checkpoint: Path, remote: str) -> None:
    """Copy a checkpoint, several files in flight, its marker last.

    Raises:
        DataError: the store refused, or is away.
        FileNotFoundError: the checkpoint has gone meanwhile.
    """
    content = read_small(checkpoint / MARKER)
    marker, problem = parse_marker(content)
    if problem:
        raise CheckpointError(f"{checkpoint}: {problem}")
    base = join_url(remote, checkpoint.name)
    fs, root = file_system(base)

    def put(name: str) -> None:
        with explained(join_url(base, name), "written"):
            fs.put_file(str(checkpoint / name), f"{root}/{name}")

    if not is_remote(remote):
        local_path(base).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_IN_FLIGHT, "upload") as pool:
        for done in [pool.submit(put, name) for name in sorted(marker["files"])]:
            done.result()
    # Last, as on the disk: a copy without its marker is not there.
    write_bytes(join_url(base, MARKER), content)


def remote_steps(remote: str) -> list[str]:
    """Names of the checkpoints whose copies are complete, the newest first.

    Raises:
        DataError: the store cannot be asked: that is not the same as holding nothing.
    """
    return sorted((name for name, is_complete in _copies(remote).items() if is_complete), reverse=True)


def _copies(remote: str) -> dict[str, bool]:
    """Names of the checkpoints that have files there, each with whether it has its marker."""
    fs, root = file_system(folder_url(remote))
    with explained(remote, "listed"):
        fs.invalidate_cache()
        try:
            paths = fs.find(root)
        except FileNotFoundError:
            return {}
    places = [path.split("/")[-2:] for path in paths if "/" in path]
    complete = {folder for folder, name in places if name == MARKER}
    return {folder: folder in complete for folder, _ in places if step_of(folder) is not None}


def fetch(remote: str, name: str, root: Path) -> Path:
    """Download one checkpoint; it gets its own name when all of it is here.

    Raises:
        DataError: the store cannot be read.
        CheckpointError: its marker is not one.
    """
    base, partial, final = join_url(folder_url(remote), name), root / f"{FETCHING}{name}", root / name
    content = read_bytes(join_url(base, MARKER))
    # Whoever can write to the store could name any file in it: only names of ours become paths here.
    marker, problem = parse_marker(content)
    if problem:
        raise CheckpointError(f"{redact(base)}: {problem}")
    make_folder(partial)

    def get(name: str) -> None:
        copy_here(join_url(base, name), partial / name)

    with ThreadPoolExecutor(_IN_FLIGHT, "fetch") as pool:
        for done in [pool.submit(get, name) for name in sorted(marker["files"])]:
            done.result()
    write_bytes(str(partial / MARKER), content)
    with explained(str(final), "written"):
        # Whatever lies there was found damaged, or is what a kill has left.
        remove(final)
        partial.rename(final)
    return final


def _remote_summary(remote: str, name: str) -> Saved | None:
    try:
        marker, problem = parse_marker(read_bytes(join_url(join_url(remote, name), MARKER)))
        return None if problem else saved_of(marker)
    except (DataError, ValueError, KeyError, TypeError):
        return None
