"""What the small files of a run hold, field by field: here and nowhere else. No torch.

A field that is there must be of its kind, or the file counts as damaged; fields that are not named here may hold
anything, since later versions write more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_dist.core.run import names
from vit_dist.core.small_files import (
    Check,
    is_count,
    is_digest,
    is_mapping,
    is_number,
    is_numbers,
    is_objects,
    is_text,
    is_texts,
    is_time,
)

STATUS: Mapping[str, Check] = {
    "status": is_text,
    "step": is_count,
    "examples": is_count,
    "reason": is_text,
    "host": is_text,
    "pid": is_count,
    "time": is_time,
    "attempt": is_count,
    "goodput": is_numbers,
    "total_steps": is_count,
    "examples_per_s": is_number,
    "metrics": is_numbers,
}
HEARTBEAT: Mapping[str, Check] = {"attempt": is_count, "time": is_time, "goodput": is_numbers}
OWNER: Mapping[str, Check] = {
    "token": is_text,
    "attempt": is_count,
    "host": is_text,
    "pid": is_count,
    "time": is_time,
}
RUN: Mapping[str, Check] = {"name": is_text, "recipe_hash": is_text, "identity": is_mapping, "vit_dist": is_text}
JOB: Mapping[str, Check] = {
    "job": is_text,
    "cluster": is_text,
    "cluster_file": is_text,
    "script": is_text,
    "recipe": is_text,
    "cwd": is_text,
    "nodes": is_count,
    "devices_per_node": is_count,
    "spares": is_count,
    "submitted_at": is_time,
}
EVALUATED: Mapping[str, Check] = {"evaluations": is_objects}
ATTEMPT: Mapping[str, Check] = {
    "event": is_text,
    "attempt": is_count,
    "ranks": is_count,
    "step": is_count,
    "examples": is_count,
    "status": is_text,
    "reason": is_text,
    "time": is_time,
}
"""A line of attempts.jsonl."""
LEDGER: Mapping[str, Check] = {
    "event": is_text,
    "attempt": is_count,
    "at": is_time,
    "launcher": is_text,
    "job": is_text,
    "restart": is_count,
    "nodes": is_texts,
    "devices": is_count,
    "step": is_count,
    "cause": is_text,
    "detail": is_text,
    "code": is_number,
    "saved": is_count,
    "gained": is_count,
    "lost": is_count,
    "device_hours": is_number,
    "action": is_text,
    "excluded": is_texts,
}
"""A line of ledger.jsonl."""


def _is_files(value: Any) -> bool:
    """Entries of a marker's `files`."""
    return isinstance(value, dict) and all(
        is_mapping(entry) and is_count(entry.get("bytes")) and is_digest(32)(entry.get("xxh128"))
        for entry in value.values()
    )


def _is_floats(value: Any) -> bool:
    """A list of numbers of any kind: losses may be NaN."""
    return isinstance(value, list) and all(map(_is_float, value))


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or is_number(value)


def _is_ranges(value: Any) -> bool:
    """Pairs [begin, end) that follow one another."""
    if not isinstance(value, list) or not all(isinstance(one, list) and len(one) == 2 for one in value):
        return False
    ends = [end for one in value for end in one]
    return all(map(is_count, ends)) and ends == sorted(ends)


STATE: Mapping[str, Check] = {
    "step": is_count,
    "position": is_count,
    "skipped": is_count,
    "quarantined": lambda value: isinstance(value, list) and all(map(is_count, value)),
    "losses": _is_floats,
    "bad_in_row": is_count,
    "spikes": is_count,
    "passed_over": _is_ranges,
    "order": is_mapping,
}
"""The train state in a checkpoint's marker; who goes on from it needs every field."""
STATE_SINCE: Mapping[str, Check] = {"loss_steps": lambda value: isinstance(value, list) and all(map(is_count, value))}
"""What markers of former versions lack in it."""
MARKER: Mapping[str, Check] = {
    "format": is_count,
    "vit_dist": is_text,
    "layout": is_mapping,
    "recipe": is_mapping,
    "state": is_mapping,
    "files": _is_files,
    "wrote_s": lambda value: is_number(value) and value >= 0,
    "metrics": lambda value: isinstance(value, dict) and all(map(_is_float, value.values())),
    "goodput": is_numbers,
    "probe": lambda value: is_mapping(value) and is_count(value.get("examples")) and _is_float(value.get("loss")),
    "classes": is_texts,
}
"""The marker of a checkpoint."""

FIELDS: Mapping[str, Mapping[str, Check]] = {
    names.STATUS: STATUS,
    names.HEARTBEAT: HEARTBEAT,
    names.OWNER: OWNER,
    names.RUN: RUN,
    names.JOB: JOB,
    names.EVALUATED: EVALUATED,
}
"""By the name of the file."""
