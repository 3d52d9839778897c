"""What the stages between a store and a batch do, counted while they do it: bytes, requests, images, seconds. No torch.

Every thread has numbers of its own, which only it writes and which only grow, so that counting takes no lock; whoever
looks adds them up. A further number is a field of `Counts`, and is added up with the others.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TypeVar

from vit_dist.core.urls import redact
from vit_dist.data.doing import Doing, Stage

T = TypeVar("T")


@dataclass(slots=True)
class Counts:
    """Numbers of one thread, or of all together, since the stream was opened or between two looks.

    Attributes:
        requests: ranges asked for, and indexes in a store; those that failed included.
        retries: of these, that were asked again since a store stumbled.
        read_bytes: of tars, that came.
        asked_bytes: of tars, that a cache of the node was asked for.
        hit_bytes: of those, that came from its disk, and not from the store.
        waited_s: seconds in which whoever decodes had no bytes to decode.
        images: that were decoded, cropped and augmented, or could not be.
        decode_s: seconds that this took.
        decode_cpu_s: seconds of CPU time of whoever did it, with what it did for its samples besides.
        replaced: samples in whose place another one was read, since they are broken or taken down.
        held_bytes: of tars that were put into memory.
        freed_bytes: of those, that are there no longer.
    """

    requests: int = 0
    retries: int = 0
    read_bytes: int = 0
    asked_bytes: int = 0
    hit_bytes: int = 0
    waited_s: float = 0.0
    images: int = 0
    decode_s: float = 0.0
    decode_cpu_s: float = 0.0
    replaced: int = 0
    held_bytes: int = 0
    freed_bytes: int = 0

    def add(self, other: Counts, times: int = 1) -> Counts:
        """Add others to these, so many times; these."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + times * getattr(other, one.name))
        return self


@dataclass(frozen=True)
class Slowest:
    """What took longest: one read, or one stage of an image, which is decoding as a rule.

    Attributes:
        seconds: that it took; of an image, of CPU time.
        what: it was, with its shard, without secrets; '' for nothing.
    """

    seconds: float = 0.0
    what: str = ""


@dataclass(frozen=True)
class Interval:
    """What the stages of a stream did between two looks.

    Attributes:
        seconds: that went by.
        counts: what was counted in them.
        held_bytes: of tars, in memory at the end of them.
        decoders: threads or processes that decode.
        readers: reads in flight at once.
        processes: whether they are processes.
        read: the slowest read.
        image: the slowest stage of one.
    """

    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)
    held_bytes: int = 0
    decoders: int = 1
    readers: int = 1
    processes: bool = False
    read: Slowest = Slowest()
    image: Slowest = Slowest()


class Tally:
    """What one thread counts; of one that decodes, a clock, which costs two microseconds an image, and what it is at.

    Attributes:
        thread: its name.
        counts: its numbers.
        read: its slowest read since somebody looked.
        image: the slowest stage of an image.
    """

    __slots__ = ("_at", "_cpu", "_stage", "_what", "counts", "image", "read", "thread")

    def __init__(self) -> None:
        self.counts, self.read, self.image = Counts(), Slowest(), Slowest()
        self.thread = threading.current_thread().name
        self._at, self._cpu = 0.0, time.thread_time()
        self._stage: Stage = ""
        self._what: Callable[[], str] = str

    def wants(self, what: Callable[[], str]) -> None:
        """From now on this thread waits for the bytes of a sample.

        Args:
            what: which image, with its shard; asked only where it is slow.
        """
        self._what, self._at, self._stage = what, time.perf_counter(), "store"

    def has(self) -> None:
        """They are here, and are decoded from now on."""
        now = time.perf_counter()
        self.counts.waited_s += now - self._at
        self._at, self._stage = now, "decode"

    def decodes(self, what: Callable[[], str]) -> None:
        """From now on this thread goes through a stage of an image's way behind its bytes.

        Args:
            what: which image, with its shard.
        """
        self._what, self._stage = what, "decode"

    def rests(self) -> None:
        """It has nothing to do."""
        self._stage, self._what = "", str

    def doing(self) -> Doing | None:
        """What it is at; asked by another thread."""
        stage, what, at = self._stage, self._what, self._at
        return Doing(f"thread {self.thread}", stage, what(), time.perf_counter() - at) if stage else None

    def did(self) -> None:
        """What was done since the last such word, but for waiting, was a stage of an image's way."""
        # One question a stage, not two, at a microsecond each: waiting takes no CPU time.
        now, cpu = time.perf_counter(), time.thread_time()
        spent = cpu - self._cpu
        self.counts.decode_s += now - self._at
        self.counts.decode_cpu_s += spent
        self._at, self._cpu = now, cpu
        if spent > self.image.seconds:
            self.image = Slowest(spent, self._what())


class Pace:
    """The counters of one stream.

    Attributes:
        decoders: threads or processes that decode, once it is known.
        readers: reads in flight at once, once it is known.
        processes: whether they are processes.
    """

    def __init__(self) -> None:
        self.decoders = self.readers = 1
        self.processes = False
        self._own = threading.local()
        # Appending is one step of the interpreter: threads need no lock for it.
        self._threads: list[Tally] = []
        self._last, self._looked = Counts(), time.perf_counter()

    @property
    def thread(self) -> Tally:
        """Of the thread that asks."""
        try:
            found: Tally = self._own.thread
        except AttributeError:
            found = self._own.thread = Tally()
            self._threads.append(found)
        return found

    @property
    def mine(self) -> Counts:
        """The numbers of the thread that asks."""
        return self.thread.counts

    @contextmanager
    def reading(self, url: str, num_bytes: int) -> Iterator[None]:
        """Around a read of so many bytes of a tar; what fails has brought none."""
        began = time.perf_counter()
        yield
        own, seconds = self.thread, time.perf_counter() - began
        own.counts.read_bytes += num_bytes
        if seconds > own.read.seconds:
            own.read = Slowest(seconds, f"{num_bytes / 1e6:.1f} MB of {redact(url)}")

    def hold(self, holder: T, num_bytes: int) -> T:
        """So many bytes of a tar are in memory for as long as `holder` is, which is given back."""
        self.mine.held_bytes += num_bytes
        # Where the last reference goes, in whichever thread; nothing is left to be counted at the end of the process.
        weakref.finalize(holder, self._free, num_bytes).atexit = False
        return holder

    def add(self, others: Interval) -> None:
        """Count what another process did, as this thread's own."""
        own = self.thread
        own.counts.add(others.counts)
        own.read = max(own.read, others.read, key=lambda slow: slow.seconds)
        own.image = max(own.image, others.image, key=lambda slow: slow.seconds)

    def doing(self) -> list[Doing]:
        """What those threads that decode are at."""
        return [doing for one in list(self._threads) if (doing := one.doing()) is not None]

    def _free(self, num_bytes: int) -> None:
        self.mine.freed_bytes += num_bytes

    def total(self) -> Counts:
        """All that was counted since the stream was opened."""
        total = Counts()
        for one in list(self._threads):
            total.add(one.counts)
        return total

    def since_last(self) -> Interval:
        """What was counted since this was called last, or since the stream was opened."""
        now, total, threads = time.perf_counter(), self.total(), list(self._threads)
        read = max((one.read for one in threads), key=lambda slow: slow.seconds, default=Slowest())
        image = max((one.image for one in threads), key=lambda slow: slow.seconds, default=Slowest())
        for one in threads:
            # A thread may be about to set them: then the next look tells it.
            one.read = one.image = Slowest()
        counts = Counts().add(total).add(self._last, -1)
        seconds = now - self._looked
        self._last, self._looked = total, now
        held = total.held_bytes - total.freed_bytes
        return Interval(seconds, counts, held, self.decoders, self.readers, self.processes, read, image)
