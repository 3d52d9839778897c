"""What the small files of a run hold, field by field: here and nowhere else. No torch.

A field that is there must be of its kind, or the file counts as damaged; fields that are not named here may hold
anything, since later versions write more.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_dist.core.run import names
from vit_dist.core.small_files import (
    Check,
    is_count,
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

FIELDS: Mapping[str, Mapping[str, Check]] = {
    names.STATUS: STATUS,
    names.HEARTBEAT: HEARTBEAT,
    names.OWNER: OWNER,
    names.RUN: RUN,
    names.JOB: JOB,
    names.EVALUATED: EVALUATED,
}
"""By the name of the file."""
