"""Text that users write: UTF-8, with or without the byte order mark that Excel, PowerShell and Notepad put before it.

Everything that reads a user's text reads it here.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path

from vit_dist.core.errors import DataError
from vit_dist.core.files import read_bytes
from vit_dist.core.urls import redact

# The longer marks first: UTF-32's begin like those of UTF-16.
_OTHERS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_BEGIN = 64


def decode_text(content: bytes) -> str:
    """Bytes as text, without a byte order mark.

    Raises:
        ValueError: not text in UTF-8; the message says what it is in place of that, and what to do.
    """
    _refuse_others(content[:_BEGIN])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text in UTF-8 ({error}); save it as UTF-8") from None


def read_text(path: str | Path) -> str:
    """The text of a file.

    Args:
        path: of a local file, or its URL.

    Raises:
        DataError: missing, not readable, or not text in UTF-8.
    """
    try:
        return decode_text(read_bytes(str(path), pipes=True))
    except ValueError as error:
        raise DataError(f"{redact(str(path))}: {error}") from None


def text_file(file: io.BufferedReader) -> io.TextIOWrapper:
    """An open file as text, its lines ending as they do in it.

    Raises:
        ValueError: as `decode_text`; where the text is read, a UnicodeDecodeError.
    """
    _refuse_others(file.peek(_BEGIN)[:_BEGIN])
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _refuse_others(begin: bytes) -> None:
    for mark, name in _OTHERS:
        if begin.startswith(mark):
            raise ValueError(f"is text in {name}, expected UTF-8; save it as UTF-8")
    if b"\0" in begin:
        raise ValueError("is not text in UTF-8 (it holds zero bytes: UTF-16, or no text at all); save it as UTF-8")
