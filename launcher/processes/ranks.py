"""One attempt of a run on this machine: N rank processes under one parent that lets none outlive the others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from launcher.status.logs import first_error
from vit_dist.config.load import recipe_hash, recipe_yaml
from vit_dist.config.plugins import with_copies
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import VitDistError
from vit_dist.core.exit_codes import INVALID, PEER_LOST, SUPERSEDED, of_return_code, of_signal, signal_of
from vit_dist.core.files import write_bytes
from vit_dist.core.log import ERROR, RANK_LOGS_VARIABLE, log
from vit_dist.core.network import free_port
from vit_dist.core.process import (
    STOP_SIGNALS,
    cli_command,
    handling,
    held_back,
    parent_death_signal,
    signal_text,
    wait_until,
)
from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.history import State
from vit_dist.core.scratch import scratch
from vit_dist.core.world import without_world

_POLL_S = 0.05
_GRACE_S = 3.0


def run_local(recipe: Recipe, run_dir: Path, *, nproc: int, options: Sequence[str] = ()) -> int:
    """One attempt of a run in `nproc` processes; resumes from the run's newest checkpoint.

    Args:
        recipe: of the run.
        run_dir: of the run.
        nproc: how many ranks.
        options: further words of `vit-dist train`.

    Returns:
        0 where the run is done or was stopped by a request (its history says which), 128 + n where signal n asked for
        its end, saved or not; else the exit code of the rank that failed first.
    """
    RunDir(run_dir).check_free()
    resolved = run_dir / names.RECIPE
    # Written once: what stands there is the recipe that the run began with; only data.takedown follows, once ranks
    # have accepted a list. An attempt may bring other non-identity fields (threads, cadences), which is why its own
    # goes by a file of its own; another identity is refused by the ranks.
    if not resolved.exists():
        write_bytes(str(resolved), recipe_yaml(with_copies(recipe, run_dir)).encode())
    with scratch(run_dir, "start") as folder:
        recipe_file = folder / names.RECIPE
        write_bytes(str(recipe_file), recipe_yaml(recipe).encode())
        before = history.read(run_dir)
        logs = run_dir / names.LOGS / names.attempt_folder(before.next_opened)
        words = ["train", str(recipe_file), "--run-dir", str(run_dir), *options]
        code, asked = _run_ranks(words, nproc=nproc, folder=folder, logs=logs)
    _close_attempt(RunDir(run_dir), code)
    if code and code != SUPERSEDED and not asked:
        _note_end_without_a_word(
            RunDir(run_dir), recipe, before, nproc, first_words(logs, code), refused=code == INVALID
        )
    return of_signal(asked[0]) if asked and not _is_done(run_dir, before.next_opened) else code


def first_words(logs: Path, code: int) -> str:
    """Why ranks failed, in one line, and where that is logged.

    Args:
        logs: of the attempt.
        code: that it ended with.
    """
    number = signal_of(code)
    error = first_error(logs) if logs.is_dir() else None
    what = f"a rank was killed by signal {number}" if number is not None else f"a rank ended with exit code {code}"
    if error is not None and number is None:
        # The verb's own name says nothing: it is the one that was given.
        head, _, text = error.message.partition(": error: ")
        what = text if text and head.startswith("vit-dist") else error.message
    return f"{what} (log: {error.file if error is not None else logs})"


def _note_end_without_a_word(
    directory: RunDir, recipe: Recipe, before: State, nproc: int, reason: str, *, refused: bool
) -> None:
    """Write that an attempt failed whose ranks had not come so far as to say so themselves.

    Not into the directory of another run, which they refuse, nor where a supervisor writes the end.
    """
    path, last = directory.path, before.last
    if (last is not None and last.open) or history.read(path).next_opened != before.next_opened:
        return
    run = directory.read_json(names.RUN)
    if directory.is_free() and (run is None or run.get("recipe_hash") == recipe_hash(recipe)):
        with contextlib.suppress(VitDistError):
            history.failed_to_begin(path, ranks=nproc, saved=newest_step(path), reason=reason, refused=refused)


def run_ranks(arguments: Sequence[str], *, nproc: int, folder: Path, logs: Path | None = None) -> int:
    """Run `vit-dist ARGUMENTS` as `nproc` ranks of one world on this machine; the first failure ends them all.

    SIGTERM, SIGUSR2 and SIGINT are forwarded: ranks that train save and stop. A second SIGINT kills them.

    Args:
        arguments: of the command.
        nproc: how many ranks.
        folder: a directory in which the ranks agree on who prints a shared error.
        logs: a directory in which each rank writes a log beside what it prints.

    Returns:
        0, or the exit code of the rank that failed first (128 + n where it died of signal n); where ranks were asked to
        stop and failed over that, 128 + the signal that asked: whoever starts ranks again must not do so then.
    """
    return _of_request(*_run_ranks(arguments, nproc=nproc, folder=folder, logs=logs))


def _is_done(run_dir: Path, attempt: int) -> bool:
    """Whether an attempt says that its run is done, whatever it was asked at the last moment."""
    with contextlib.suppress(VitDistError):
        status = history.read(run_dir).status
        return status is not None and status.status == "done" and status.attempt >= attempt
    return False


def _of_request(code: int, asked: Sequence[int]) -> int:
    return of_signal(asked[0]) if code and asked else code


def _run_ranks(
    arguments: Sequence[str], *, nproc: int, folder: Path, logs: Path | None = None
) -> tuple[int, Sequence[int]]:
    """See run_ranks: the code of the ranks themselves, and the stop signals that came meanwhile."""
    # Another process may take the port before rank 0 listens there; then this attempt fails, and the next gets another.
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = cli_command(*arguments)
    environ = {**without_world(os.environ), **({RANK_LOGS_VARIABLE: str(logs)} if logs is not None else {})}
    ranks: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []
    try:
        # Before the first: a signal that comes while they are started reaches all of them.
        with _forward_signals_to(ranks, asked):
            for rank in range(nproc):
                if asked:
                    _say_asked(asked, saves=False)
                    return of_signal(asked[0]), asked
                environment = _rank_environment(environ, rank, nproc, address, folder)
                # They are held back in it until it listens: Python itself would end with a traceback.
                with held_back():
                    ranks.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))
            return _wait(ranks, asked, saves=arguments[0] == "train"), asked
    finally:
        # After the first failure the others wait for a dead peer in a collective, some for half an hour: no SIGTERM.
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()


def _rank_environment(
    environ: Mapping[str, str], rank: int, nproc: int, address: Mapping[str, str], folder: Path
) -> dict[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // nproc))
    return {
        # Before `environ`, so that a person's own values win. More threads than cores make the ranks wait for each
        # other.
        "OMP_NUM_THREADS": threads,
        # The host's name, by which gloo would look for an interface, need not resolve on a laptop or in a container.
        "GLOO_SOCKET_IFNAME": "lo",
        **environ,
        **address,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        **parent_death_signal(),
        "VIT_DIST_SCRATCH": str(folder),
    }


def _wait(ranks: Sequence[subprocess.Popen[bytes]], asked: Sequence[int], *, saves: bool) -> int:
    told = 0
    while True:
        if len(asked) > told:
            told = len(asked)
            _say_asked(asked, saves=saves)
        codes = [process.poll() for process in ranks]
        failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            # Ranks that met the same error get a moment to report it; those that wait for a dead peer would wait long.
            wait_until(lambda: all(p.poll() is not None for p in ranks), _GRACE_S, _POLL_S)
            ended = {rank: p.returncode for rank, p in enumerate(ranks) if p.returncode not in (None, 0)}
            # A rank that left since it has lost a peer is not the cause, though it may be the first one seen here.
            rank = next((r for r, c in {**dict(failed), **ended}.items() if c != PEER_LOST), failed[0][0])
            code = ended[rank]
            if code < 0:
                # Of ranks that were asked to end it has been said why.
                if not asked:
                    log(f"rank {rank} was killed by {signal.Signals(-code).name}; the other ranks were ended", ERROR)
                return of_return_code(code)
            return code
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL_S)


def _say_asked(asked: Sequence[int], *, saves: bool) -> None:
    # Not in the handler: the code that it interrupts may hold the lock of the log.
    what = signal_text(asked[-1])
    if asked.count(signal.SIGINT) > 1:
        log(f"  {what} again: the ranks are ended at once{', without saving' if saves else ''}")
    elif len(asked) == 1:
        hint = f"; Ctrl-C{' once more' if asked[0] == signal.SIGINT else ' twice'} ends them at once"
        log(f"  {what}: the ranks {'save what they have trained, and stop' if saves else 'end'}{hint if saves else ''}")


def _forward_signals_to(
    ranks: Sequence[subprocess.Popen[bytes]], asked: list[int]
) -> contextlib.AbstractContextManager[None]:
    def forward(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        kill = asked.count(signal.SIGINT) > 1
        # A terminal's Ctrl-C has reached the ranks too, for they are of the same process group, but a `kill -INT` of
        # this process has not. Asking twice changes nothing.
        for process in list(ranks):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if kill else number)

    return handling(STOP_SIGNALS, forward)


def _close_attempt(directory: RunDir, code: int) -> None:
    """Write the end of an attempt whose rank was killed.

    Not where it may be another attempt's: one that superseded this one, or one that holds the directory's lock.
    """
    status, number = history.read(directory.path).status, signal_of(code)
    began = status is not None and status.status in {"running", "starting"}
    if code and code != SUPERSEDED and status is not None and began and directory.is_free():
        reason = (
            f"a rank was killed by signal {number}" if number is not None else f"a rank ended with exit code {code}"
        )
        # The disk may be what the rank failed of: its own exit code says more.
        with contextlib.suppress(VitDistError):
            saved, refused = newest_step(directory.path), code == INVALID
            history.end(directory.path, "failed", status, reason=reason, saved=saved, refused=refused)
