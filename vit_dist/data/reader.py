"""From positions of an order to batches of uint8 images, ahead of whoever takes them.

One planner thread walks the order ahead. Threads of this process read and decode (rows.py), or processes of its own do
(decode_pool.py), straight into the batch's buffer. Neither has a state: a position is the whole state of a stream.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vit_dist.core.errors import ConfigError
from vit_dist.core.log import WARNING, log
from vit_dist.core.world import rank_cpus
from vit_dist.data.batch import Batch
from vit_dist.data.decode_pool import MOST_DECODERS, DecodePool, Filled, Processes
from vit_dist.data.pace import Pace
from vit_dist.data.ring import Buffers, Ring
from vit_dist.data.rows import TOGETHER, Failed, Rows, RowsOf

_Planned = tuple[Batch, Callable[[], None]]
"""A batch, and what waits until its rows are filled."""


class Reader:
    """Turns positions into batches.

    Args:
        of: what rows hold; threads and prefetch are in its config.
        positions: of each batch to come; the planner thread takes them.
        reuse: whoever takes a batch gives it back (Batch.give_back), and its memory is written again.
        processes: that decode in place of threads, once they are there; None: none.

    Attributes:
        pace: what its threads and processes do, counted.

    Raises:
        ConfigError: there is no memory for processes, which the recipe asks for.
    """

    def __init__(
        self,
        of: RowsOf,
        positions: Iterator[Sequence[int]],
        *,
        reuse: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self._of, self._positions, self._config = of, positions, of.config
        # As many as are ahead, and the one that is taken.
        count = self._config.prefetch_batches + 1
        readers = self._config.read_threads
        self._threads = threads = self._config.decode_threads or default_decode_threads()
        self._rows = Rows(of, readers)
        self.pace = self._rows.pace
        self._pool = None if processes is None else _processes(of, processes, count, self.pace, pinned=reuse)
        self.pace.processes = self._pool is not None
        decoders = processes.count if processes is not None and self._pool is not None else threads
        self.pace.readers, self.pace.decoders = readers, decoders
        try:
            self._decoders = _decoders(threads)
        except RuntimeError:
            if self._pool is not None:
                self._pool.close()
            raise
        self._ring = Ring(self._pool.buffers()) if self._pool is not None else Ring(count) if reuse else None
        self._copies = self._pool is not None and not reuse
        self._planner = ThreadPoolExecutor(1, "plan")
        self._ahead: deque[Future[_Planned | None]] = deque()
        for _ in range(self._config.prefetch_batches):
            self._ahead.append(self._planner.submit(self._plan_batch))

    def next(self) -> Batch | None:
        """The next batch, or None once there are no more positions.

        Raises:
            DataError: what a thread or a process met: a shard that cannot be read, or does not fit its index.
        """
        planned = self._ahead.popleft().result()
        if planned is None:
            return None
        self._ahead.append(self._planner.submit(self._plan_batch))
        batch, finish = planned
        finish()
        # Rows are filled in any order; the list is the same in every run.
        batch.replaced.sort(key=lambda r: r.ordinal)
        self.pace.mine.replaced += len(batch.replaced)
        return batch.in_memory_of_its_own() if self._copies else batch

    def close(self) -> None:
        """Stop the threads and processes; what is in flight is dropped."""
        # What is read first: a decode thread that waits for bytes must get its error, or the pools never end.
        if self._ring is not None:
            self._ring.close()
        self._rows.stop()
        if self._pool is not None:
            self._pool.close()
        for pool in (self._planner, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._planner, self._decoders):
            pool.shutdown(wait=True)
        self._rows.close()

    def _plan_batch(self) -> _Planned | None:
        positions = next(self._positions, None)
        if positions is None:
            return None
        n, size, width = len(positions), self._of.image_size, self._of.max_labels
        buffers = self._ring.take(n, size, width) if self._ring is not None else Buffers.make(n, size, width)
        if buffers is None:
            return None
        batch = Batch.blank(positions, buffers, self._ring)
        if self._pool is not None and self._pool.takes_over(positions):
            self._rows.retire()
            filled = self._pool.submit(buffers.slot, positions)
            return batch, lambda: _told(batch, filled)
        places = [self._rows.find(position) for position in positions]
        # Rows in a row go to one thread, a few at once; a batch that is small for so many threads, fewer.
        some = max(1, min(TOGETHER, -(-n // self._threads)))
        parts = (range(n)[first : first + some] for first in range(0, n, some))
        tasks = [self._decoders.submit(self._rows.fill, batch, rows, [places[row] for row in rows]) for rows in parts]
        return batch, lambda: _all(tasks)


def _processes(of: RowsOf, wanted: Processes, slots: int, pace: Pace, *, pinned: bool) -> DecodePool | None:
    """Those that decode; None where the system has no memory for them and the recipe has not asked for them."""
    try:
        return DecodePool(of, wanted, slots, of.config.read_threads, pace, pinned=pinned)
    except ConfigError as error:
        if of.config.decode_workers is not None:
            raise
        log(f"  threads decode, and no processes: {error}", WARNING)
        return None


def _all(tasks: Sequence[Future[Failed | None]]) -> None:
    for task in tasks:
        failed = task.result()
        if failed is not None:
            raise failed.error


def _told(batch: Batch, filled: Future[Filled]) -> None:
    batch.samples, batch.replaced = filled.result()
    batch.ordinals.copy_(torch.tensor([sample.ordinal for sample in batch.samples], dtype=torch.int64))


def default_decode_threads() -> int:
    """All CPUs of the rank but one for the thread that trains and one for those that plan and read: 2 to 32."""
    return min(MOST_DECODERS, max(2, rank_cpus() - 2))


def _decoders(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads resize images themselves, without a team of OpenMP threads each."""
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "decode", initializer=_alone)
    # torch.set_num_threads() is for the thread that calls it, and for all that use torch for the first time later. So
    # the pool's threads all begin now, and the number for later ones is set back by this one, whose own it is.
    begun = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(begun.wait)
        begun.wait()
    except RuntimeError:  # the system gives no more threads: those that wait must not wait for ever
        begun.abort()
        raise
    torch.set_num_threads(own)
    return pool


def _alone() -> None:
    torch.get_num_threads()  # a thread's first use of torch takes the number of the process, over what was set before
    torch.set_num_threads(1)
