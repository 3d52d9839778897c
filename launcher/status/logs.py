"""The logs of a run's attempts: where they are, their ends, following them, and the error that came first.

logs/batch.log                      the supervisor's or launcher's, all attempts
logs/attempt-0003/rank-0.log        a rank's output; with more digits where there are many
logs/attempt-0003/srun.log          srun's own messages: it names tasks that were killed and nodes that failed
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.exit_codes import INTERRUPTED, NOT_THE_CAUSE, SUPERSEDED
from vit_dist.core.log import without_stamp
from vit_dist.core.run import names

_RANK = re.compile(r"rank-(\d+)\.(?:log|out)$")
_ATTEMPT = re.compile(r"attempt-(\d+)$")
_TAIL_BYTES = 4 << 20
_POLL_S = 0.3


@dataclass(frozen=True)
class LoggedError:
    """An error in a log.

    Attributes:
        file: where.
        line: in which line of the file, from 1.
        message: the one line that names it.
        context: lines around it, the traceback among them.
        rank: whose log it is; None for srun's and the supervisor's.
        noise: it only follows from the end of another rank, or of the job.
    """

    file: Path
    line: int
    message: str
    context: tuple[str, ...]
    rank: int | None
    noise: bool


def attempts_with_logs(run: Path) -> list[int]:
    """Numbers of the attempts that have a log directory, ascending."""
    matches = (_ATTEMPT.search(path.name) for path in (run / names.LOGS).glob("attempt-*"))
    return sorted(int(match[1]) for match in matches if match)


def attempt_dir(run: Path, attempt: int | None = None) -> Path:
    """The log directory of an attempt; of the newest for None.

    Raises:
        ConfigError: no such attempt.
        RunError: the run has no logs.
    """
    known = attempts_with_logs(run)
    if not known:
        raise RunError(
            f"{run / names.LOGS}: no log of an attempt is there. What torchrun or srun start without `vit-dist submit` "
            "prints where those say. For a job that has just begun try `vit-dist logs RUN --batch`"
        )
    number = known[-1] if attempt is None else attempt
    if number not in known:
        shown = ", ".join(map(str, known[-12:]))
        raise ConfigError(f"--attempt {number}: there are logs of {'...' if len(known) > 12 else ''}{shown} in {run}")
    return next(path for path in (run / names.LOGS).glob("attempt-*") if _number(path, _ATTEMPT) == number)


def rank_logs(directory: Path) -> dict[int, Path]:
    """Rank -> log."""
    numbers = {path: _number(path, _RANK) for path in directory.iterdir()}
    return dict(sorted((number, path) for path, number in numbers.items() if number is not None))


def rank_log(directory: Path, rank: int) -> Path:
    """The log of a rank.

    Raises:
        ConfigError: there is none; says which there are.
    """
    logs = rank_logs(directory)
    if rank in logs:
        return logs[rank]
    if not logs:
        raise ConfigError(
            f"{directory}: no rank has written anything yet; `vit-dist logs RUN --batch` shows the job's own log"
        )
    raise ConfigError(f"--rank {rank}: {directory} has logs of ranks {min(logs)} to {max(logs)}")


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; all of them for 0. A progress bar's redrawn line counts as its last state.

    Raises:
        RunError: cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - _TAIL_BYTES) if lines else 0
            file.seek(start)
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    split = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    if split and split[-1] == "":
        split.pop()
    # The first line was cut in its middle by the seek.
    if start:
        split = split[1:]
    return list(deque(split, lines)) if lines else split


def follow(current: Callable[[], Path | None], ended: Callable[[], bool], *, lines: int) -> Iterator[tuple[Path, str]]:
    """(file, line) as lines are written, beginning with the last ones; goes over to the next file when there is one.

    Args:
        current: the file to read now; None while there is none.
        ended: whether nothing more will be written.
        lines: how many of the first file's last lines come first; 0 for all.
    """
    path: Path | None = None
    position, rest, next_look, last = 0, b"", 0.0, False
    while True:
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + 2.0
            last = ended()
            newest = current()
            if newest is not None and newest != path:
                first = path is None
                # What was written to the file of before since it was last read.
                if path is not None:
                    yield from ((path, line) for line in _text(_read(path, position), rest))
                path, rest = newest, b""
                position = 0
                if first and lines:
                    content = tail(path, lines)
                    position = path.stat().st_size
                    yield from ((path, line) for line in content)
        if path is not None:
            new = _read(path, position)
            position += len(new)
            # A line that is still being written waits for its end.
            complete, newline, rest = (rest + new).rpartition(b"\n")
            if newline:
                yield from ((path, line) for line in _text(complete))
            if new:
                continue
        if last:
            if rest and path is not None:
                yield from ((path, line) for line in _text(rest))
            return
        time.sleep(_POLL_S)


def first_error(directory: Path, batch: Path | None = None) -> LoggedError | None:
    """The error that an attempt ended of: the earliest real one among all its ranks, not what followed from it.

    A rank's own error counts before srun's message that a task was killed (a kill leaves nothing in the rank's log),
    that before the supervisor's log, and anything before the errors of ranks that have lost a peer. Among ranks the one
    whose log fell silent first was first.

    Args:
        directory: of the attempt's logs.
        batch: the supervisor's log, where it should be looked at too.
    """
    # Weight, when the log was last written, rank: the least of them is the answer.
    errors = list[tuple[int, float, int, LoggedError]]()
    for rank, path in rank_logs(directory).items():
        error = find_error(path, rank)
        if error is not None:
            errors.append((9 if error.noise else 0, path.stat().st_mtime, rank, error))
    others = [(1, directory / "srun.log")] + ([(2, batch)] if batch is not None else [])
    for weight, path in others:
        if path.is_file():
            error = find_error(path, None)
            if error is not None:
                errors.append((9 if error.noise else weight, path.stat().st_mtime, -1, error))
    # A node that fails is the cause of whatever its neighbours log; srun alone knows it.
    failed = [e for *_, e in errors if e.rank is None and _NODE.search(e.message)]
    if failed:
        return failed[0]
    return min(errors, key=lambda entry: entry[:3])[3] if errors else None


def find_error(path: Path, rank: int | None) -> LoggedError | None:
    """The first real error of one log, else the first that only follows from others', else None."""
    logged = tail(path, 0) if path.stat().st_size <= _TAIL_BYTES else tail(path, 100_000)
    lines = [without_stamp(line) for line in logged]
    noise: LoggedError | None = None
    i = 0
    while i < len(lines):
        if lines[i].startswith("Traceback (most recent call last)"):
            end = _end_of_traceback(lines, i)
            error = _logged_error(path, rank, lines, i, end)
            i = end + 1
        elif _ERROR.search(lines[i]):
            error = _logged_error(path, rank, lines, max(0, i - 2), i)
            i += 1
        else:
            i += 1
            continue
        if not error.noise:
            return error
        noise = noise or error
    return noise


_ERROR = re.compile(
    r"^vit-dist[\w -]*: error: |^vit-dist train: rank \d+: "
    r"|\b(out of memory|OutOfMemory|oom[-_ ]kill|Out Of Memory)\b"
    r"|Fatal Python error|terminate called|Segmentation fault|Bus error|Illegal instruction|Floating point exception"
    r"|^srun: error: |^slurmstepd: error: |\bXid\b|uncorrectable ECC|CUDA error|NCCL (error|ERROR)"
    r"|^\w*(Error|Exception): |: (Killed|Aborted|Segmentation fault|Bus error)\b|command not found$"
    r"|No space left on device|Permission denied$|Disk quota exceeded"
)
_NODE = re.compile(
    r"(?i)node failure|node_fail|NODE FAIL|launch failed.*(communication|socket)|Zero Bytes were transmitted"
)
_CONSEQUENCES = "|".join(str(code) for code in sorted(NOT_THE_CAUSE | {SUPERSEDED, INTERRUPTED}))
_NOISE = re.compile(
    r"(?i)another rank is gone|lost (a|its) peer|peer .{0,40}(gone|lost|left|closed)"
    r"|connection (was )?(reset|closed|refused)"
    r"|broken pipe|connection closed by peer|gloo.*(timeout|timed out|connectfullmesh|read error|write error)"
    r"|socket ?timeout|DistStoreError|ProcessGroup.*(watchdog|abort)|watchdog caught|remote process exited"
    r"|ncclRemoteError|NCCL error.*remote|collective operation timeout|TCPStore|store->get|recvValue failed"
    rf"|STEP \d+\S* ON|JOB \d+ ON|step aborted|: Terminated\b|exit code ({_CONSEQUENCES})\b"
    r"|forcing job termination|force terminated|srun: launch/slurm: _step_signal|got SIGCONT|SIGTERM"
    r"|due to (preemption|time limit)|was terminated before it could save|has superseded this attempt"
    r"|KeyboardInterrupt|the other ranks were ended"
)


def _logged_error(path: Path, rank: int | None, lines: Sequence[str], start: int, end: int) -> LoggedError:
    message = lines[end].strip()
    noise = bool(_NOISE.search(message))
    return LoggedError(path, end + 1, message, tuple(lines[start : min(len(lines), end + 3)]), rank, noise)


def _end_of_traceback(lines: Sequence[str], start: int) -> int:
    """The line that names the exception, of the last of chained tracebacks."""
    i, end = start + 1, start
    while i < len(lines):
        if lines[i].startswith((" ", "\t")) or not lines[i].strip():
            i += 1
            continue
        if lines[i].startswith(("During handling of", "The above exception was", "Traceback (most recent call last)")):
            i += 1
            continue
        end = i
        following = next((line for line in lines[i + 1 : i + 4] if line.strip()), "")
        if not following.startswith(("During handling of", "The above exception was")):
            break
        i += 1
    return end if end > start else min(len(lines) - 1, start)


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(1 << 20)
    except OSError:
        return b""


def _text(content: bytes, before: bytes = b"") -> list[str]:
    text = (before + content).decode("utf-8", "replace")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")] if text else []


def _number(path: Path, pattern: re.Pattern[str]) -> int | None:
    match = pattern.search(path.name)
    return int(match[1]) if match else None
