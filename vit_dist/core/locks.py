"""Locks on files: taken for a process and gone with it, however it dies; looked at without being in anybody's way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_BUSY = (errno.EAGAIN, errno.EACCES)
_LOOKED_AT_S = 0.01
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02


class LockHeldError(Exception):
    """Another process holds a lock; `holder` is what it wrote about itself."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder or "unknown process")
        self.holder = holder


@contextlib.contextmanager
def held(path: Path, holder: str = "", *, remove: bool = False) -> Iterator[None]:
    """Hold the lock at `path`, whose folder is there, for as long as the block lasts.

    Args:
        path: of the lock file.
        holder: who holds it, for others to read.
        remove: leave no file behind.

    Raises:
        LockHeldError: another process holds it.
        OSError: the file cannot be made, or the file system knows no locks.
    """
    handle = _take(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.encode(), 0)
        yield
    finally:
        if remove:
            # While it is held: afterwards it may be another process's, and a third one would take a new file.
            path.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def held_soon(
    path: Path, wait_s: float, *, holder: str = "", remove: bool = False, stopped: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """As `held`, but where another process, or another thread, holds the lock, wait for it.

    Args:
        path, holder, remove: see `held`.
        wait_s: at most so long.
        stopped: asked meanwhile; true: wait no longer.

    Raises:
        LockHeldError: it is held by another still.
        OSError: see `held`.
    """
    until, pause = time.monotonic() + wait_s, _FIRST_PAUSE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(path, holder, remove=remove))
                break
            except LockHeldError:
                if time.monotonic() >= until or stopped():
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        yield


def holder_of(path: Path) -> str | None:
    """What the process wrote that holds a lock; None where none does. Nobody who wants it is kept from it.

    Raises:
        OSError: the file cannot be opened, or the file system knows no locks.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # Shared: two who look do not see each other, and whoever takes it tells them from a holder.
        return None if _lock(handle, fcntl.LOCK_SH) else _text(handle)
    finally:
        os.close(handle)


def _take(path: Path) -> int:
    while True:
        # Not through a symbolic link: what lies behind it may be another run's.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if _lock(handle, fcntl.LOCK_EX):
                if _is_at(handle, path):
                    return handle
                # Removed by the one who held it, after it was opened here.
            elif not _lock(handle, fcntl.LOCK_SH):
                raise LockHeldError(_text(handle))
            else:
                # Somebody only looks.
                fcntl.flock(handle, fcntl.LOCK_UN)
                time.sleep(_LOOKED_AT_S)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            raise
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _text(handle: int) -> str:
    return os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
