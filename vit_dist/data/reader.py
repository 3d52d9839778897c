"""From positions of an order to batches of uint8 images, ahead of whoever takes them.

One planner thread walks the order ahead. Threads of this process read and decode (rows.py), or processes of its own do
(decode_pool.py), straight into the batch's buffer. Neither has a state: a position is the whole state of a stream.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vit_dist.core.errors import ConfigError, DataTimeoutError
from vit_dist.core.log import WARNING, log
from vit_dist.core.world import rank_cpus
from vit_dist.data.batch import Batch
from vit_dist.data.decode_pool import MOST_DECODERS, DecodePool, Filled, Processes
from vit_dist.data.decode_threads import DecodeThreads
from vit_dist.data.doing import Doing, waited_for
from vit_dist.data.pace import Pace
from vit_dist.data.ring import Buffers, Ring
from vit_dist.data.rows import TOGETHER, Failed, Rows, RowsOf
from vit_dist.data.waits import Waits, told_to_nobody

_Planned = tuple[Batch, Callable[[Waits], None]]
"""A batch, and what waits until its rows are filled."""

_CLOSING_S, _CLOSING_LATE_S = 10.0, 1.0
_open: weakref.WeakSet[Reader] = weakref.WeakSet()


def waits_now() -> str:
    """What batches of this process are waited for at this moment, in words; '' where none is."""
    return "; ".join(filter(None, (reader.waits_for() for reader in list(_open))))


class Reader:
    """Turns positions into batches.

    Args:
        of: what rows hold; threads and prefetch are in its config.
        positions: of each batch to come; the planner thread takes them.
        reuse: whoever takes a batch gives it back (Batch.give_back), and its memory is written again.
        processes: that decode in place of threads, once they are there; None: none.
        timeout_s: of a batch, from when it is asked for; 0: none.
        told: called with what a long wait is for, in words, and with '' once it is over.

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
        timeout_s: float = 0.0,
        told: Callable[[str], None] = told_to_nobody,
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
            self._decoders = DecodeThreads(threads)
        except RuntimeError:
            if self._pool is not None:
                self._pool.close()
            raise
        self._ring = Ring(self._pool.buffers()) if self._pool is not None else Ring(count) if reuse else None
        self._copies = self._pool is not None and not reuse
        self._planner = ThreadPoolExecutor(1, "plan")
        self._ahead: deque[Future[_Planned | None]] = deque()
        self._waits, self._late = Waits(lambda seconds: waited_for(self.doing(), seconds), timeout_s, told), ""
        _open.add(self)
        for _ in range(self._config.prefetch_batches):
            self._ahead.append(self._planner.submit(self._plan_batch))

    def next(self) -> Batch | None:
        """The next batch, or None once there are no more positions.

        Raises:
            DataError: what a thread or a process met: a shard that cannot be read, or does not fit its index.
            DataTimeoutError: it does not come in time; nor does any after it.
        """
        if self._late:
            raise DataTimeoutError(self._late)
        self._waits.begin()
        try:
            planned = self._waits.result(self._ahead.popleft())
            if planned is None:
                return None
            self._ahead.append(self._planner.submit(self._plan_batch))
            batch, finish = planned
            finish(self._waits)
        except DataTimeoutError as error:
            self._late = str(error)
            raise
        finally:
            self._waits.end()
        # Rows are filled in any order; the list is the same in every run.
        batch.replaced.sort(key=lambda r: r.ordinal)
        self.pace.mine.replaced += len(batch.replaced)
        return batch.in_memory_of_its_own() if self._copies else batch

    def doing(self) -> list[Doing]:
        """What those who decode, and have something to do, are at."""
        return [*self.pace.doing(), *(self._pool.doing() if self._pool is not None else ())]

    def waits_for(self) -> str:
        """What a batch is waited for at this moment, in words; '' where none is. For another thread."""
        return self._waits.now()

    def close(self) -> None:
        """Stop the threads and processes; what is in flight is dropped.

        A thread that is at an image for longer than that takes is left behind: nothing else waits for it.
        """
        _open.discard(self)
        # What is read first: a decode thread that waits for bytes must get its error, or the pools never end.
        if self._ring is not None:
            self._ring.close()
        self._rows.stop()
        if self._pool is not None:
            self._pool.close()
        self._decoders.stop()
        self._planner.shutdown(wait=True, cancel_futures=True)
        at = self.pace.doing()
        left = self._decoders.join(_CLOSING_S if not self._late else _CLOSING_LATE_S)
        if left:
            log(f"  a stream was closed, and {left} of its threads do not end: {waited_for(at, 0)}", WARNING)
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
            return batch, lambda waits: _told(batch, waits.result(filled))
        places = [self._rows.find(position) for position in positions]
        # Rows in a row go to one thread, a few at once; a batch that is small for so many threads, fewer.
        some = max(1, min(TOGETHER, -(-n // self._threads)))
        parts = (range(n)[first : first + some] for first in range(0, n, some))
        tasks = [self._decoders.submit(self._rows.fill, batch, rows, [places[row] for row in rows]) for rows in parts]
        return batch, lambda waits: _all(tasks, waits)


def _processes(of: RowsOf, wanted: Processes, slots: int, pace: Pace, *, pinned: bool) -> DecodePool | None:
    """Those that decode; None where the system has no memory for them and the recipe has not asked for them."""
    try:
        return DecodePool(of, wanted, slots, of.config.read_threads, pace, pinned=pinned)
    except ConfigError as error:
        if of.config.decode_workers is not None:
            raise
        log(f"  threads decode, and no processes: {error}", WARNING)
        return None


def _all(tasks: Sequence[Future[Failed | None]], waits: Waits) -> None:
    for task in tasks:
        failed = waits.result(task)
        if failed is not None:
            raise failed.error


def _told(batch: Batch, filled: Filled) -> None:
    batch.samples, batch.replaced = filled
    batch.ordinals.copy_(torch.tensor([sample.ordinal for sample in batch.samples], dtype=torch.int64))


def default_decode_threads() -> int:
    """All CPUs of the rank but one for the thread that trains and one for those that plan and read: 2 to 32."""
    return min(MOST_DECODERS, max(2, rank_cpus() - 2))
