"""How much memory this process can still have, of machine and control groups (a Slurm job's); what pinning takes; how
want of it shows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# torch's allocator, and libjpeg's; other cases of the latter are about what the file asks for.
_WANT = re.compile(r"can(?:no|')t allocate memory|Insufficient memory \(case [24]\)", re.IGNORECASE)


def is_shortage(error: BaseException) -> bool:
    """Whether something failed for want of memory: no fault of what it was done to."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _WANT.search(str(error)) is not None)


def oom_kills(proc: Path = _PROC) -> int:
    """How many processes of this machine the kernel has killed for want of memory since it began; 0: not told."""
    return next((int(line.split()[1]) for line in _lines(proc / "vmstat") if line.startswith("oom_kill ")), 0)


def available_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that can be taken without swapping or being killed for it; None where the system does not say (no Linux).

    What the kernel would give back (caches of files) counts as available.
    """
    headrooms = [*_machine(proc), *_version_2(proc, cgroups), *_version_1(proc, cgroups)]
    return max(0, min(headrooms)) if headrooms else None


def pinned_bytes(size: int, environment: Mapping[str, str] = os.environ) -> int:
    """Bytes of host memory that `size` pinned bytes take: torch rounds them up to a power of two, to use them again.

    Unless PYTORCH_ALLOC_CONF says from which size on it shall not (`pinned_max_round_threshold_mb`), or shall not keep
    them at all (`pinned_max_cached_size_mb`).
    """
    settings = environment.get("PYTORCH_ALLOC_CONF") or environment.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    pairs = (entry.partition(":") for entry in settings.split(","))
    limits = [
        int(value) << 20
        for key, _, value in pairs
        if key.strip() in ("pinned_max_round_threshold_mb", "pinned_max_cached_size_mb") and value.strip().isdigit()
    ]
    if size <= 0 or any(size > limit for limit in limits):
        return max(0, size)
    return 1 << (size - 1).bit_length()


def _machine(proc: Path) -> Iterator[int]:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _version_2(proc: Path, cgroups: Path) -> Iterator[int]:
    """Headroom of each group from this process's own up to the root: the tightest one counts."""
    for own in _groups(proc, ""):
        for group in (own, *own.parents):
            yield from _headroom(cgroups / group.relative_to("/"), "memory.max", "memory.current", "inactive_file")


def _version_1(proc: Path, cgroups: Path) -> Iterator[int]:
    for own in _groups(proc, "memory"):
        for group in (own, *own.parents):
            folder = cgroups / "memory" / group.relative_to("/")
            yield from _headroom(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and path.startswith("/"):
            yield Path(path)


def _headroom(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    limits, usages = _lines(folder / limit), _lines(folder / usage)
    # No such group, or no limit ("max").
    if not limits or not usages or not limits[0].isdigit():
        return
    cached = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == reclaimable]
    yield int(limits[0]) - int(usages[0]) + sum(cached)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
