"""Nodes to avoid for a while: a list on the shared file system whose entries expire.

`<run_root>/.bad-nodes.jsonl`, a JSON object a line: node, reason, until, at (seconds since 1970). Lines are only
appended; the last one of a node counts. A node is taken off by a line whose time is over.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vit_dist.core.errors import RunError
from vit_dist.core.files import append_json
from vit_dist.core.run.names import BAD_NODES
from vit_dist.core.run.records import is_node_name
from vit_dist.core.small_files import DamagedError, is_text, is_time, read_records

KEEP_S = 24 * 3600.0
"""How long a node stays on the list by default."""


@dataclass(frozen=True)
class BadNode:
    """A node on the list.

    Attributes:
        node: its name in Slurm.
        reason: what was seen.
        until: seconds since 1970; from then on it counts as good again.
        at: when it was put on the list.
    """

    node: str
    reason: str
    until: float
    at: float


def add(run_root: Path, node: str, reason: str, *, keep_s: float = KEEP_S, now: float | None = None) -> BadNode:
    """Put a node on the list, or keep it there longer.

    Raises:
        RunError: the list cannot be written.
    """
    at = time.time() if now is None else now
    entry = BadNode(node, " ".join(reason.split())[:500], at + keep_s, at)
    _append(run_root, entry)
    return entry


def remove(run_root: Path, node: str, *, now: float | None = None) -> None:
    """Take a node off the list.

    Raises:
        RunError: the list cannot be written.
    """
    at = time.time() if now is None else now
    _append(run_root, BadNode(node, "taken off the list", at, at))


def active(run_root: Path, now: float | None = None) -> dict[str, BadNode]:
    """The nodes on the list at a time (now), by name. A missing list is an empty one, a cut line is skipped.

    Raises:
        RunError: the list is there and cannot be read.
    """
    at = time.time() if now is None else now
    latest: dict[str, BadNode] = {}
    for entry in _read(run_root / BAD_NODES):
        latest[entry.node] = entry
    return {node: entry for node, entry in sorted(latest.items()) if entry.until > at}


def _read(path: Path) -> list[BadNode]:
    fields = {"node": is_node_name, "reason": is_text, "until": is_time, "at": is_time}
    try:
        lines = list(read_records(path, fields))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, DamagedError) as error:
        raise RunError(f"{path}: the list of bad nodes cannot be read: {error}") from None
    return [
        BadNode(line["node"], line["reason"], float(line["until"]), float(line["at"]))
        for line in lines
        if fields.keys() <= line.keys()
    ]


def _append(run_root: Path, entry: BadNode) -> None:
    path = run_root / BAD_NODES
    try:
        run_root.mkdir(parents=True, exist_ok=True)
        append_json(path, asdict(entry))
    except OSError as error:
        raise RunError(f"{path}: the list of bad nodes cannot be written: {error.strerror}") from None
