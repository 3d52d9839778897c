"""Worker processes for long jobs over many shards: few tasks in flight, gone when their parent is gone. No torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from vit_dist.core.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.5
_held: dict[str, Any] = {}


def context() -> ForkServerContext:
    """How processes are started: forked from a clean one, since threads and event loops do not survive a fork."""
    return multiprocessing.get_context("forkserver")


def shared(name: str) -> Any:
    """What `run` was given as `share`, inside a worker."""
    return _held[name]


def run(
    work: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    *,
    share: dict[str, Any] | None = None,
    preload: tuple[str, ...] = (),
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R]]:
    """Each task with its result, as they are done; at most two tasks a worker are waiting.

    Args:
        work: a function of a module, called in the workers.
        tasks: its arguments.
        workers: processes.
        share: sent once to each worker; `shared` finds it there.
        preload: modules that are imported once, before workers are made.
        tick: called about twice a second.

    Raises:
        DataError: a worker was killed; also whatever `work` raises.
    """
    processes = context()
    processes.set_forkserver_preload([*preload, work.__module__])
    pool = ProcessPoolExecutor(workers, mp_context=processes, initializer=_start, initargs=(share or {},))
    waiting: dict[Future[R], T] = {}
    todo = iter(tasks)
    try:
        while True:
            for task in islice(todo, 2 * workers - len(waiting)):
                waiting[pool.submit(work, task)] = task
            if not waiting:
                return
            done = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED).done
            tick()
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for want of memory; start the same command again, with fewer "
            "--workers: what is done is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(share: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _held.update(share)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
