"""The decode processes of a rank, seen from it: tasks go out, rows of batches come back in shared memory.

A lane of the order belongs to one process, so that its bytes are read once. What the rank's Python does for an image is
a share of one message out and one back for each process that has rows in a batch; it neither reads nor looks at bytes.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.memory import oom_kills
from vit_dist.core.process import is_stopped
from vit_dist.core.seeding import I64
from vit_dist.core.store_patience import known
from vit_dist.core.world import rank_cpus
from vit_dist.data.batch import Replacement, Sample
from vit_dist.data.decode_server import READY
from vit_dist.data.decode_start import server_state, start
from vit_dist.data.decode_worker import LOOK_ALONE, Done, Setup, Task
from vit_dist.data.doing import Doing
from vit_dist.data.pace import Pace
from vit_dist.data.ring import Buffers
from vit_dist.data.rows import RowsOf
from vit_dist.data.shared_memory import AVAILABLE, Layout, SharedMemory

MOST_DECODERS = 32
_AUTO_CPUS = 6
_MOST_NEIGHBOURS = 16
_TASKS_AHEAD = 2
_CLOSING_S = 10.0


def num_processes(config: DataConfig, lanes: int | None) -> int:
    """How many processes decode for a rank; 0: threads do.

    Left to itself: as many as there would be threads, where the rank has a GPU, whose kernels a thread launches that
    wants Python's lock, and CPUs for more than a few; unless a number of threads is asked for.

    Args:
        config: says how many, or leaves it out.
        lanes: that the rank reads; None: each process can read all.

    Raises:
        ConfigError: processes are asked for where there can be none.
    """
    asked = config.decode_workers
    if asked is not None and asked > 0 and not AVAILABLE:
        raise ConfigError(
            f"data.decode_workers={asked}: this system ({sys.platform}) has no memory that processes can share as they "
            f"need it (memfd, Linux 3.17); set data.decode_workers=0"
        )
    if asked is None:
        wanted = AVAILABLE and torch.cuda.is_available() and config.decode_threads is None
        asked = min(MOST_DECODERS, rank_cpus() - 2) if wanted and rank_cpus() >= _AUTO_CPUS else 0
    return min(asked, lanes) if lanes is not None else asked


@dataclass(frozen=True)
class Processes:
    """Decode processes that a reader is to have.

    Attributes:
        count: of them, at least 1.
        batch: rows of a batch, at most.
        lanes: of an array of positions: what a process reads all of, or none; None: it does not matter.
        num_lanes: that the rank reads.
        at_once: the first batch waits for them; else threads make batches until they are there and have read some.
    """

    count: int
    batch: int
    lanes: Callable[[I64], I64] | None
    num_lanes: int = 0
    at_once: bool = False


class Filled(NamedTuple):
    """What is told of a batch whose rows are filled."""

    samples: list[Sample]
    replaced: list[Replacement]


@dataclass
class _Job:
    """A batch at work."""

    rows: dict[int, Sequence[int]]  # of each process
    samples: list[Sample]
    begun: float = field(default_factory=time.monotonic)
    replaced: list[Replacement] = field(default_factory=list)
    failed: list[tuple[int, BaseException]] = field(default_factory=list)
    future: Future[Filled] = field(default_factory=Future)


class DecodePool:
    """Starts the processes, and ends them.

    Args:
        rows: what rows hold; without `make`.
        wanted: how many processes, and what each reads.
        slots: batches that are at work or with whoever takes them.
        read_threads: byte ranges asked for at once, by all processes together; each has two at least.
        pace: where what they do is counted.
        pinned: beside a GPU, which copies out of the slots themselves.

    Raises:
        ConfigError: there is not so much memory, or it cannot be pinned.
    """

    def __init__(
        self, rows: RowsOf, wanted: Processes, slots: int, read_threads: int, pace: Pace, *, pinned: bool = False
    ) -> None:
        layout = Layout(wanted.count, slots, wanted.batch, rows.image_size, rows.max_labels)
        self._wanted, self._pace, self._begun = wanted, pace, time.monotonic()
        self._memory = SharedMemory(layout)
        self._setup = Setup(rows, layout, max(2, -(-read_threads // wanted.count)), known())
        self._owner: dict[int, int] = {}
        self._turn = 0
        # Lanes beside each other go to one process, for fewer messages, where there is enough for all to do; the last
        # ones, which do not go round, one by one, so that no process has two lanes more than another.
        self._neighbours = min(_MOST_NEIGHBOURS, max(1, slots * wanted.batch // (_TASKS_AHEAD * wanted.count)))
        round_of_all = wanted.count * self._neighbours
        self._beside = wanted.num_lanes // round_of_all * round_of_all
        self._jobs: dict[int, _Job] = {}
        self._submitted, self._closing = 0, False
        self._pids: list[int] = []
        self._oom_kills = oom_kills()
        self._failure: Exception | None = None
        self._looked: Future[Filled] | None = None
        self._lock, self._ready = threading.Lock(), threading.Event()
        try:
            if pinned and torch.cuda.is_available():
                self._memory.pin()
            self._control, self._workers = start(self._memory.fd, wanted.count)
        except OSError as error:
            self._memory.release()
            raise ConfigError(
                f"{wanted.count} decode processes cannot be started ({error}); set data.decode_workers=0"
            ) from error
        except BaseException:
            self._memory.release()
            raise
        self._listener = threading.Thread(target=self._listen, name="decode processes", daemon=True)
        self._listener.start()

    def buffers(self) -> list[Buffers]:
        """The buffers of all slots, for a ring."""
        return self._memory.buffers()

    def takes_over(self, positions: Sequence[int]) -> bool:
        """Whether the batch of these positions is for the processes.

        They are there, and have begun to read where it is; or it has to wait for them.
        """
        if self._wanted.at_once:
            self._ready.wait()
            return True
        if not self._ready.is_set():
            return False
        # Clients of stores, indexes and the first windows take longer than a batch: meanwhile threads go on.
        if self._looked is None:
            self._looked = self.submit(LOOK_ALONE, positions)
        return self._looked.done()

    def submit(self, slot: int, positions: Sequence[int]) -> Future[Filled]:
        """Have the rows of a slot filled, one a position. By one thread, positions ascending."""
        shares = [(process, rows) for process, rows in enumerate(self._share(positions)) if rows]
        job = _Job(dict(shares), [Sample("", "", -1, -1, -1)] * len(positions))
        with self._lock:
            number = self._submitted = self._submitted + 1
            if self._failure is not None:
                job.future.set_exception(self._failure)
                return job.future
            self._jobs[number] = job
        for process, rows in shares:
            # One that is gone is told of by the listener.
            with contextlib.suppress(OSError):
                self._workers[process].send(Task(number, slot, rows, [positions[row] for row in rows]))
        return job.future

    def doing(self) -> list[Doing]:
        """What the processes are at that have rows to fill."""
        if not self._ready.is_set():
            who, since = f"the decode processes (their server: {server_state()})", time.monotonic() - self._begun
            return [Doing(who, "", "have not begun", since)] if self._wanted.at_once else []
        begun: dict[int, float] = {}
        with self._lock:
            # Nobody waits for a look ahead.
            for job in (job for job in self._jobs.values() if job.future is not self._looked):
                for process in list(job.rows):
                    begun.setdefault(process, job.begun)
        return [self._doing(process, since) for process, since in sorted(begun.items())]

    def _doing(self, process: int, begun: float) -> Doing:
        pid, note = self._pids[process], self._memory.noted(process)
        seconds = time.monotonic() - (note.since if note.stage else begun)
        who = f"decode process {process} (pid {pid})"
        return Doing(who, note.stage, note.text, seconds, pid if is_stopped(pid) else 0)

    def close(self) -> None:
        """End the processes; batches at work are dropped."""
        self._closing = True
        self._fail(DataError("the stream was closed"))
        if self._ready.is_set():
            with contextlib.suppress(OSError):
                self._control.send(None)
            # Its end of the line closes when all processes are gone.
            self._listener.join(_CLOSING_S)
        # There are none yet, and will be none; or they do not go, and learn by this that nobody waits for them.
        with socket.socket(fileno=os.dup(self._control.fileno())) as line, contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        for connection in (self._control, *self._workers):
            connection.close()
        self._memory.release()

    def _share(self, positions: Sequence[int]) -> list[list[int]]:
        """The rows of each process."""
        count, shares = self._wanted.count, [list[int]() for _ in range(self._wanted.count)]
        if self._wanted.lanes is None:
            for first in range(0, len(positions), self._neighbours):
                shares[self._turn] += range(first, min(first + self._neighbours, len(positions)))
                self._turn = (self._turn + 1) % count
            return shares
        for row, lane in enumerate(self._wanted.lanes(np.asarray(positions, dtype=np.int64)).tolist()):
            owner = self._owner.get(lane)
            if owner is None:
                known = len(self._owner)
                owner = known // self._neighbours if known < self._beside else known - self._beside
                owner = self._owner[lane] = owner % count
            shares[owner].append(row)
        return shares

    def _listen(self) -> None:
        """In a thread: start the processes, then take what they say, until there is nobody to say anything."""
        try:
            self._control.send((sys.path, dict(os.environ)))
            self._control.send(self._setup)
            said, self._pids = self._control.recv()
            if said == READY:
                self._ready.set()
                self._receive()
        except (EOFError, OSError) as error:
            if not self._closing:
                self._fail(self._all_gone(error))
        except Exception as error:  # an object that cannot be sent
            self._fail(error)
        self._ready.set()

    def _receive(self) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._control, selectors.EVENT_READ)
            for process, connection in enumerate(self._workers):
                waiting.register(connection, selectors.EVENT_READ, process)
            while True:
                for key, _ in waiting.select():
                    if key.data is None:
                        self._fail(self._process_gone(*self._control.recv()))
                        continue
                    try:
                        done = self._workers[key.data].recv()
                    except (EOFError, OSError):
                        # Why, the keeper knows.
                        waiting.unregister(key.fileobj)
                        continue
                    self._take(key.data, done)

    def _take(self, process: int, done: Done) -> None:
        self._pace.add(done.did)
        with self._lock:
            job = self._jobs.get(done.number)
        if job is None:
            return
        rows = job.rows.pop(process)
        for row, sample in zip(rows, done.samples, strict=False):
            job.samples[row] = Sample(*sample)
        job.replaced += done.replaced
        if done.failed is not None:
            job.failed.append(done.failed)
        if job.rows:
            return
        with self._lock:
            if self._jobs.pop(done.number, None) is None:
                return
        if job.failed:
            # The same one in every run, whichever process was the first.
            job.future.set_exception(min(job.failed, key=lambda one: one[0])[1])
        else:
            job.future.set_result(Filled(job.samples, job.replaced))

    def _fail(self, error: Exception) -> None:
        """What is at work fails, and all that comes after."""
        with self._lock:
            self._failure = self._failure or error
            jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.future.set_exception(self._failure)

    def _process_gone(self, process: int, pid: int, code: int) -> DataError:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        note = self._memory.noted(process)
        where = note.text if note.stage == "decode" else ""
        if where and code != -signal.SIGKILL:
            return DataError(
                f"decode process {process} (pid {pid}) {how} at the image {where}: its decoder does not survive that "
                f"file. Name the key in data.takedown to go on without it"
            )
        at = f" at the image {where}" if where else ""
        why = ""
        if code == -signal.SIGKILL:
            killed = oom_kills() > self._oom_kills
            why = ", by the kernel for want of memory" if killed else ", perhaps for want of memory"
        return DataError(
            f"decode process {process} (pid {pid}) {how}{at}{why}. Start the run again, with fewer data.decode_workers "
            f"where memory is short; data.decode_workers=0 decodes in threads"
        )

    def _all_gone(self, error: Exception) -> DataError:
        return DataError(
            f"the decode processes could not be started, or were ended all at once ({type(error).__name__}; their "
            f"server: {server_state()}); what they said stands above. Start the run again; data.decode_workers=0 "
            f"decodes in threads"
        )
