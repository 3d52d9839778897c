"""TensorBoard event files -> series of numbers and texts: files, runs, and trees of runs, local or by URL.

Reads what TensorBoard reads, in both forms of its scalars, by whomever it was written. Files come in blocks, so that
memory does not grow with a file's length; `decode.py` decodes them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import DataError
from vit_dist.core.events.decode import Decoder, Part, tag_filter
from vit_dist.core.files import explained, file_system, is_remote, local_path, redact
from vit_dist.core.store_errors import is_without_bucket

_BLOCK_BYTES = 4 << 20
# Larger: each block is a request, and a store takes tens of milliseconds to answer one.
_REMOTE_BLOCK_BYTES = 32 << 20
_REMOTE_THREADS = 16


class Series(NamedTuple):
    """The values of one scalar tag, by ascending step: int64 [n], float64 [n], float64 [n] (seconds since 1970)."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    wall_times: NDArray[np.float64]


@dataclass(frozen=True)
class EventFile:
    """What one event file says, in the order it was written.

    `purge_step` is the step from which on it overrides earlier files, if it is a restart's. `problem` says why the
    file was not read to its end, if so.
    """

    url: str
    started: float
    scalars: dict[str, Series]
    texts: dict[str, list[tuple[int, str]]]
    purge_step: int | None
    problem: str | None


@dataclass(frozen=True)
class RunLog:
    """What the event files of one directory say together, each step of each tag once."""

    url: str
    scalars: dict[str, Series] = field(default_factory=dict)
    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def last_text(self, tag: str) -> str | None:
        """The text of the highest step of a tag."""
        by_step = self.texts.get(tag)
        return by_step[max(by_step)] if by_step else None


@dataclass(frozen=True)
class FileStamp:
    """An event file as its store lists it. `mark` changes when its bytes do: the ETag, or else the time of change."""

    url: str
    size: int
    mark: str


def event_stamps(url: str) -> tuple[dict[str, list[FileStamp]], list[str]]:
    """The event files under a directory, at any depth: {directory relative to `url`: [files]}, sorted; and remarks.

    Local links to directories are followed, as TensorBoard follows them, each real directory once. What a link should
    lead to and does not is a remark, and so is a directory that may not be listed.

    Raises:
        DataError: no such directory, or no permission to list it.
    """
    if not is_remote(url):
        return _local_stamps(local_path(url), url)
    _, top = file_system(url)
    prefix = f"{url.partition('://')[0]}://"
    directories: dict[str, list[FileStamp]] = {}
    for stamp in _list(url, deep=True):
        parent = stamp.url.rpartition("/")[0]
        relative = parent.removeprefix(prefix).removeprefix(top).strip("/") or "."
        directories.setdefault(relative, []).append(stamp)
    return directories, []


def _local_stamps(root: Path, url: str) -> tuple[dict[str, list[FileStamp]], list[str]]:
    """See `event_stamps`."""
    with explained(url, "listed"):
        if not root.is_dir():
            raise DataError(f"{redact(url)}: no such directory; give the one that holds the logs")
        list(root.iterdir())
    tree = _LocalTree(root)
    links = tree.walk(root)
    # Links when all real directories are known: a run has its own name where it lies here itself.
    while links:
        links = [deeper for link in sorted(links) for deeper in tree.walk(link)]
    return dict(sorted(tree.directories.items())), tree.remarks


@dataclass
class _LocalTree:
    """The event files below a local directory, each once, however many names it has there."""

    root: Path
    directories: dict[str, list[FileStamp]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    _seen: dict[tuple[int, int], str] = field(default_factory=dict)

    def walk(self, top: Path) -> list[Path]:
        """Note the files below a directory; returns the links to directories below it, which are not entered."""
        links: list[Path] = []
        if self._is_known(top, "directory"):
            return links
        for folder, below, files in os.walk(top, onerror=self._unreadable):
            here = Path(folder)
            if here != top and self._is_known(here, "directory"):
                below.clear()
                continue
            links += [here / name for name in below if (here / name).is_symlink()]
            found = [stamp for name in sorted(files) if (stamp := self._file(here / name)) is not None]
            if found:
                self.directories[self._name(here)] = found
        return links

    def _file(self, path: Path) -> FileStamp | None:
        # A link that leads nowhere counts as a file while a tree is walked.
        if path.is_symlink() and not path.exists():
            self.remarks.append(f"{self._name(path)}: a link to {path.readlink()}, which is not there")
            return None
        if "tfevents" not in path.name or not path.is_file() or self._is_known(path, "file"):
            return None
        return _local_stamp(path)

    def _is_known(self, path: Path, what: str) -> bool:
        """Whether a file or directory was met under another name; a loop of links ends here."""
        status = path.stat()
        first = self._seen.setdefault((status.st_dev, status.st_ino), self._name(path))
        if first != self._name(path):
            self.remarks.append(f"{self._name(path)}: the same {what} as {first}; counted once")
        return first != self._name(path)

    def _unreadable(self, error: OSError) -> None:
        self.remarks.append(f"{self._name(Path(error.filename))}: cannot be listed: {error.strerror}; passed over")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _local_stamp(path: Path) -> FileStamp:
    # Of the file itself, also where the name is a link: the link does not change when the file grows.
    status = path.stat()
    return FileStamp(str(path), status.st_size, str(status.st_mtime))


def read_run(url: str, tags: Collection[str] | None = None) -> RunLog:
    """All event files directly in a directory, merged.

    Files are taken in the order of their first event. A restart at step s drops what was logged before of step s and
    later; of what is then logged twice, the later counts.

    Args:
        url: a directory, local or of any scheme fsspec knows.
        tags: read only these, * and ? stand for any characters; None reads all.

    Raises:
        DataError: the directory or a file cannot be read, or the directory holds no event file.
    """
    files = _list(url, deep=False)
    if not files:
        raise DataError(f"{redact(url)}: holds no TensorBoard event files")
    return merge_files(url, [read_events(file.url, tags) for file in files])


def merge_files(url: str, files: Sequence[EventFile]) -> RunLog:
    """The logs of all attempts of one run as one (the rules are `read_run`'s)."""
    # By the wall time of the first event: names of other writers need not sort by time.
    files = sorted(files, key=lambda file: (file.started, file.url))
    texts: dict[str, dict[int, str]] = {}
    parts: dict[str, list[Series]] = {}
    for file in files:
        # A killed attempt has logged steps beyond its last checkpoint; the restart trains these steps again, and may
        # not reach all of them. Keeping the old values would mix two trajectories in one curve.
        if file.purge_step is not None:
            for tag, series in parts.items():
                parts[tag] = [_before(one, file.purge_step) for one in series]
            texts = {
                tag: {step: text for step, text in by_step.items() if step < file.purge_step}
                for tag, by_step in texts.items()
            }
        for tag, one in file.scalars.items():
            parts.setdefault(tag, []).append(one)
        for tag, written in file.texts.items():
            texts.setdefault(tag, {}).update(written)
    return RunLog(
        url,
        {tag: merged for tag, series in parts.items() if len((merged := _last_written(series)).steps)},
        {tag: by_step for tag, by_step in texts.items() if by_step},
        tuple(file.url for file in files),
        tuple(f"{file.url}: {file.problem}" for file in files if file.problem),
    )


def _before(series: Series, step: int) -> Series:
    keep = series.steps < step
    return Series(series.steps[keep], series.values[keep], series.wall_times[keep])


def _last_written(series: Sequence[Series]) -> Series:
    columns = series[0] if len(series) == 1 else (np.concatenate(c) for c in zip(*series, strict=True))
    steps, values, wall_times = columns
    if len(steps) < 2 or (steps[1:] > steps[:-1]).all():
        return Series(steps, values, wall_times)
    # Stable, so that equal steps stay in the order they were written and the last of them is the later one.
    order = np.argsort(steps, kind="stable")
    order = order[np.append(steps[order][1:] != steps[order][:-1], True)]
    return Series(steps[order], values[order], wall_times[order])


def read_events(url: str, tags: Collection[str] | None = None) -> EventFile:
    """One event file, up to its last whole record.

    Args:
        url: local path or any URL fsspec knows.
        tags: read only these, * and ? stand for any characters; None reads all.

    Raises:
        DataError: the file cannot be read at all.
    """
    return _collected(url, _blocks(url), tags)


def read_many(urls: Sequence[str], tags: Collection[str] | None = None) -> Iterator[EventFile]:
    """Event files in the order given. Those of a store are fetched by several threads, which wait for the network.

    Local files are read one after another: decoding holds the interpreter, and more threads were slower.
    """
    if not urls or not is_remote(urls[0]):
        yield from (read_events(url, tags) for url in urls)
        return
    with ThreadPoolExecutor(_REMOTE_THREADS, "events") as pool:
        yield from pool.map(lambda url: read_events(url, tags), urls)


def _blocks(url: str) -> Iterator[bytes]:
    with explained(url, "read"):
        if not is_remote(url):
            with local_path(url).open("rb", buffering=0) as file:
                while block := file.read(_BLOCK_BYTES):
                    yield block
            return
        system, path = file_system(url)
        # Up to the size it has now: a run in progress may append while it is read.
        begin, size = 0, system.size(path)
        while begin < size:
            end = min(size, begin + _REMOTE_BLOCK_BYTES)
            yield system.cat_file(path, begin, end)
            begin = end


def _collected(url: str, blocks: Iterable[bytes], tags: Collection[str] | None) -> EventFile:
    decoder = Decoder(tag_filter(tags))
    for block in blocks:
        decoder.feed(block)
    decoder.finish()
    restarts = _Restarts(decoder.purges)
    scalars = {tag: _series(parts, restarts) for tag, parts in decoder.parts.items()}
    texts = {}
    for tag, written in decoder.texts.items():
        records, steps = (np.array([one[i] for one in written], np.int64) for i in range(2))
        void = restarts.make_void(records, steps).tolist()
        texts[tag] = [(step, text) for (_, step, text), dropped in zip(written, void, strict=True) if not dropped]
    lowest = min((step for _, step in decoder.purges), default=None)
    return EventFile(url, decoder.started, scalars, texts, lowest, decoder.problem)


class _Restarts:
    """The restarts that one file tells of: (record, first step that is trained again), by ascending record."""

    def __init__(self, purges: Sequence[tuple[int, int]]) -> None:
        self._at = np.array([at for at, _ in purges], np.int64)
        firsts = np.array([first for _, first in purges], np.int64)
        # The lowest step of this restart and all later ones. A forged file may hold a million of them.
        self._lowest = np.minimum.accumulate(firsts[::-1])[::-1]

    def make_void(self, records: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a restart that was logged after a record says that its step is trained again: bool [n]."""
        void = np.zeros(len(records), np.bool_)
        if len(self._at):
            later = np.searchsorted(self._at, records, side="right")
            followed = later < len(self._at)
            void[followed] = steps[followed] >= self._lowest[later[followed]]
        return void


def _series(parts: Sequence[Part], restarts: _Restarts) -> Series:
    """The values of a tag in the order they were written, without those that a restart in the same file made void."""
    record, steps, values, walls = (
        parts[0] if len(parts) == 1 else (np.concatenate(c) for c in zip(*parts, strict=True))
    )
    # Parts are by shape: records decoded together come before others that stand between them in the file.
    if len(record) > 1 and not (record[1:] >= record[:-1]).all():
        order = np.argsort(record, kind="stable")
        record, steps, values, walls = record[order], steps[order], values[order], walls[order]
    void = restarts.make_void(record, steps)
    if void.any():
        steps, values, walls = steps[~void], values[~void], walls[~void]
    return Series(steps, values, walls)


def _list(url: str, *, deep: bool) -> list[FileStamp]:
    """The event files in a directory, or at any depth below it, as URLs of the same scheme, sorted."""
    fs, root = file_system(url)
    with explained(url, "listed"):
        # Runs grow while they are watched, and fsspec keeps listings.
        fs.invalidate_cache()
        try:
            # `find` says nothing of what it may not see, `ls` does.
            entries: Mapping[str, Mapping[str, object]] = {entry["name"]: entry for entry in fs.ls(root)}
        except FileNotFoundError as error:
            if is_without_bucket(error):
                raise
            raise DataError(f"{redact(url)}: no such directory; give the one that holds the logs") from None
        if deep:
            entries = fs.find(root)
    prefix = f"{url.partition('://')[0]}://" if is_remote(url) else ""
    events = {name: entry for name, entry in entries.items() if _is_event_file(name, entry)}
    if not is_remote(url):
        return [_local_stamp(Path(name)) for name in sorted(events) if Path(name).is_file()]
    return [_stamp(f"{prefix}{name}", events[name]) for name in sorted(events)]


def _is_event_file(name: str, entry: Mapping[str, object]) -> bool:
    return "tfevents" in Path(name).name and entry.get("type") != "directory"


def _stamp(url: str, entry: Mapping[str, object]) -> FileStamp:
    # fsspec's stores name the same facts differently; an ETag comes first, since times have whole seconds in some.
    marks = (entry.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created"))
    mark = next((str(value) for value in marks if value is not None), "")
    return FileStamp(url, int(str(entry.get("size") or 0)), mark)
