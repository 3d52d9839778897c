"""Kills each writer of small files at each of its looks at the file system and inside each write: a worker of a test.

python killed_writers.py FOLDER

For each writer the state before is made, then a child process writes and dies at the n-th look (open, rename, mkdir,
remove) or at the n-th byte of a file, for every n until it comes through. What is read afterwards must be the old or
the new. With a limit that is an error instead of a death (a full disk), it must be the old, with one clear error and
nothing left over. Prints how often each was killed.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import bad_nodes
from vit_dist.core.errors import VitDistError
from vit_dist.core.files import write_bytes
from vit_dist.core.run import history
from vit_dist.core.run.history import Progress

_LOOKS = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
_KILLED, _REFUSED = 9, 10


@dataclass(frozen=True)
class Writer:
    """What is done before, what is killed, and what is read afterwards.

    Attributes:
        before: makes the old state.
        write: makes the new one.
        read: what a reader sees.
        appends: it adds to a file, of which a crash may leave part of a line.
        several: it writes several files, so that it may be refused half-way.
    """

    before: Callable[[Path], Any]
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    appends: bool = False
    several: bool = False


def _attempts(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (one.attempt, one.opened, one.trained, one.told, one.saved, one.cause) for one in history.read(folder).attempts
    ]


def _begin(folder: Path) -> None:
    history.begin(folder, launcher="local", devices=2, step=0)


def _take(folder: Path) -> None:
    history.take(folder, ranks=2, saved=0)


def _close(folder: Path) -> None:
    begun = history.read(folder).last
    assert begun is not None
    history.close(folder, begun, cause="done", action="none", code=0, reached=5, saved=5, at=9.0)


def _submit(job: str) -> Callable[[Path], None]:
    return lambda folder: history.submitted(folder, job, history.submitting(folder, {"script": job * 50}))


def _progress(step: int) -> Progress:
    return Progress(1, 5.0, step, 10 * step, 100, 2.5, {"train": 1.0}, {"loss": 1.5})


WRITERS = {
    "heartbeat": Writer(
        lambda folder: history.beat(folder, _progress(1)),
        lambda folder: history.beat(folder, _progress(2)),
        lambda folder: history.read(folder).progress.step,
    ),
    "an attempt's ranks": Writer(
        lambda folder: (_begin(folder), _take(folder)),
        lambda folder: history.training(folder, 1),
        _attempts,
        appends=True,
    ),
    "ranks' end": Writer(
        lambda folder: (_begin(folder), _take(folder), history.training(folder, 1)),
        lambda folder: history.end(folder, "stopped", _progress(7), reason="SIGTERM", saved=7),
        _attempts,
        appends=True,
    ),
    "a beginning": Writer(_begin, _begin, _attempts, appends=True),
    "a closing": Writer(_begin, _close, _attempts, appends=True),
    "a submission's number": Writer(
        lambda folder: history.submitting(folder, {}),
        lambda folder: history.submitted(folder, "7", 0),
        lambda folder: history.read(folder).job_id,
        appends=True,
    ),
    "a requeue": Writer(
        lambda folder: (_submit("7")(folder), _begin(folder)),
        lambda folder: history.requeue(folder, "7"),
        lambda folder: history.read(folder).requeues,
        appends=True,
    ),
    "a cancel": Writer(
        lambda folder: history.ask_cancel(folder, "7"),
        lambda folder: history.ask_cancel(folder, "8"),
        lambda folder: history.read(folder).cancel,
    ),
    "a directory that is taken": Writer(
        _take,
        _take,
        lambda folder: (
            [
                *re.findall(r"attempt (\d+) on", history.superseded_by(folder, "another")),
                len(history.read(folder).findings),
            ]
        ),
        several=True,
    ),
    "evaluation": Writer(
        lambda folder: history.evaluated(folder, [{"name": "c"}], 1, {"top1": 0.1}),
        lambda folder: history.evaluated(folder, [{"name": "c"}], 2, {"top1": 0.2}),
        lambda folder: [history.evaluation(folder, [{"name": "c"}], n) for n in (1, 2)],
        appends=True,
    ),
    "bad nodes": Writer(
        lambda folder: bad_nodes.add(folder, "n1", "it is slow", now=1.0),
        lambda folder: bad_nodes.add(folder, "n2", "it is gone", now=1.0),
        lambda folder: sorted(bad_nodes.active(folder, now=2.0)),
        appends=True,
    ),
    "any file": Writer(
        lambda folder: write_bytes(str(folder / "manifest.json"), b"old" * 50),
        lambda folder: write_bytes(str(folder / "manifest.json"), b"new" * 60),
        lambda folder: (folder / "manifest.json").read_bytes(),
    ),
    "a new file": Writer(
        lambda folder: None,
        lambda folder: write_bytes(str(folder / "deep" / "manifest.json"), b"new" * 60),
        lambda folder: (
            (folder / "deep" / "manifest.json").exists() and (folder / "deep" / "manifest.json").read_bytes()
        ),
    ),
}


def in_child(writer: Writer, folder: Path, arrange: Callable[[], None]) -> int:
    """How a child that writes has ended: 0, 9 (killed at a look), 10 (one clear error), or minus a signal."""
    child = os.fork()
    if child == 0:
        arrange()
        code = 1
        try:
            writer.write(folder)
            code = 0
        except VitDistError:
            code = _REFUSED
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


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


def fresh(writer: Writer, top: Path) -> tuple[Path, Any, int]:
    """A folder with the old state, what a reader sees there, and the size of its largest file."""
    folder = top / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    writer.before(folder)
    return folder, writer.read(folder), max((p.stat().st_size for p in folder.rglob("*") if p.is_file()), default=0)


def outcomes(writer: Writer, top: Path) -> tuple[Any, Any]:
    """What a reader sees before and after an undisturbed writer."""
    folder, old, _ = fresh(writer, top)
    assert in_child(writer, folder, lambda: None) == 0
    new = writer.read(folder)
    assert new != old
    return old, new


def killed_everywhere(writer: Writer, top: Path) -> dict[str, int]:
    """Kill it at each place; how often it died at a look and inside a write, and how often it was refused."""
    expected = outcomes(writer, top)
    kills = {"looks": 0, "bytes": 0, "refused": 0}
    number = 1
    while True:
        folder, _, _ = fresh(writer, top)
        code = in_child(writer, folder, at_look(folder, number))
        assert writer.read(folder) in expected, ("look", number, writer.read(folder))
        if code == 0:
            break
        assert code == _KILLED, code
        kills["looks"], number = kills["looks"] + 1, number + 1
        _writes_after_all(writer, folder, expected[1])
    for deadly in (True, False):
        size, code = -1, 1
        while code:
            folder, old, largest = fresh(writer, top)
            # Appending, the file is that long already; else all sizes from nothing on.
            size = max(size + 7, largest if writer.appends else 0)
            code = in_child(writer, folder, at_byte(size, deadly=deadly))
            assert writer.read(folder) in expected, ("byte", size, writer.read(folder))
            if code == 0:
                break
            assert code == (-signal.SIGXFSZ if deadly else _REFUSED), code
            kills["bytes" if deadly else "refused"] += 1
            if not deadly:
                assert writer.read(folder) == old or writer.several
                assert not list(folder.rglob("*.tmp")), "something is left over"
            _writes_after_all(writer, folder, expected[1])
    return kills


def _writes_after_all(writer: Writer, folder: Path, new: Any) -> None:
    """After a death the next one writes as if nothing had been; what a cut line leaves behind hides no later line."""
    if writer.read(folder) != new:
        writer.write(folder)
    assert writer.read(folder) == new


def main() -> None:
    """Entry."""
    top = Path(sys.argv[1])
    print(json.dumps({name: killed_everywhere(writer, top) for name, writer in WRITERS.items()}))


if __name__ == "__main__":
    main()
