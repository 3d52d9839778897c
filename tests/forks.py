"""Processes that need not import torch: each is forked from one that has, and is all else that `python` would start.

`Popen` is a subprocess.Popen. Where it is asked for `python -m vit_dist.cli.main ...` or `python -c ...`, a process
that has imported what ranks import (but for DeepSpeed) and has done nothing else forks one that goes on as that
command: with the arguments, the environment, the directory and the files that it was given, a child of the one that
asked, with a number of its own. What it starts in the same way is forked so too: a launcher's ranks. Anything else is
started as ever, and so is what changes how an interpreter starts. Imports cost a rank six seconds of a CPU: more than
most tests train for.

That a command is whole when nothing was imported before is for tests that use subprocess.Popen: runs that are killed
(laws/test_resume.py, drills), plug-ins, studies, the jobs of slurm/.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tests.places import ROOT
from vit_dist.core.process import CLI_MODULE

_PR_SET_CHILD_SUBREAPER = 36
_READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "OMP_NUM_THREADS", "MKL_")
_LAUNCHERS = {"train", "run", "study", "verify-resume"}
IMPORT_TORCH = {*_LAUNCHERS, "evaluate", "models", "predict"}
"""Verbs that import torch, they or what they start."""
_RANKS_IMPORT = ("vit_dist.cli.train", "vit_dist.train.attempt", "vit_dist.engines._plain", "vit_dist.models._hybrid")

_lock = threading.Lock()
_server: subprocess.Popen[bytes] | None = None
_requests: socket.socket | None = None
_environment: dict[str, str] = {}


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process that is forked where that is the same, else started."""

    def _execute_child(self, *given: Any) -> None:
        (args, executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell, *pipes, _, _, _, _, _, new_session, _) = (
            given
        )
        p2cread, _, _, c2pwrite, _, errwrite = pipes[:6]
        environment = dict(os.environ if env is None else env)
        words = [] if isinstance(args, str | bytes | os.PathLike) else [os.fspath(word) for word in args]
        odd = executable or preexec_fn or pass_fds or shell
        if odd or words[:1] != [sys.executable] or not _is_ours(words) or not _starts_alike(environment):
            return super()._execute_child(*given)
        standard = [own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
        wanted = {"words": words, "environment": environment, "cwd": os.fspath(cwd or Path.cwd())}
        blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        self.pid = _forked({**wanted, "session": bool(new_session), "blocked": blocked}, standard)
        self._child_created = True
        self._close_pipe_fds(*pipes[:6])
        return None


def run(words: list[str], *, timeout: float, check: bool, **options: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, of a process that is forked where that is the same."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(words, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def ready() -> None:
    """Wait until the process that forks is there: for tests that look at the clock."""
    run([sys.executable, "-c", "pass"], timeout=280, check=True)


def close() -> None:
    """End the process that forks."""
    global _server, _requests
    if _server is not None and _requests is not None:
        _requests.close()
        _server.wait()
    _server = _requests = None


def _is_ours(words: list[str]) -> bool:
    return words[1:3] == ["-m", CLI_MODULE] or words[1:2] == ["-c"]


def _starts_alike(environment: Mapping[str, str]) -> bool:
    """Whether an interpreter would start there as the one that forks did."""
    return _read_at_start(environment) == _read_at_start(_environment if _requests is not None else os.environ)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, object]:
    read: dict[str, object] = {name: text for name, text in environment.items() if name.startswith(_READ_AT_START)}
    # This project is found anyhow.
    path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry not in {"", str(ROOT)}]
    return {**read, "PYTHONPATH": path}


def _forked(wanted: dict[str, Any], standard: list[int]) -> int:
    """A child of this process, forked elsewhere. Returns its number."""
    with _lock:
        requests = _requests or _serving()
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        # Its parent ends at once, and it becomes a child of the nearest above that takes orphans: of this one.
        assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        try:
            socket.send_fds(requests, [json.dumps(wanted).encode()], standard)
            pid = int(requests.recv(100))
            assert requests.recv(100) == b"orphaned"
        finally:
            prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return pid


def _serving() -> socket.socket:
    """The socket of a fresh process that forks."""
    global _server, _requests, _environment
    _requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _environment = dict(os.environ)
    _server = subprocess.Popen(
        # The name is what a process of ours is known by.
        [sys.executable, "-m", "tests.forks", str(theirs.fileno()), "vit-dist"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
    )  # fmt: skip
    theirs.close()
    return _requests


def _serve(requests: socket.socket) -> NoReturn:
    """Fork a process for each request, until nobody is there who could ask."""
    # A signal to the whole group is meant for those that were forked.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        message, standard, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            os._exit(0)
        middle = os.fork()
        if middle == 0:
            middle = os.getpid()
            child = os.fork()
            if child == 0:
                requests.close()
                while os.getppid() == middle:
                    time.sleep(0.0005)
                _become(json.loads(message), standard)
            requests.send(str(child).encode())
            os._exit(0)
        os.waitpid(middle, 0)
        for fd in standard:
            os.close(fd)
        requests.send(b"orphaned")


def _become(wanted: dict[str, Any], standard: list[int]) -> NoReturn:
    """Go on as the command that was asked for."""
    global _requests, _environment
    if wanted["session"]:
        os.setsid()
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    for fd in standard:
        os.close(fd)
    # Those of the one that forks know another kind of file.
    sys.stdin = sys.__stdin__ = open(0, encoding=sys.stdin.encoding, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _text(1, sys.stdout.errors)
    sys.stderr = sys.__stderr__ = _text(2, "backslashreplace", always=True)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["cwd"])
    words = wanted["words"][1:]
    sys.path[:1] = [wanted["cwd"] if words[0] == "-m" else "", str(ROOT)]
    if words[0] == "-m" and words[2:3] and words[2] in _LAUNCHERS and "RANK" not in os.environ:
        # What it starts is forked by one that is as untouched as this process is now.
        _requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            _requests.close()
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(nothing, number)
            os.close(nothing)
            _serve(theirs)
        theirs.close()
        _environment = wanted["environment"]
        subprocess.Popen = Popen  # type: ignore[misc]
    signal.pthread_sigmask(signal.SIG_SETMASK, wanted["blocked"])
    gc.enable()
    code = _code_of(words)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _text(fd: int, errors: str | None, *, always: bool = False) -> io.TextIOWrapper:
    stream = open(fd, "w", encoding=sys.stdout.encoding, errors=errors, closefd=False)  # noqa: SIM115
    stream.reconfigure(line_buffering=always or os.isatty(fd))
    return stream


def _code_of(words: list[str]) -> int:
    """Run a command of Python's. Returns its exit code."""
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            from vit_dist.cli import main

            sys.argv = [main.__file__, *words[2:]]
            main.entry()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def main() -> NoReturn:
    """Import what ranks import, and fork. The argument is the number of the socket that asks."""
    # Without DeepSpeed, which keeps functions of torch.distributed: some workers put others there before it comes.
    gc.disable()
    for module in _RANKS_IMPORT:
        importlib.import_module(module)
    assert threading.active_count() == 1
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
