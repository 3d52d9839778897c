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
_values: dict[str, Any] = {}
IN_PROCESS_IMAGES = 2000
IN_PROCESS_BYTES = 512 << 20
"""Less than so many images, or bytes to read, are worked on without worker processes: starting them takes longer."""


def context() -> ForkServerContext:
    """How processes are started: forked from a clean one, since threads and event loops do not survive a fork."""
    return multiprocessing.get_context("forkserver")


def num_processes(asked: int, num_tasks: int, *, images: int | None = None, num_bytes: int | None = None) -> int:
    """How many processes a job is worth; 1: it is done in this one.

    Args:
        asked: at most so many.
        num_tasks: into which the job is cut.
        images: in all of them, where that is what takes the time.
        num_bytes: to read in all of them, where that is.
    """
    few_images = images is not None and images < IN_PROCESS_IMAGES
    few_bytes = num_bytes is not None and num_bytes < IN_PROCESS_BYTES
    return 1 if few_images or few_bytes else max(1, min(asked, num_tasks))


def shared(name: str) -> Any:
    """One of the `values` that `run` was given, inside a worker."""
    return _values[name]


def run(
    work: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    *,
    values: dict[str, Any] | None = None,
    preload: tuple[str, ...] = (),
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R]]:
    """Each task with its result, as they are done; at most two tasks a worker are waiting.

    Args:
        work: a function of a module, called in the workers.
        tasks: its arguments.
        workers: processes.
        values: by name, sent once to each worker, where `shared` gives them.
        preload: modules that are imported once, before workers are made.
        tick: called about twice a second.

    Raises:
        DataError: a worker was killed; also whatever `work` raises.
    """
    processes = context()
    processes.set_forkserver_preload([*preload, work.__module__])
    pool = ProcessPoolExecutor(workers, mp_context=processes, initializer=_start, initargs=(values or {},))
    waiting: dict[Future[R], T] = {}
    todo = iter(tasks)
    try:
        while True:
            # Few are submitted at a time: `tasks` may be a generator over millions, and results are taken as they come.
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


def _start(values: dict[str, Any]) -> None:
    # Ctrl-C goes to the whole group: the parent decides what it means, and shuts the pool down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _values.update(values)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # The fork server is the kernel's parent of a worker: only this sentinel tells that the real one was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
