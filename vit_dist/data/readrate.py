"""How fast this process reads a dataset's bytes: ranges at random places, as training reads them. No torch."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vit_dist.core.errors import AwayError, DataError
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.ranges import RangeReader

_RANGE_BYTES = 4 << 20
_THREADS = 8


@dataclass(frozen=True)
class ReadRate:
    """What was read.

    Attributes:
        num_bytes, seconds: in how long.
        first_s: until the first range was there: connection, credentials, latency.
        error: what went wrong first, or ''.
        num_ranges: in how many reads.
    """

    num_bytes: int
    seconds: float
    first_s: float
    error: DataError | None = None
    num_ranges: int = 0

    @property
    def bytes_per_s(self) -> float:
        """The rate; 0 where nothing came."""
        return self.num_bytes / self.seconds if self.num_bytes and self.seconds > 0 else 0.0


def places(manifest: ShardManifest, most: int = 16) -> list[tuple[str, int]]:
    """URL and size of some shards, spread evenly over the set."""
    step = max(1, len(manifest.shards) // most)
    return [(manifest.shard_url(i), manifest.shards[i].num_bytes) for i in range(0, len(manifest.shards), step)][:most]


def measure(
    files: Sequence[tuple[str, int]],
    *,
    seconds: float = 2.0,
    seed: int | None = None,
    threads: int = _THREADS,
    range_bytes: int = _RANGE_BYTES,
    before: Callable[[str, int, int], None] | None = None,
) -> ReadRate:
    """Read random ranges of files of known size for some seconds, in a few threads.

    Args:
        files: URL and size in bytes of each; at least one.
        seconds: after which no new range is begun.
        seed: of the places; None draws them anew, so that no cache has them.
        threads: ranges in flight at once.
        range_bytes: of each, at most.
        before: called with URL, begin and end of each range before it is read.
    """
    reader = RangeReader(tries=2, timeout_s=10.0)
    choose, lock = random.Random(seed), threading.Lock()
    began = time.monotonic()
    ended: list[tuple[float, int]] = []
    errors: list[DataError] = []

    def work() -> None:
        while not errors and (not ended or time.monotonic() - began < seconds):
            with lock:
                url, size = choose.choice(files)
                start = choose.randrange(max(1, size - range_bytes + 1))
            end = min(size, start + range_bytes)
            try:
                if before is not None:
                    before(url, start, end)
                reader.read(url, start, end)
            except DataError as error:
                errors.append(error)
                return
            ended.append((time.monotonic(), end - start))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    with contextlib.closing(reader):
        for thread in workers:
            thread.start()
        # A store that never answers is given up by the reader; the limit is for what hangs before it gets there.
        for thread in workers:
            thread.join(max(0.1, began + seconds + 45.0 - time.monotonic()))
    if not errors and not ended:
        errors.append(AwayError(f"{files[0][0]}: no answer"))
    last = max((at for at, _ in ended), default=time.monotonic())
    first = min((at for at, _ in ended), default=last)
    total = sum(size for _, size in ended)
    return ReadRate(total, last - began, first - began, errors[0] if errors else None, len(ended))
