"""Where text leaves for a terminal, a pipe or a log: what steers a terminal is shown, not obeyed; a full disk is told.

Names of files, keys of samples, classes, runs, reasons of servers: all of them end in lines that people read, and none
of them may move a cursor, set a window's title, hide text or turn it round.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any, TextIO

MAX_LINE = 20_000
"""Characters of one message; what is longer is cut."""

# C0 without tab and newline, DEL, C1, and the marks that turn the direction of writing round.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Colours, which `ESC [ ... m` sets, steer nothing else.
_BUT_COLOURS = re.compile(rf"\x1b\[[0-9;]*m|({_CONTROL.pattern})")


class OutputError(Exception):
    """Standard output takes no more: its disk is full, or it is closed."""


def clean(text: str, *, colours: bool = False) -> str:
    r"""The text with control characters as escapes: '\x1b' for ESC.

    Args:
        text: tabs and ends of lines stay.
        colours: leave sequences that set colours alone.
    """
    if not colours:
        return _CONTROL.sub(_escaped, text)
    return _BUT_COLOURS.sub(lambda match: _escaped(match) if match[1] else match[0], text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def cut(text: str) -> str:
    """A message of bounded length."""
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]} ... ({len(text) - MAX_LINE:,} more characters)"


class GuardedStream:
    """A text stream that cleans what is written, and says in one line why it could not be.

    Args:
        stream: what is written to.
        essential: whether an error counts; what a log loses on a full disk is worth no training run.
        cleaned: False for what cleans its text itself and then steers the terminal.
    """

    def __init__(self, stream: TextIO, *, essential: bool, cleaned: bool = True) -> None:
        self._stream, self._essential, self._cleaned = stream, essential, cleaned
        self._colours = stream.isatty()

    def write(self, text: str) -> int:
        """Write text.

        Raises:
            OutputError: it takes no more.
            BrokenPipeError: its reader has gone.
        """
        try:
            self._stream.write(clean(text, colours=self._colours) if self._cleaned else text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what is still here; raises as `write` does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def steering(self) -> GuardedStream:
        """The same stream for a program that cleans what comes from data, and moves the cursor itself."""
        return GuardedStream(self._stream, essential=self._essential, cleaned=False)

    def _failed(self, error: OSError) -> None:
        if not self._essential:
            return
        # Python tries to write the rest once more while it ends, and would complain then too.
        give_up(self._stream)
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputError(f"cannot write the output: {error.strerror}") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def give_up(stream: TextIO) -> None:
    """What else is written to a stream goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def guard_streams() -> None:
    """Let this process's standard output and standard error be guarded streams, whatever they are now."""
    closed = [number for number in range(3) if not _is_open(number)]
    # Taken, or the next file that is opened would get the number, and what is printed. Read only: writing must fail.
    for _ in closed:
        os.open(os.devnull, os.O_RDONLY)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we live
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, GuardedStream(stream, essential=name == "stdout"))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError as error:
        if error.errno == errno.EBADF:
            return False
        raise
    return True


def steering(stream: Any) -> Any:
    """A stream for a program that moves the cursor itself and cleans what comes from data."""
    return stream.steering() if isinstance(stream, GuardedStream) else stream
