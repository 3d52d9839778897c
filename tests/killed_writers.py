"""Kills a writer at each look at the file system and inside each write, fills its disk, and forbids it to write.

For each writer the state before is made, then a child process writes and dies at the n-th look (open, rename, mkdir,
remove) or at the n-th byte of a file, for every n until it comes through. What is read afterwards must be the old or
the new. With a limit that is an error instead of a death (a full disk), and on a file system that is read-only, it must
be the old, with one clear line and nothing left over. After each the writer comes through at the next try.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import VitDistError

_LOOKS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_KILLED, _REFUSED, _UNTRIED = 9, 10, 11
_CLONE_NEWNS, _MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18
_SYMPTOMS = ("disk is full", "would be larger", "read-only", "Read-only", "No space", "too large")


@dataclass(frozen=True)
class Writer:
    """What is done before, what is killed, and what is read afterwards.

    Attributes:
        before: makes the old state.
        write: makes the new one.
        read: what a reader sees.
        appends: it adds to a file, of which a crash may leave part of a line.
        silent: it never raises: what it writes is worth no error.
        also: what a reader may see besides: nothing, while what is replaced is more than one file.
        again: whether the next try makes the new state; of what a log has lost there is no next try.
    """

    before: Callable[[Path], Any]
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    appends: bool = False
    silent: bool = False
    also: tuple[Any, ...] = ()
    again: bool = True


@dataclass
class Trial:
    """How often a writer died at a look and inside a write, was refused, and met a read-only file system."""

    looks: int = 0
    bytes: int = 0
    refused: int = 0
    read_only: int = 0


def in_child(writer: Writer, folder: Path, arrange: Callable[[], None]) -> tuple[int, str]:
    """How a child that writes has ended: 0, 9 (killed at a look), 10 (a clear error) or minus a signal; the error."""
    out, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            arrange()
            writer.write(folder)
            code = 0
        except VitDistError as error:
            code = _REFUSED
            os.write(told, str(error).encode()[:4000])
        except _CannotBeTriedError:
            code = _UNTRIED
        except BaseException:
            os.write(told, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(told)
    with os.fdopen(out, "rb") as pipe:
        message = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), message


class _CannotBeTriedError(Exception):
    """This process may not make a read-only file system."""


def at_look(folder: Path, number: int) -> Callable[[], None]:
    """Die before the n-th look below a folder."""
    left = [number]

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in _LOOKS and given and str(folder) in str(given[0]):
            left[0] -= 1
            if left[0] == 0:
                os._exit(_KILLED)

    return lambda: sys.addaudithook(hook)


def at_byte(number: int, *, deadly: bool) -> Callable[[], None]:
    """Die, or fail, where a file would become longer than so many bytes."""

    def arrange() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return arrange


def on_read_only(folder: Path) -> Callable[[], None]:
    """Let the folder be on a read-only file system, for this process alone."""

    def arrange() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        where = os.fsencode(folder)
        steps: tuple[Callable[[], int], ...] = (
            lambda: library.unshare(_CLONE_NEWNS),
            lambda: library.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
            lambda: library.mount(where, where, None, _MS_BIND, None),
            lambda: library.mount(b"none", where, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY, None),
        )
        if any(step() for step in steps):
            raise _CannotBeTriedError

    return arrange


def fresh(writer: Writer, top: Path) -> tuple[Path, Any, int]:
    """A folder with the old state, what a reader sees there, and the size of its largest file."""
    folder = top / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    writer.before(folder)
    return folder, writer.read(folder), _largest(folder)


def _largest(folder: Path) -> int:
    return max((p.stat().st_size for p in folder.rglob("*") if p.is_file()), default=0)


def tried(writer: Writer, top: Path, *, looks: int, sizes: int) -> Trial:
    """Kill it at each place, fill its disk, forbid it to write.

    Args:
        writer: which.
        top: a folder to do it in.
        looks: die at about so many of its looks; 0: at every one.
        sizes: let about so many sizes be the largest of a file; 0: every seventh byte.
    """
    folder, old, _ = fresh(writer, top)
    code, message = in_child(writer, folder, lambda: None)
    assert code == 0, message
    new, largest = writer.read(folder), _largest(folder)
    assert new != old
    trial, expected = Trial(), (old, new, *writer.also)
    _killed_at_looks(writer, top, trial, expected, looks)
    for deadly in (True, False):
        _stopped_at_bytes(writer, top, trial, expected, max(7, largest // sizes if sizes else 7), deadly=deadly)
    folder, old, _ = fresh(writer, top)
    files = _files(folder)
    code, message = in_child(writer, folder, on_read_only(folder))
    if code != _UNTRIED:
        trial.read_only = 1
        assert code == (0 if writer.silent else _REFUSED), (code, message)
        assert writer.read(folder) == old
        assert _files(folder) == files
        _check_message(writer, folder, message)
    return trial


def _killed_at_looks(writer: Writer, top: Path, trial: Trial, expected: tuple[Any, ...], looks: int) -> None:
    number, step = 1, 1
    if looks:
        total = 0

        def count(event: str, given: tuple[Any, ...]) -> None:
            nonlocal total
            total += event in _LOOKS and bool(given) and str(top) in str(given[0]) and counting[0]

        counting = [False]
        folder, _, _ = fresh(writer, top)
        sys.addaudithook(count)
        counting[0] = True
        writer.write(folder)
        counting[0] = False
        step = max(1, total // looks)
    while True:
        folder, _, _ = fresh(writer, top)
        code, message = in_child(writer, folder, at_look(folder, number))
        assert writer.read(folder) in expected, ("look", number, writer.read(folder))
        if code == 0:
            return
        assert code == _KILLED, (code, message)
        trial.looks, number = trial.looks + 1, number + step
        _writes_after_all(writer, folder, expected[1])


def _stopped_at_bytes(
    writer: Writer, top: Path, trial: Trial, expected: tuple[Any, ...], step: int, *, deadly: bool
) -> None:
    size = -1
    while True:
        folder, old, largest = fresh(writer, top)
        # Appending, the file is that long already; else all sizes from nothing on.
        size = max(size + step, largest if writer.appends else 0)
        code, message = in_child(writer, folder, at_byte(size, deadly=deadly))
        seen = writer.read(folder)
        assert seen in expected, ("byte", size, seen)
        if code == 0 and (not writer.silent or deadly or seen == expected[1]):
            return
        assert code == (-signal.SIGXFSZ if deadly else 0 if writer.silent else _REFUSED), (code, message)
        if deadly:
            trial.bytes += 1
        else:
            trial.refused += 1
            assert seen == old or seen in writer.also, (size, seen)
            assert not list(folder.rglob("*.tmp*")), "something is left over"
            _check_message(writer, folder, message)
        _writes_after_all(writer, folder, expected[1])


def _files(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))


def _check_message(writer: Writer, folder: Path, message: str) -> None:
    """One line, which names a file or folder below, says what is wrong with the disk, and what to do."""
    if not writer.silent:
        assert str(folder) in message, message
        assert "\n" not in message, message
        assert any(symptom in message for symptom in _SYMPTOMS), message


def _writes_after_all(writer: Writer, folder: Path, new: Any) -> None:
    """After a death the next one writes as if nothing had been; what a cut line leaves behind hides no later line."""
    if writer.again:
        if writer.read(folder) != new:
            writer.write(folder)
        assert writer.read(folder) == new
