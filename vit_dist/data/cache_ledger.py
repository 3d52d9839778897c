"""How many bytes the cache of shards holds: never more than its bound, over all processes of a node. No torch.

Before anything is written its bytes are taken from the ledger, a number in a file that one process changes at a time.
The number is never below what lies there: a writer that is killed leaves it too high, until the files are counted anew,
which is done at the start, and before anything is removed to make room. What is being written meanwhile is counted too:
each writer holds a lock on a file with its bytes in it, and the kernel frees the locks of the dead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vit_dist.core.locks import LockHeldError, held, held_soon, holder_of
from vit_dist.core.small_files import DamagedError, read_small
from vit_dist.data.cache_files import DRAWERS, LEDGER, LEDGER_LOCK, LOCKS, WRITING

_LENGTH, _SAID = 64, 4096
_SPARE = 20
"""One part in so many is made free at once, so that files are not counted for each write."""
_WAIT_S, _WAIT_AT_START_S = 0.25, 5.0
_FULL_S = 30.0
"""So long nothing is counted again once there was nothing to remove."""


@dataclass(frozen=True)
class Kept:
    """A chunk that lies in the cache.

    Attributes:
        used_ns: when it was last.
        num_bytes: on the disk.
        path: of its file.
    """

    used_ns: int
    num_bytes: int
    path: Path

    @property
    def key(self) -> str:
        """Of its shard."""
        return self.path.name.partition("-")[0]


def kept(folder: Path) -> tuple[list[Kept], int]:
    """The chunks of a cache, and the bytes of all that lies in it.

    Raises:
        OSError: it cannot be looked into.
    """
    found, total = [], 0
    for name in ("", LOCKS, WRITING, *DRAWERS):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / name) as entries:
            for entry in entries:
                # Others take away what they have locked.
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_blocks * 512
                    if name in DRAWERS:
                        found.append(Kept(status.st_mtime_ns, status.st_blocks * 512, Path(entry.path)))
    return found, total


class Ledger:
    """Gives room in a cache, and makes it.

    Chunks of shards that this process itself reads stay, since each is read once an epoch: whichever of them was
    removed for another, a hit would be lost for each that is gained. (With the least recently used removed, a cache of
    half the set would have hits for 15% of it; this one has 50%.) All others go, the least recently used first.

    Args:
        folder: of the cache.
        bound: bytes that it may hold.
        own: the keys of shards that this process reads.
    """

    def __init__(self, folder: Path, bound: int, own: Callable[[], Collection[str]]) -> None:
        self._folder, self._bound, self._own = folder, bound, own
        self._full_until = 0.0
        self.evicted_bytes = 0

    def begin(self) -> None:
        """Count what lies there, and keep to the bound, unless another process does just that.

        Raises:
            OSError: the disk does not take it.
        """
        with contextlib.suppress(LockHeldError), self._locked(_WAIT_AT_START_S):
            for path in (self._folder / LOCKS).iterdir():
                # Of processes that were killed. Whoever takes it at this very moment takes another one then.
                if holder_of(path) is None:
                    path.unlink(missing_ok=True)
            self._write(self._make_room(0))

    @contextlib.contextmanager
    def room(self, need: int) -> Iterator[bool]:
        """Within the block `need` bytes may be written; false: none may, since there is no room.

        Raises:
            OSError: the disk does not take it.
        """
        with contextlib.ExitStack() as stack:
            yield self._take(need, stack)

    def clear(self) -> int:
        """Remove all chunks; how many there were.

        Raises:
            LockHeldError: others write without a pause.
            OSError: they cannot be removed.
        """
        with self._locked(_WAIT_AT_START_S):
            in_flight = self._in_flight()
            found, total = kept(self._folder)
            for chunk in found:
                chunk.path.unlink(missing_ok=True)
                total -= chunk.num_bytes
            self._write(total + in_flight)
            return len(found)

    def _take(self, need: int, stack: contextlib.ExitStack) -> bool:
        # What is said while it is written takes room too.
        need += _SAID
        if need > self._bound or time.monotonic() < self._full_until:
            return False
        try:
            with self._locked(_WAIT_S):
                used = self._read()
                if used is None or used + need > self._bound:
                    used = self._make_room(need)
                if used + need > self._bound:
                    self._full_until = time.monotonic() + _FULL_S
                    self._write(used)
                    return False
                # First the number: whoever is killed in between leaves it too high, and not too low.
                self._write(used + need)
                writing = self._folder / WRITING / f"{os.getpid()}-{secrets.token_hex(6)}"
                stack.enter_context(held(writing, str(need), remove=True))
        except LockHeldError:
            return False
        return True

    def _locked(self, wait_s: float) -> contextlib.AbstractContextManager[None]:
        return held_soon(self._folder / LEDGER_LOCK, wait_s)

    def _make_room(self, need: int) -> int:
        """Count what there is, and remove what has to go for `need` bytes more; what is left, with what is written."""
        # In this order: who has written all meanwhile would be in neither else.
        in_flight = self._in_flight()
        found, total = kept(self._folder)
        total += in_flight
        if total + need <= self._bound:
            return total
        own = self._own()
        oldest = sorted(found, key=lambda chunk: chunk.used_ns)
        others = [chunk for chunk in oldest if chunk.key not in own]
        total = self._remove(others, total, self._bound - need - self._bound // _SPARE)
        # Another bound than before: what is over it goes, whosever it is.
        return self._remove([chunk for chunk in oldest if chunk.key in own], total, self._bound)

    def _remove(self, chunks: list[Kept], total: int, least: int) -> int:
        for chunk in chunks:
            if total <= least:
                break
            with contextlib.suppress(FileNotFoundError):
                chunk.path.unlink()
            total -= chunk.num_bytes
            self.evicted_bytes += chunk.num_bytes
        return total

    def _in_flight(self) -> int:
        """Bytes that others write at this moment; what the dead have left of that is removed."""
        total = 0
        for path in (self._folder / WRITING).iterdir():
            holder = holder_of(path)
            if holder is None:
                path.unlink(missing_ok=True)
            else:
                total += int(holder or 0)
        return total

    def _read(self) -> int | None:
        """What the ledger says; None where it says nothing that holds."""
        try:
            words = read_small(self._folder / LEDGER, _LENGTH).decode("ascii", "replace").split()
        except (FileNotFoundError, DamagedError):
            return None
        # After a crash of the machine files and number may be of different moments.
        return int(words[0]) if len(words) == 2 and words[0].isdigit() and words[1] == _boot() else None

    def _write(self, used: int) -> None:
        handle = os.open(self._folder / LEDGER, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(handle, f"{used} {_boot()}".ljust(_LENGTH).encode(), 0)
        finally:
            os.close(handle)


def _boot() -> str:
    """Names the time since this machine was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().decode("ascii", "replace").strip() or "?"
    except OSError:
        return "?"
