"""Copies of checkpoints on object storage: sent in the background, marker last; fetched where there is no local one.

Logs and records of the run go with them (core/run/copies.py), before the marker: no copy is ahead of its log.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
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
from vit_dist.core.run.checkpoints import MARKER, marker_in_place, parse_marker, step_of
from vit_dist.core.run.copies import Copies
from vit_dist.core.small_files import read_small
from vit_dist.core.store_errors import is_without_bucket
from vit_dist.train.checkpoint.store import FETCHING, Retention, Saved, missing_part, remove, saved_of, summaries

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
        self.damaged: set[int] = set()
        """Steps of copies that were found damaged: they count for nothing, and are left."""
        self._waiting: Path | None = None
        self._failed: Path | None = None
        self._logs = Copies(root.parent, remote)
        self._logs_wanted = False
        self._wake = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None

    def submit(self, checkpoint: Path) -> None:
        """Copy this checkpoint when the one on its way is there."""
        with self._wake:
            self._waiting = checkpoint
            self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    def finish(self, timeout_s: float = 600.0) -> None:
        """Wait until nothing is on its way. A copy that failed is tried once more, then left."""
        with self._wake:
            self._wake.wait_for(self._idle, timeout_s)
            again = self._failed
        if again is not None:
            self.submit(again)
            with self._wake:
                self._wake.wait_for(self._idle, timeout_s)

    def send_logs(self, timeout_s: float = 600.0) -> None:
        """Copy what logs and records say since the last checkpoint, and wait until it is there."""
        with self._wake:
            self._logs_wanted = True
            self._begin()
            self._wake.wait_for(self._idle, timeout_s)

    def _idle(self) -> bool:
        return not self._busy and self._waiting is None and not self._logs_wanted

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting is not None or self._logs_wanted)
                checkpoint, self._waiting, self._busy = self._waiting, None, True
                self._logs_wanted = False
            if checkpoint is None:
                self._copy_logs()
            else:
                self._copy(checkpoint)
            with self._wake:
                self._busy = False
                self._wake.notify_all()

    def _copy(self, checkpoint: Path) -> None:
        try:
            upload(checkpoint, self._remote, self._logs.send)
            self.damaged.discard(step_of(checkpoint.name) or 0)
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

    def _copy_logs(self) -> None:
        try:
            self._logs.send()
        # Whatever it was: what was trained is on the disk, and lost logs of an end are no reason to fail.
        except Exception as error:
            log(
                f"  {redact(self._remote)}: the end of the logs COULD NOT BE COPIED: {redact(str(error))}. They are "
                f"complete in {self._root.parent}"
            )

    def _prune(self) -> None:
        copies = _copies(self._remote)
        local = {s.step: s for s in summaries(self._root)}
        complete = [name for name, files in copies.items() if MARKER in files]
        # Of what is no longer here the copy's own marker is read. One that is damaged is left, as on the disk.
        found = {name: local.get(step_of(name) or 0) or _remote_summary(self._remote, name) for name in complete}
        saved = {
            name: summary
            for name, summary in found.items()
            if summary is not None
            and summary.step not in self.damaged
            and not missing_part(summary.parts, copies[name])
        }
        keep = self._retention.steps_to_keep(list(saved.values()))
        newest = max(saved, default="")
        # Without a marker, and older than what is complete: half sent, or half removed, by an attempt that died.
        half = [name for name, files in copies.items() if MARKER not in files and name < newest]
        fs, root = file_system(self._remote)
        for name in [*(name for name, s in saved.items() if s.step not in keep), *half]:
            # The marker first: half removed, a copy must not look complete.
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(f"{root}/{name}/{MARKER}")
            fs.rm_tree(f"{root}/{name}")


def upload(checkpoint: Path, remote: str, before_marker: Callable[[], None] = lambda: None) -> None:
    """Copy a checkpoint, several files in flight, its marker last.

    Args:
        checkpoint: a committed one.
        remote: URL of the directory that holds the copies.
        before_marker: called once the parts are there; what it raises keeps the copy from counting.

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
    before_marker()
    # Last, as on the disk: a copy without its marker is not there.
    write_bytes(join_url(base, MARKER), content)


def remote_steps(remote: str) -> list[str]:
    """Names of the checkpoints whose copies are complete, the newest first.

    Raises:
        DataError: the store cannot be asked: that is not the same as holding nothing.
    """
    return sorted((name for name, files in _copies(remote).items() if MARKER in files), reverse=True)


def _copies(remote: str) -> dict[str, dict[str, int | None]]:
    """Names of the checkpoints that have files there, each with the bytes of its files, as far as the store says."""
    fs, root = file_system(folder_url(remote))
    with explained(remote, "listed"):
        fs.invalidate_cache()
        try:
            found = fs.find(root)
        except FileNotFoundError as error:
            if is_without_bucket(error):
                raise
            return {}
    copies: dict[str, dict[str, int | None]] = {}
    for path, entry in found.items():
        *_, folder, name = ("", *path.split("/"))
        if step_of(folder) is not None:
            size = entry.get("size")
            copies.setdefault(folder, {})[name] = None if size is None else int(size)
    return copies


def fetch(remote: str, name: str, root: Path) -> Path:
    """Download one checkpoint; it gets its own name when all of it is here.

    Raises:
        DataError: the store cannot be read.
        CheckpointError: its marker is not one, or a part is missing or of another size.
    """
    base, partial, final = join_url(folder_url(remote), name), root / f"{FETCHING}{name}", root / name
    content = read_bytes(join_url(base, MARKER))
    # Whoever can write to the store could name any file in it: only names of ours become paths here.
    marker, problem = marker_in_place(content, name)
    if problem:
        raise CheckpointError(f"{redact(base)}: {problem}")
    make_folder(partial)

    def get(name: str) -> None:
        fs, path = file_system(join_url(base, name))
        with explained(join_url(base, name), "read"):
            # Asked first: what is larger than it should be must not fill the disk.
            found: dict[str, int | None] = {}
            with contextlib.suppress(FileNotFoundError):
                found[name] = fs.info(path).get("size")
            problem = missing_part({name: marker["files"][name]["bytes"]}, found)
            if problem:
                raise CheckpointError(f"{redact(base)}: {problem}")
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
        marker, problem = marker_in_place(read_bytes(join_url(join_url(remote, name), MARKER)), name)
        return None if problem else saved_of(marker)
    except (DataError, ValueError, KeyError, TypeError):
        return None
