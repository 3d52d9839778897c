"""What an option or a key takes that names a place: a path on this machine, a URL, or either; here for all of them.

An option is given one of the types below, a key of a recipe or a cluster file one of the annotations
of core/registry.py. What does not fit is
refused before anything is opened or made, so that no folder named `s3:` comes of a URL, nor one named `s3` of a URL
without its colon.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vit_dist.core.errors import DataError
from vit_dist.core.urls import SCHEMES, is_web, local_path, redact, split_url

_MISSPELT = re.compile(rf"(?i)({'|'.join(sorted(SCHEMES))})(?::(?!//)|//)")
_BLANKS = re.compile(r"\s")


class Takes(Enum):
    """What a place may be."""

    LOCAL = "a path on this machine"
    SERVER = "the URL of a server"
    EITHER = "a path or a URL"


@dataclass(frozen=True)
class Place:
    """Checks a text that names a place.

    Attributes:
        takes: what it may be.
        empty: whether it may be left empty, as keys are that mean none then.
    """

    takes: Takes
    empty: bool = False

    def __call__(self, text: str) -> str:
        """The text as it is, where it names such a place.

        Raises:
            ValueError: it does not; the message says what to write in its place.
        """
        if not text.strip():
            if self.empty and not text:
                return text
            raise ValueError(f"is empty (is a variable empty?); give {self.takes.value}")
        problem = _problem(text, self.takes)
        if problem:
            raise ValueError(problem)
        return text


def _problem(text: str, takes: Takes) -> str:
    shown = redact(text)
    if text != text.strip() and not os.path.lexists(text):
        return f"{shown!r}: begins or ends with a blank; leave it out"
    misspelt = _MISSPELT.match(text)
    if misspelt:
        scheme, rest = misspelt[1].lower(), redact(text[misspelt.end() :].lstrip("/")) or "NAME/..."
        right = f"file:///{rest}, or the path itself" if scheme == "file" else f"{scheme}://{rest}"
        return f"{shown}: a URL is written {right}; a folder of this name is ./{shown}"
    try:
        scheme, rest = split_url(text)
    except DataError as error:
        return str(error)
    if scheme == "file":
        return _file_problem(rest, shown) or (f"{shown}: give {takes.value}" if takes is Takes.SERVER else "")
    if takes is Takes.SERVER:
        return (
            ""
            if is_web(text) and not _BLANKS.search(text)
            else f"{shown}: give {takes.value}, such as http://host:9000"
        )
    if not scheme:
        return ""
    if takes is Takes.LOCAL:
        return (
            f"{shown}: not on a file system of this machine, which is needed here; give a path. (Checkpoints and logs "
            f"of a run are copied to a store by checkpoint.remote=URL.)"
        )
    if _BLANKS.search(rest if is_web(text) else rest.partition("/")[0]):
        return f"{shown}: holds a blank; " + (
            "write %20 for it" if is_web(text) else f"the name of a bucket has none: {scheme}://BUCKET/..."
        )
    return ""


def _file_problem(rest: str, shown: str) -> str:
    if rest.removeprefix("localhost").startswith("/"):
        return ""
    host = rest.partition("/")[0]
    if not host:
        return f"{shown}: names no path; write file:///DIR/..., or the path itself"
    return (
        f"{shown}: {host!r} stands where a URL has the name of a machine; write file:///{rest} or, from the current "
        f"directory, {rest}"
    )


def _option(text: str, place: Place) -> str:
    try:
        return place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def local_option(text: str) -> Path:
    """Type of an option that takes a path on this machine; file:// is one too."""
    return local_path(_option(text, Place(Takes.LOCAL)))


def local_or_name(text: str) -> str:
    """Type of an option that takes a path on this machine, or the name of something that is looked for."""
    _option(text, Place(Takes.LOCAL, empty=True))
    return text if "://" not in text else str(local_path(text))


def local_or_override(text: str) -> str:
    """Type of words that are paths or names, as of `local_or_name`, or overrides: key=value."""
    return text if "=" in text else local_or_name(text)


def any_or_override(text: str) -> str:
    """Type of words that are paths, URLs or names, or overrides: key=value."""
    return text if "=" in text and "://" not in text.partition("=")[0] else any_option(text)


def any_option(text: str) -> str:
    """Type of an option that takes a path or a URL."""
    return _option(text, Place(Takes.EITHER))


def check_local(path: str, setting: str) -> Path:
    """The path on this machine that a setting of the environment gives.

    Raises:
        DataError: it is none.
    """
    try:
        return local_path(Place(Takes.LOCAL)(path))
    except ValueError as error:
        raise DataError(f"{setting}={error}") from None


def check_server(url: str, setting: str) -> str:
    """The URL of a server as a setting of the environment gives it.

    Raises:
        DataError: it is none.
    """
    try:
        return Place(Takes.SERVER)(url)
    except ValueError as error:
        raise DataError(f"{setting}: {error}") from None
