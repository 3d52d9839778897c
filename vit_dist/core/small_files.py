"""Small JSON files of ours, read back: one that is damaged, forged or no file at all harms itself alone.

Storage of a cluster holds half-written, flipped and foreign files. Whoever reads one gets plain values within bounds,
or a DamagedError that says why not; nothing hangs, runs out of memory or stack, or lets a NaN through.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MAX_BYTES = 64 << 20
MAX_WHOLE_BYTES = 256 << 20
"""Of a file by URL that is read whole, such as a manifest or an index; that of a million shards has half of it."""

_PIECE_BYTES = 1 << 20
MAX_DEPTH = 60
MAX_DIGITS = 40
MAX_TEXT = 100_000

Check = Callable[[Any], bool]
"""Whether a value is of a kind."""


class DamagedError(ValueError):
    """What is wrong with a file, without its name."""


class NotJsonError(DamagedError):
    """Something else, or cut short."""


def is_text(value: Any) -> bool:
    """A text of bounded length."""
    return isinstance(value, str) and len(value) <= MAX_TEXT


def is_count(value: Any) -> bool:
    """A whole number from 0 on that a float holds exactly."""
    return type(value) is int and 0 <= value <= 2**53


def is_number(value: Any) -> bool:
    """A finite number."""
    return type(value) in {int, float} and abs(value) <= 1e300


def is_time(value: Any) -> bool:
    """Seconds since 1970, up to the year 5138: what calendars of Python can show."""
    return type(value) in {int, float} and 0 <= value <= 1e11


def is_mapping(value: Any) -> bool:
    """A JSON object."""
    return isinstance(value, dict)


def is_numbers(value: Any) -> bool:
    """A JSON object of finite numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


def is_texts(value: Any) -> bool:
    """A list of texts."""
    return isinstance(value, list) and all(map(is_text, value))


def is_objects(value: Any) -> bool:
    """A list of JSON objects."""
    return isinstance(value, list) and all(map(is_mapping, value))


def is_flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_name(value: Any) -> bool:
    """A text that something can be called by: not empty, without NUL or line ends, of less than 8 KiB."""
    return isinstance(value, str) and 0 < len(value) < 8192 and not any(c in value for c in "\0\r\n")


def is_digest(digits: int) -> Check:
    """Lower-case hexadecimal digits, so many."""
    return lambda value: isinstance(value, str) and len(value) == digits and set(value) <= set("0123456789abcdef")


def or_none(check: Check) -> Check:
    """The same, or null."""
    return lambda value: value is None or check(value)


def open_regular(path: Path) -> BinaryIO:
    """A file, open to be read.

    Raises:
        OSError: it is not there, or cannot be opened.
        DamagedError: a pipe, a device, a folder.
    """
    # A FIFO would wait for its writer for ever, and some devices have no end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError("not a regular file")
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, max_bytes: int | None = MAX_BYTES) -> bytes:
    """A file's content.

    Args:
        path: of the file.
        max_bytes: that it may have; None: any number.

    Raises:
        OSError: it is not there, or cannot be read.
        DamagedError: no regular file, or too large to be one of ours.
    """
    with open_regular(path) as file:
        pieces, size = [], 0
        # In pieces: memory for all that a file might have is taken before it is read.
        while piece := file.read(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if max_bytes is not None and size > max_bytes:
                raise DamagedError(f"larger than the {max_bytes:,} bytes that such a file may have")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_end(path: Path, most: int | None) -> tuple[bytes, bool]:
    """The whole lines at the end of a file that only grows.

    Args:
        path: of the file.
        most: bytes from its end; None: all, up to MAX_BYTES.

    Returns:
        The bytes, and whether lines before them were left out.

    Raises:
        OSError, DamagedError: as `read_small`.
    """
    if most is None:
        return read_small(path), False
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise DamagedError("not a regular file")
        if about.st_size <= most:
            return file.read(most), False
        file.seek(about.st_size - most)
        content = file.read(most)
    return content.partition(b"\n")[2], True


def parse_json(content: str | bytes, *, finite: bool = True, unique: bool = False) -> Any:
    """Plain values out of JSON: numbers have a bounded number of digits, nothing is nested deeply.

    Args:
        content: the text, in UTF-8.
        finite: refuse NaN and what is beyond all numbers.
        unique: refuse objects in which a key stands twice, of which other readers may take the other.

    Raises:
        DamagedError: not JSON, or beyond a bound.
    """
    try:
        # Of bytes json would guess at the encoding.
        content = content.decode() if isinstance(content, bytes) else content
        pairs = _unique if unique else None
        if finite:
            value = json.loads(
                content, parse_constant=_no_number, parse_int=_int, parse_float=_finite, object_pairs_hook=pairs
            )
        else:
            value = json.loads(content, parse_int=_int, object_pairs_hook=pairs)
    except RecursionError:
        raise DamagedError("nested too deeply") from None
    except DamagedError:
        raise
    except UnicodeDecodeError as error:
        raise NotJsonError(f"not UTF-8: {error.reason}") from None
    except ValueError as error:
        raise NotJsonError(f"not JSON: {error}") from None
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise DamagedError(f"{shown(twice)} stands twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise DamagedError(f"{text} is no number")


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise DamagedError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DamagedError(f"{text[:40]} is beyond all numbers")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise DamagedError(f"nested more than {MAX_DEPTH} levels deep")


def read_record(path: Path, fields: Mapping[str, Check] | None = None) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: of the file.
        fields: key -> what its value must be, where it is there; keys that are not named may hold anything.

    Raises:
        OSError: the file is not there, or cannot be read.
        DamagedError: it does not hold what it should.
    """
    return checked(parse_json(read_small(path)), fields or {})


def checked(value: Any, fields: Mapping[str, Check]) -> dict[str, Any]:
    """The value itself, if it is a JSON object whose fields are what they should be.

    Raises:
        DamagedError: it is not.
    """
    if not isinstance(value, dict):
        raise DamagedError("not a JSON object")
    for name, check in fields.items():
        if name in value and not check(value[name]):
            raise DamagedError(f"{name} is {shown(value[name])}")
    return value


def required(record: Any, name: str, check: Check, wanted: str) -> Any:
    """A field that a record must have.

    Args:
        record: out of JSON.
        name: of the field.
        check: what its value must be.
        wanted: the same in words: 'a whole number from 0'.

    Raises:
        DamagedError: it is not there, or is something else; the message begins with its name.
    """
    if not isinstance(record, dict):
        raise DamagedError(f"{name}: missing: there is no JSON object that could hold it")
    if name not in record:
        raise DamagedError(f"{name}: missing; expected {wanted}")
    if not check(record[name]):
        raise DamagedError(f"{name}: {shown(record[name])}; expected {wanted}")
    return record[name]


def shown(value: Any) -> str:
    """A value out of JSON for a message, cut short."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:60]}..."


def noted_record(path: Path, fields: Mapping[str, Check] | None, notes: list[str]) -> dict[str, Any] | None:
    """As `read_record`, for who goes on without: None where it is not there, or cannot be read, which `notes` gets."""
    try:
        return read_record(path, fields)
    except FileNotFoundError:
        pass
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
    except DamagedError as error:
        notes.append(f"{path.name}: {error}")
    return None


def read_records(
    path: Path, fields: Mapping[str, Check] | None = None, findings: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file with one a line; what a crash has cut short, or is damaged, is left out.

    Args:
        path: of the file.
        fields: as `read_record` takes them.
        findings: gets 'line N: why' for each damaged line. What a crash cuts short is no finding.

    Raises:
        OSError: the file is not there, or cannot be read.
        DamagedError: no regular file, or too large.
    """
    yield from parse_records(read_small(path), fields, findings)


def parse_records(
    content: bytes, fields: Mapping[str, Check] | None = None, findings: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """As `read_records`, of the content of such a file."""
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = checked(parse_json(line), fields or {})
        except NotJsonError:
            continue
        except DamagedError as error:
            if findings is not None:
                findings.append(f"line {number}: {error}")
            continue
        yield record
