"""Starts decode processes from a rank: one server for all of its streams, begun with the first."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

from vit_dist.core.process import DECODE_MODULE, code_root
from vit_dist.data.decode_server import ALONE

_CLOSING_S = 5.0
_ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
"""Signals that go to all processes of a job or a terminal: what they ask is for the rank to do, which still needs
batches to do it."""


class _Server:
    """The process that forks decode processes, as long as this one lives."""

    def __init__(self) -> None:
        self._control, its = socket.socketpair()
        # As this one finds modules now, from wherever it was started.
        paths = [str(code_root()), *(path or str(os.getcwd()) for path in sys.path)]  # noqa: PTH109
        # Blocked in the server from its first instruction on, and in all that it forks.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", DECODE_MODULE, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env={**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            its.close()

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """For an error: which process, and how it ended."""
        return f"pid {self._process.pid}, which {'runs' if self.lives else f'ended with {self._process.returncode}'}"

    def open(self, memory_fd: int, count: int) -> tuple[Connection, list[Connection]]:
        pairs = [socket.socketpair() for _ in range(count + 1)]
        ends = [b.fileno() for _, b in pairs]
        try:
            socket.send_fds(self._control, [b"+"], [ends[0], memory_fd, *ends[1:]])
        except OSError:
            for own, _ in pairs:
                own.close()
            raise
        finally:
            for _, its in pairs:
                its.close()
        control, *workers = [Connection(own.detach()) for own, _ in pairs]
        return control, workers

    def close(self) -> None:
        self._control.close()
        try:
            self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_lock = threading.Lock()
_server: _Server | None = None


def start(memory_fd: int, count: int) -> tuple[Connection, list[Connection]]:
    """Have `count` decode processes begun. -> what their keeper is told by and tells by, and each of them.

    Args:
        memory_fd: of the memory that they share with this process.
        count: of them.

    Raises:
        OSError: the system gives no more processes or files.
    """
    global _server
    with _lock:
        # One that was killed took its streams with it; those that come later need not know.
        if _server is not None and not _server.lives:
            close_server()
        if _server is None:
            _server = _Server()
            atexit.register(close_server)
        return _server.open(memory_fd, count)


def server_state() -> str:
    """For an error: the server's pid, and whether it runs."""
    return _server.said() if _server is not None else "none"


def close_server() -> None:
    """End the server, and with it whatever it has forked."""
    global _server
    server, _server = _server, None
    if server is not None:
        atexit.unregister(close_server)
        server.close()
