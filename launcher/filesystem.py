"""The kind of file system that a path lies on, and whether other machines can see it."""

from __future__ import annotations

from pathlib import Path

NEVER_SHARED = frozenset({"tmpfs", "ramfs", "devtmpfs", "overlay", "squashfs"})
"""Of this machine's memory, or of this container."""
ONE_MACHINE = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"})
"""On a disk of this machine: others see it only where it is exported to them."""


def file_system_kind(path: Path) -> str:
    """'nfs4', 'lustre', 'ext4', ... of the mount on which a path lies, or would; '' where that is not known."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    path = path.absolute()
    at = next(p for p in (path, *path.parents) if p.exists()).resolve()
    best, kind = "", ""
    for line in lines:
        _, mounted, fs, *_ = line.split(" ")
        # /proc writes a blank in a name as \040
        mounted = mounted.encode().decode("unicode_escape")
        if (at == Path(mounted) or Path(mounted) in at.parents) and len(mounted) >= len(best):
            best, kind = mounted, fs
    return kind
