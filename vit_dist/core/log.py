"""Lines for people, on stderr: never on stdout, which belongs to results. Secrets are taken out.

On a terminal a line is its text alone. In the files of a run (`RUN/logs/`), and where a launcher such as srun takes
what a rank prints, time (UTC), who speaks and level come before it:

    2026-11-26T03:50:43.012Z rank 3 WARNING   quarantined 'a/17' of train-000004.tar: truncated
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from vit_dist.core.errors import VitDistError
from vit_dist.core.terminal import clean, cut
from vit_dist.core.urls import redact

INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR

RANK_LOGS_VARIABLE = "VIT_DIST_RANK_LOGS"
"""Set by a launcher of ours for its ranks: the folder in which each writes a log."""

_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z (?:rank \d+|launcher) [A-Z]+ ")
_NOT_ON_TERMINAL = "not_on_terminal"


class _Stamped(logging.Formatter):
    """Time, who speaks and level before the text."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return f"{time} {self._who} {record.levelname} {record.getMessage()}"


class _Stderr(logging.Handler):
    """Whatever sys.stderr is at the moment. Where it takes no more, as on a full disk, that costs the line alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, _NOT_ON_TERMINAL):
            with contextlib.suppress(OSError):
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()


class _File(logging.FileHandler):
    """Appended to from the first line on. A disk that is full costs the line, not the run."""

    def __init__(self, path: Path, who: str) -> None:
        super().__init__(path, encoding="utf-8", errors="replace", delay=True)
        self.setFormatter(_Stamped(who))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


_logger = logging.getLogger("vit_dist")
_logger.setLevel(logging.INFO)
# A program that embeds this one and sets up logging of its own is not to print every line twice.
_logger.propagate = False
_stderr = _Stderr()
_logger.addHandler(_stderr)


def log(message: str, level: int = INFO) -> None:
    """One line on stderr, and in the file of this process where there is one."""
    _logger.log(level, "%s", _shown(message))


def log_to_file(message: str, level: int = INFO) -> None:
    """One line in the file of this process, where there is one; for what a terminal shows in another way."""
    _logger.log(level, "%s", _shown(message), extra={_NOT_ON_TERMINAL: True})


def _shown(message: str) -> str:
    return clean(cut(redact(message)))


def on_terminal() -> bool:
    """True where stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty()


def speak_as_rank(rank: int, file: Path | None) -> None:
    """From here on this process logs as a rank: to a file too, or else with time and rank on stderr.

    Args:
        rank: of this process.
        file: its log, or None where what it prints is kept by whoever started it.
    """
    who = f"rank {rank}"
    if file is None:
        if not on_terminal():
            _stderr.setFormatter(_Stamped(who))
        return
    _logger.addHandler(_File(file, who))
    shown = sys.excepthook

    def to_file_too(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _note_traceback(error, file)
        shown(kind, error, trace)

    sys.excepthook = to_file_too


@contextlib.contextmanager
def launcher_log(file: Path) -> Iterator[None]:
    """While this lasts what this process logs goes to a file too."""
    handler = _File(file, "launcher")
    _logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        # What the command line tells in one line is no surprise.
        if not isinstance(error, VitDistError):
            _note_traceback(error, file)
        raise
    finally:
        _logger.removeHandler(handler)
        handler.close()


def _note_traceback(error: BaseException, file: Path) -> None:
    """Write where something that nobody expected came from into a file, and name it."""
    log(f"  this was not expected, and its traceback is kept in {file}")
    log_to_file("".join(traceback.format_exception(error)).rstrip(), ERROR)


def without_stamp(line: str) -> str:
    """The text of a line of a log file."""
    return _STAMP.sub("", line, count=1)
