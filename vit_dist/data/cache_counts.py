"""What the cache of shards was good for, in bytes. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vit_dist.core.units import format_bytes


@dataclass(frozen=True)
class CacheCounts:
    """What a process had of its caches since it was started; the difference of two tells of the time between.

    Attributes:
        hit_bytes: of ranges that were asked for, read from the disk of the node.
        miss_bytes: of those, read from the store.
        stored_bytes: written to the cache.
        unstored_bytes: read from the store and not kept: no room, others wrote, or a disk that took no more.
        evicted_bytes: removed to make room.
        waits: ranges for which another process or thread was waited for.
        damaged_cells: cells (64 KiB) that did not fit their checksum, and were read from the store again.
    """

    hit_bytes: int = 0
    miss_bytes: int = 0
    stored_bytes: int = 0
    unstored_bytes: int = 0
    evicted_bytes: int = 0
    waits: int = 0
    damaged_cells: int = 0

    @property
    def hits(self) -> float | None:
        """Share of the bytes that came from the node's disk, 0 to 1; None where nothing was asked for."""
        asked = self.hit_bytes + self.miss_bytes
        return self.hit_bytes / asked if asked else None

    def __str__(self) -> str:
        asked, store = format_bytes(self.hit_bytes + self.miss_bytes), format_bytes(self.miss_bytes)
        said = f"{100 * (self.hits or 0):.1f}% of {asked} were there, {store} came from the store"
        kept = f"{format_bytes(self.stored_bytes)} kept, {format_bytes(self.unstored_bytes)} not kept"
        gone = f"{format_bytes(self.evicted_bytes)} removed, {self.damaged_cells} blocks damaged"
        return f"{said}; {kept}, {gone}; waited for others {self.waits} times"

    def __add__(self, other: CacheCounts) -> CacheCounts:
        return CacheCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, earlier: CacheCounts) -> CacheCounts:
        return CacheCounts(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))
