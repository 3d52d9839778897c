"""The cache of shards on a node: what one process has read from a store, the others there need not. No torch.

It stands around the reading of byte ranges. Where several processes want one chunk, one of them reads it and the others
wait for it. Nothing here is needed: where the disk is full, slow or broken, ranges come from the store as without it.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash
from pydantic import TypeAdapter, ValidationError

from vit_dist.config.cache import CacheConfig, CacheSize
from vit_dist.core.errors import AwayError, ConfigError, DataError, MissingError, RefusedError
from vit_dist.core.files import disk_problem, is_remote, local_path
from vit_dist.core.locks import LockHeldError, held, held_soon
from vit_dist.core.log import WARNING, log, log_to_file
from vit_dist.core.node_cache import DIR_VARIABLE, SIZE_VARIABLE, of_machine
from vit_dist.core.places import check_local
from vit_dist.data.cache_counts import CacheCounts
from vit_dist.data.cache_files import (
    CELL,
    CHUNK_OVERHEAD,
    LOCKS,
    CachedShard,
    Chunk,
    chunks_of,
    open_folder,
    runs,
)
from vit_dist.data.cache_ledger import Ledger
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.sets import Part, Parts

Fetch = Callable[[int, int], bytes | memoryview]
"""Bytes [start, end) of a shard, from where it lies."""

_WAIT_S = 20.0
"""So long a process waits for another one that reads what it wants; one that died it does not wait for."""
_AGAIN_S = 60.0
"""So long nothing is written after the disk took no more."""
_NOTED_S = 60.0
"""So often it is noted that a chunk is in use."""
_GAP_CELLS = 4
"""Cells that are read from the store once more, where they lie between two that are wanted: cheaper than a request."""
_MOST_NOTED = 100_000


class ShardCache:
    """One directory of cached shards, as this process uses it; safe to use from many threads.

    Args:
        place: the directory in which the user's own folder lies.
        bound: bytes that the folder may hold.
        setting: what says so, for errors.

    Raises:
        ConfigError: the directory is not there, another user's, or holds something else.
        OSError: the disk does not take it.
    """

    def __init__(self, place: Path, bound: int, setting: str) -> None:
        self._place, self._setting = place, setting
        self._folder = open_folder(place, setting)
        self._counts, self._lock = CacheCounts(), threading.Lock()
        self._parts: dict[tuple[str, str, int], Part | None] = {}
        self._own: set[str] = set()
        self._told: set[str] = set()
        self._noted: dict[str, float] = {}
        self._unwritable_until, self._is_gone = 0.0, False
        self._ledger = Ledger(self._folder, bound, self._own_keys)
        self._ledger.begin()

    @property
    def name(self) -> str:
        """For people."""
        return f"cache of shards in {self._folder}"

    def counts(self) -> CacheCounts:
        """What was read through it so far, of all threads."""
        with self._lock:
            return self._counts + CacheCounts(evicted_bytes=self._ledger.evicted_bytes)

    def keep(self, parts: Parts) -> None:
        """What this process reads: none of it is removed for something else."""
        with self._lock:
            for part in parts:
                chosen = xxhash.xxh3_64_intdigest(part.subset.shards.tobytes())
                self._parts.setdefault((part.manifest.base, part.manifest.fingerprint, chosen), part)

    def read(
        self, shard: CachedShard, start: int, end: int, fetch: Fetch, stopped: Callable[[], bool] = lambda: False
    ) -> bytes | memoryview:
        """Bytes [start, end) of a shard: what the cache has of them from there, the rest from the store, and kept.

        Args:
            shard: whose bytes.
            start, end: within it.
            fetch: reads them from the store.
            stopped: whether another process is waited for no longer.

        Raises:
            DataError: what `fetch` raises.
        """
        if not 0 <= start < end <= shard.size:
            return fetch(start, end)
        cells = range(start // CELL, -(-end // CELL))
        begin, finish = cells.start * CELL, min(cells.stop * CELL, shard.size)
        content = memoryview(bytearray(finish - begin))
        missing, fetched = self._load(shard, cells, content, cells.start), 0
        if missing:
            with self._alone(shard, missing, stopped):
                # Whoever held it may have brought them.
                found = (self._load(shard, range(a, b + 1), content, cells.start, again=True) for a, b in runs(missing))
                missing = [cell for lacking in found for cell in lacking]
                try:
                    for a, b in _joined(missing):
                        part = slice(a * CELL - begin, min((b + 1) * CELL, shard.size) - begin)
                        content[part] = fetch(begin + part.start, begin + part.stop)
                except (AwayError, MissingError, RefusedError):
                    raise
                except DataError:
                    # Of a shard that was cut off what is wanted may be there, and the cells around it not.
                    return self._counted(fetch(start, end), 0, end - start)
                self._store(shard, missing, content, cells.start)
        for cell in missing:
            fetched += min(end, (cell + 1) * CELL) - max(start, cell * CELL)
        return self._counted(content[start - begin : end - begin], end - start - fetched, fetched)

    def forget(self, shard: CachedShard) -> None:
        """Remove what is kept of a shard: what is wrong with it may lie here, and is not to outlive its mending."""
        cells = range(-(-shard.size // CELL))
        for chunk, _ in chunks_of(self._folder, shard, cells):
            chunk.remove()

    def _counted(self, content: bytes | memoryview, hit_bytes: int, miss_bytes: int) -> bytes | memoryview:
        self._count(CacheCounts(hit_bytes=hit_bytes, miss_bytes=miss_bytes))
        return content

    def _count(self, more: CacheCounts) -> None:
        with self._lock:
            self._counts += more

    def _load(
        self, shard: CachedShard, cells: range, content: memoryview, first: int, *, again: bool = False
    ) -> list[int]:
        """Read what is there of some cells into `content`, which begins with cell `first`; those that are not there.

        Args:
            shard, cells, content, first: see above.
            again: damage was told before.
        """
        missing: list[int] = []
        for chunk, inside in chunks_of(self._folder, shard, cells):
            part = range(inside[0], inside[-1] + 1)
            try:
                lacking, damaged = chunk.read(part, content[(part.start - first) * CELL :])
            except OSError as error:
                self._trouble(error, "read")
                lacking, damaged = inside, 0
            if damaged and not again:
                self._tell_damage(chunk, damaged)
            if len(lacking) < len(inside):
                self._note(chunk)
            missing += lacking
        return missing

    def _note(self, chunk: Chunk) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._noted.get(chunk.name, -_NOTED_S) + _NOTED_S:
                return
            if len(self._noted) >= _MOST_NOTED:
                self._noted.clear()
            self._noted[chunk.name] = now
        chunk.note_use()

    @contextlib.contextmanager
    def _alone(self, shard: CachedShard, cells: Sequence[int], stopped: Callable[[], bool]) -> Iterator[None]:
        """Be the only one that reads these cells from the store, unless another one takes too long over it."""
        until, waited = time.monotonic() + _WAIT_S, False
        with contextlib.ExitStack() as stack:
            # In the order of their numbers, so that no two wait for each other.
            for chunk, _ in chunks_of(self._folder, shard, cells):
                path = self._folder / LOCKS / chunk.name
                try:
                    try:
                        stack.enter_context(held(path, remove=True))
                    except LockHeldError:
                        waited, left = True, until - time.monotonic()
                        with contextlib.suppress(LockHeldError):
                            stack.enter_context(held_soon(path, left, remove=True, stopped=stopped))
                except OSError as error:
                    self._trouble(error, "written")
            if waited:
                self._count(CacheCounts(waits=1))
            yield

    def _store(self, shard: CachedShard, cells: Sequence[int], content: memoryview, first: int) -> None:
        if not cells:
            return
        chunks = list(chunks_of(self._folder, shard, cells))
        # Also of chunks that are there now: they may be gone by then.
        need = len(cells) * CELL + CHUNK_OVERHEAD * len(chunks)
        stored = False
        if time.monotonic() >= self._unwritable_until:
            try:
                if self._is_gone:
                    self._make_anew()
                with self._ledger.room(need) as stored:
                    for chunk, inside in chunks if stored else ():
                        chunk.write(inside, content, first)
            except OSError as error:
                stored = False
                self._trouble(error, "written")
        size = len(cells) * CELL
        self._count(CacheCounts(stored_bytes=size) if stored else CacheCounts(unstored_bytes=size))

    def _make_anew(self) -> None:
        """Make the folder again that somebody has removed, where the directory that it was in is there."""
        if self._place.is_dir():
            with contextlib.suppress(ConfigError):
                # Of another user, or another version: left alone, as it is at the start.
                open_folder(self._place, self._setting)
                self._is_gone = False

    def _own_keys(self) -> set[str]:
        with self._lock:
            new = {name: part for name, part in self._parts.items() if part is not None}
        for part in new.values():
            self._own |= {_shard(part.manifest, int(number)).key for number in part.subset.shards}
        with self._lock:
            # By their keys from here on: the sets themselves may be done with.
            self._parts |= dict.fromkeys(new)
        return self._own

    def _trouble(self, error: OSError, doing: str) -> None:
        """Say it once, and leave the disk alone for a while."""
        self._unwritable_until = time.monotonic() + _AGAIN_S
        # Folders of it: that a chunk is not there is no error.
        self._is_gone = self._is_gone or error.errno == errno.ENOENT
        reason = "it was removed" if self._is_gone else disk_problem(error) or f"{error.strerror or error}"
        self._tell(
            "trouble",
            f"  the {self.name} cannot be {doing}: {reason}. What it lacks is read from the "
            f"store meanwhile; writing is tried again each minute, and not told again",
        )

    def _tell_damage(self, chunk: Chunk, cells: int) -> None:
        self._count(CacheCounts(damaged_cells=cells))
        self._tell(
            "damage",
            f"  the cache of shards is damaged: {cells} of the blocks in {chunk.path} that were wanted do not fit "
            f"their checksums, as after a crash of the machine; they are read from the store again. More such are not "
            f"told; where they come back, look at the disk",
        )

    def _tell(self, what: str, message: str) -> None:
        with self._lock:
            new = what not in self._told
            self._told.add(what)
        if new:
            log(message, WARNING)


class CachedReads:
    """The cache as one reader of shards uses it; without one, ranges come from where the shards lie.

    Args:
        config: what the recipe says; None: the machine's cache, where there is one.
        parts: what will be read.

    Raises:
        ConfigError: see `ShardCache`; or a directory without a size.
    """

    def __init__(self, config: CacheConfig | None, parts: Parts) -> None:
        self._stopped = threading.Event()
        # Of sets on this machine's own disks nothing is kept, so that their cache need not be in order.
        remote = any(_is_remote(part.manifest) for part in parts)
        self._cache = open_cache(config) if remote else None
        if self._cache is not None:
            self._cache.keep(parts)
            self._before = self._cache.counts()

    def read(self, part: Part, shard: int, fetch: Callable[[str, int, int], bytes | memoryview]) -> Fetch | None:
        """What reads byte ranges of a shard of a part's manifest, given what reads those of a URL; None: no cache."""
        url = part.manifest.shard_url(shard)

        def direct(start: int, end: int) -> bytes | memoryview:
            return fetch(url, start, end)

        cache = self._cache
        if cache is None or not is_remote(url):
            return None
        known = _shard(part.manifest, shard)
        return lambda start, end: cache.read(known, start, end, direct, self._stopped.is_set)

    def anew(self, part: Part, shard: int, fetch: Callable[[str, int, int], bytes | memoryview]) -> Fetch | None:
        """What reads a shard that is not what its manifest says, past the cache, which forgets it; None without one."""
        url, cache = part.manifest.shard_url(shard), self._cache
        if cache is None or not is_remote(url):
            return None

        def forget_and_read(start: int, end: int) -> bytes | memoryview:
            cache.forget(_shard(part.manifest, shard))
            return fetch(url, start, end)

        return forget_and_read

    def stop(self) -> None:
        """Wait for no other process any more; what the cache was good for stands in this process's log."""
        if self._cache is None or self._stopped.is_set():
            return
        self._stopped.set()
        since = self._cache.counts() - self._before
        if since.hits is not None:
            log_to_file(f"  {self._cache.name}: {since}")


_open: dict[tuple[str, int], ShardCache | None] = {}
_opening = threading.Lock()


def open_cache(config: CacheConfig | None) -> ShardCache | None:
    """The cache that a recipe names, else the machine's; None where there is none, or the disk takes nothing.

    Raises:
        ConfigError: see `ShardCache`; or a directory without a size, or a size without a directory.
    """
    place, size, setting = _place(config)
    if not size:
        return None
    with _opening:
        key = (str(place.absolute()), size)
        if key not in _open:
            try:
                _open[key] = ShardCache(place, size, setting)
            except OSError as error:
                reason = disk_problem(error) or f"{error.strerror or error}"
                log(f"  {setting}: there is no cache of shards: {reason}. All is read from the store", WARNING)
                _open[key] = None
        return _open[key]


def counts() -> CacheCounts:
    """What this process had of all its caches since it was started."""
    with _opening:
        return sum((cache.counts() for cache in _open.values() if cache is not None), CacheCounts())


def _place(config: CacheConfig | None) -> tuple[Path, int, str]:
    """Directory, size (0: no cache) and what says so."""
    folder, said = of_machine()
    size = config.size if config is not None else 0
    if config is not None and (config.dir or not size):
        return local_path(config.dir), size, f"data.cache.dir={config.dir}"
    if config is not None and not folder:
        raise ConfigError(
            f"data.cache.dir is not given, and {DIR_VARIABLE} names none; give one, such as /local/scratch"
        )
    if config is None and folder:
        size = _machine_size(said)
    return check_local(folder, DIR_VARIABLE) if size else Path(), size, f"{DIR_VARIABLE}={folder}"


def _machine_size(text: str) -> int:
    try:
        return int(TypeAdapter(CacheSize).validate_python(text))
    except ValidationError as error:
        raise ConfigError(
            f"{SIZE_VARIABLE}={text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}; it goes with "
            f"{DIR_VARIABLE}, the directory of this machine's cache of shards"
        ) from None


def _is_remote(manifest: ShardManifest) -> bool:
    """Whether any of its shards lies in a store."""
    return is_remote(manifest.base) or any("://" in shard.url and is_remote(shard.url) for shard in manifest.shards)


def _shard(manifest: ShardManifest, shard: int) -> CachedShard:
    entry = manifest.shards[shard]
    return CachedShard.of(manifest.shard_url(shard), entry.num_bytes, entry.checksum)


def _joined(cells: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of cells, joined where few lie between two."""
    joined: list[tuple[int, int]] = []
    for first, last in runs(cells):
        if joined and first - joined[-1][1] - 1 <= _GAP_CELLS:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
