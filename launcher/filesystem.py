"""The kind of file system that a path lies on, and whether other machines can see it."""

from __future__ import annotations

import os
import re
from pathlib import Path

NEVER_SHARED = frozenset({"tmpfs", "ramfs", "devtmpfs", "overlay", "squashfs"})
"""Of this machine's memory, or of this container."""
ONE_MACHINE = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"})
"""On a disk of this machine: others see it only where it is exported to them."""


def file_system_kind(path: Path) -> str:
    """'nfs4', 'lustre', 'ext4', ... of the mount on which a path lies, or would; '' where that is not known."""
    try:
        # Bytes: a mount may have any name.
        lines = Path("/proc/self/mounts").read_bytes().splitlines()
    except OSError:
        return ""
    path = path.absolute()
    at = next(p for p in (path, *path.parents) if p.exists()).resolve()
    best, kind = "", ""
    for line in lines:
        _, escaped, fs, *_ = line.split(b" ")
        mounted = mount_name(escaped)
        if (at == Path(mounted) or Path(mounted) in at.parents) and len(mounted) >= len(best):
            best, kind = mounted, os.fsdecode(fs)
    return kind


def mount_name(escaped: bytes) -> str:
    """A path as /proc/self/mounts writes it, where a blank is \\040."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), escaped))
