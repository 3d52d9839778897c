"""Threads that decode, and that are left behind where a decoder does not come back.

A thread cannot be ended. An executor of the standard library waits for its threads for ever, at the end of the
interpreter too: an image on which a decoder hangs would keep an error from ending the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

R = TypeVar("R")

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class DecodeThreads:
    """Threads that resize images themselves, without a team of OpenMP threads each.

    Args:
        count: of them.

    Raises:
        RuntimeError: the system gives no more threads.
    """

    def __init__(self, count: int) -> None:
        self._todo: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._closed = False
        own = torch.get_num_threads()
        # torch.set_num_threads() is for the thread that calls it, and for all that use torch for the first time later.
        # So these all begin now, and the number for later ones is set back by this one, whose own it is.
        begun = threading.Barrier(count + 1)
        self._threads = [
            threading.Thread(target=self._work, args=(begun,), name=f"decode_{i}", daemon=True) for i in range(count)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:
            # Those that wait must not wait for ever.
            begun.abort()
            raise
        begun.wait()
        torch.set_num_threads(own)

    def submit(self, fill: Callable[..., R], *args: Any) -> Future[R]:
        """Have something done by one of them."""
        future = Future[R]()
        self._todo.put((future, fill, args))
        return future

    def stop(self) -> None:
        """What is not begun is dropped; they end with what they are at."""
        self._closed = True
        for _ in self._threads:
            self._todo.put(None)

    def join(self, timeout_s: float) -> int:
        """Wait until they have ended, for so long together. Returns how many have not."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)

    def _work(self, begun: threading.Barrier) -> None:
        torch.get_num_threads()  # a thread's first use of torch takes the number of the process, over what was set
        torch.set_num_threads(1)
        try:
            begun.wait()
        except threading.BrokenBarrierError:
            return
        while (task := self._todo.get()) is not None:
            future, fill, args = task
            if self._closed:
                future.cancel()
                continue
            try:
                future.set_result(fill(*args))
            except BaseException as error:
                future.set_exception(error)
            # Nothing of a batch is held until the next one comes.
            del task, future, fill, args
