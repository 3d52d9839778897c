"""The parent of a rank's decode processes: imports once what they need, and forks them. Run by its name.

A rank itself must not be forked: it has threads, and a CUDA context. This process has neither, so what it has imported
need not be imported again for each stream and process, nor be there more than once. For each stream it forks a keeper,
which forks the stream's processes, says how one of them ended, and ends them with the stream. All are gone when the
rank is: each is killed by the kernel with the one that forked it, and this one looks after the rank.

    python -m vit_dist.data.decode_server CONTROL      (number of a file descriptor, a socket)
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

from vit_dist.core.process import die_with, heavy_imports

MOST_PROCESSES = 128
"""Of a stream: as many file descriptors as go with one message, about half."""

READY = "ready"
"""What a keeper says, with their pids, once its processes are there; then (process, pid, status) of each that ends."""

ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Each process is for one CPU, and what is to be forked may have no threads: libraries shall make none."""

_LOOK_MS = 1000


def main(control: socket.socket) -> None:
    """Serve the rank at the other end until it is gone: each message has the file descriptors of a stream."""
    rank = os.getppid()
    with heavy_imports():
        import vit_dist.data.decode_worker  # noqa: F401
    # Nobody waits for keepers.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    # What the rank has forked may keep its end open: so it is looked at, too.
    while os.getppid() == rank:
        if not waiting.poll(_LOOK_MS):
            continue
        message, fds, _, _ = socket.recv_fds(control, 1, MOST_PROCESSES + 2)
        if not message:
            return
        _fork(functools.partial(_keep, fds[0], fds[1], fds[2:]), [control.fileno()])
        for fd in fds:
            os.close(fd)


def _fork(work: Callable[[], object], not_its: Sequence[int]) -> int:
    """Begin a process that dies with this one. -> its pid.

    Args:
        work: what it does, and no more.
        not_its: file descriptors that it shall not keep open.
    """
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _run(parent, work, not_its)
    return pid


def _run(parent: int, work: Callable[[], object], not_its: Sequence[int]) -> NoReturn:
    code = 1
    try:
        die_with(parent)
        for fd in not_its:
            os.close(fd)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _keep(control_fd: int, memory_fd: int, worker_fds: list[int]) -> None:
    """Fork the processes of a stream, and end them when the stream says so or is gone."""
    from vit_dist.data.decode_worker import Setup, prepare, work
    from vit_dist.data.shared_memory import SharedMemory

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control = Connection(control_fd)
    try:
        # As in the rank at this time: what it can import its processes can, and who it is for a store they are.
        sys.path[:], variables = control.recv()
        os.environ.update({name: value for name, value in variables.items() if name not in ALONE})
        for name in os.environ.keys() - variables.keys() - ALONE.keys():
            del os.environ[name]
        setup: Setup = control.recv()
    except (EOFError, OSError):
        return
    with heavy_imports():
        prepare(setup.rows)
    memory = SharedMemory(setup.layout, memory_fd)
    processes: dict[int, int] = {}
    try:
        for number, fd in enumerate(worker_fds):

            def begin(number: int = number, fd: int = fd) -> None:
                work(setup, memory, number, Connection(fd))

            # The stream is told of a process's end by what that alone has open.
            processes[_fork(begin, [control_fd, *(other for other in worker_fds if other != fd)])] = number
        for fd in worker_fds:
            os.close(fd)
        _watch(control, processes)
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        # So that none is left for whoever inherits it.
        for pid in processes:
            os.waitpid(pid, 0)


def _watch(control: Connection, processes: dict[int, int]) -> None:
    """Tell of processes that end, each once, until the stream is gone or writes anything."""
    ended, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting = select.poll()
    for what in (control.fileno(), ended):
        waiting.register(what, select.POLLIN)
    with contextlib.suppress(OSError):
        control.send((READY, list(processes)))
        while True:
            for pid, number in list(processes.items()):
                gone, status = os.waitpid(pid, os.WNOHANG)
                if gone:
                    del processes[pid]
                    control.send((number, pid, os.waitstatus_to_exitcode(status)))
            if control.fileno() in {fd for fd, _ in waiting.poll()}:
                return
            with contextlib.suppress(BlockingIOError):
                os.read(ended, 4096)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
