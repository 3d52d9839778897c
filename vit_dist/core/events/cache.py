"""What event files held when they were last read, kept under ~/.cache/vit_dist, so that an unchanged file is read once.

An entry belongs to a file's URL and to the tags asked for, and holds while the file's size and mark (ETag, or time of
change) are those it was read with; a file that grew replaces its entry. VIT_DIST_CACHE names another directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from vit_dist.core.events.reader import EventFile, FileStamp, Series, read_many
from vit_dist.core.files import is_remote, local_path, replacing
from vit_dist.core.places import check_local
from vit_dist.core.small_files import (
    Check,
    DamagedError,
    checked,
    is_count,
    is_number,
    is_text,
    or_none,
    parse_json,
    read_small,
)

# Of what an entry looks like and of what the reader makes of a file: raised when either changes; old entries are then
# never looked up again.
_VERSION = 3
_MOST_BYTES = 1 << 30


def cache_directory() -> Path:
    """Where entries are kept.

    Raises:
        DataError: VIT_DIST_CACHE is no path on this machine.
    """
    root = os.environ.get("VIT_DIST_CACHE")
    if root:
        return check_local(root, "VIT_DIST_CACHE")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_dist"


def read_cached(stamps: Sequence[FileStamp], tags: Collection[str]) -> Iterator[EventFile]:
    """Event files in the order given, from the cache where it holds.

    Raises:
        DataError: a file cannot be read.
    """
    cached = [_load(stamp, tags) for stamp in stamps]
    missing = [stamp for stamp, file in zip(stamps, cached, strict=True) if file is None]
    fresh = read_many([stamp.url for stamp in missing], tags)
    for stamp, file in zip(stamps, cached, strict=True):
        if file is None:
            file = next(fresh)
            _store(stamp, tags, file)
        yield file


def load_entry(kind: str, key: str) -> bytes | None:
    """The bytes kept under a key, or None where there are none or they are damaged."""
    try:
        raw = read_small(_path(kind, key), _MOST_BYTES)
    except (OSError, DamagedError):
        return None
    return raw[16:] if len(raw) >= 16 and raw[:16] == xxhash.xxh3_128_digest(raw[16:]) else None


def store_entry(kind: str, key: str, content: bytes) -> None:
    """Keep bytes under a key. Where nothing can be kept (a full or read-only disk), nothing is."""
    path = _path(kind, key)
    # Not through to the disk: after a crash of the machine the digest in front of the content tells that an entry is
    # damaged, and it is made again.
    with contextlib.suppress(OSError), replacing(path, sync=False) as temporary:
        temporary.write_bytes(xxhash.xxh3_128_digest(content) + content)


def _path(kind: str, key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()[:40]
    return cache_directory() / kind / name[:2] / name


def _key(stamp: FileStamp, tags: Collection[str]) -> str:
    url = stamp.url if is_remote(stamp.url) else str(local_path(stamp.url).absolute())
    return json.dumps([_VERSION, os.environ.get("AWS_ENDPOINT_URL_S3", ""), url, sorted(tags)])


def _load(stamp: FileStamp, tags: Collection[str]) -> EventFile | None:
    raw = load_entry("events", _key(stamp, tags)) if stamp.mark else None
    if raw is None:
        return None
    head, _, body = raw.partition(b"\n")
    try:
        entry = checked(parse_json(head), _FIELDS)
        # Compared here and not part of the key: a file that grew replaces its entry, in place of one for each size.
        if entry.keys() != _FIELDS.keys() or entry["stamp"] != [stamp.size, stamp.mark]:
            return None
        return _event_file(stamp.url, entry, np.frombuffer(body, np.int64))
    except ValueError:
        # The digest in front tells of an accident, but others may write there too: then the file itself is read.
        return None


def _is_step(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_columns(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 2 and is_text(one[0]) and is_count(one[1]) for one in value
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(one, list) and len(one) == 2 and _is_step(one[0]) and isinstance(one[1], str)
        for written in value.values()
        for one in (written if isinstance(written, list) else [None])
    )


_FIELDS: Mapping[str, Check] = {
    "stamp": lambda value: isinstance(value, list),
    "started": or_none(is_number),
    "purge_step": or_none(_is_step),
    "problem": or_none(is_text),
    "texts": _is_texts,
    "scalars": _is_columns,
}


def _event_file(url: str, entry: dict[str, Any], numbers: NDArray[np.int64]) -> EventFile:
    """What an entry says of a file; raises ValueError where its columns are not as long as it says."""
    if len(numbers) != 3 * sum(count for _, count in entry["scalars"]):
        raise ValueError("columns are missing")
    at, scalars = 0, {}
    for tag, count in entry["scalars"]:
        steps, values, walls = (numbers[at + i * count : at + (i + 1) * count] for i in range(3))
        scalars[tag] = Series(steps, values.view(np.float64), walls.view(np.float64))
        at += 3 * count
    texts = {tag: [(step, text) for step, text in written] for tag, written in entry["texts"].items()}
    started = float("inf") if entry["started"] is None else float(entry["started"])
    return EventFile(url, started, scalars, texts, entry["purge_step"], entry["problem"])


def _store(stamp: FileStamp, tags: Collection[str], file: EventFile) -> None:
    # A store that gives neither ETag nor time: a file rewritten to the same size could not be told from its entry.
    if not stamp.mark:
        return
    head = {
        "stamp": [stamp.size, stamp.mark],
        "started": None if file.started == float("inf") else file.started,
        "purge_step": file.purge_step,
        "problem": file.problem,
        "texts": file.texts,
        "scalars": [[tag, len(series.steps)] for tag, series in file.scalars.items()],
    }
    body = b"".join(np.ascontiguousarray(column).tobytes() for series in file.scalars.values() for column in series)
    store_entry("events", _key(stamp, tags), json.dumps(head).encode() + b"\n" + body)
