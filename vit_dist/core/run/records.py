"""What run.json and the markers of checkpoints hold, field by field: here and nowhere else. No torch.

What a run's history holds stands in core/run/history/events.py.

A field that is there must be of its kind, or the file counts as damaged; fields that are not named here may hold
anything, since later versions write more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_dist.core.run import lineage, names
from vit_dist.core.small_files import (
    Check,
    is_count,
    is_digest,
    is_mapping,
    is_number,
    is_numbers,
    is_text,
    is_texts,
)

_JOB_NUMBER = re.compile(r"[0-9]{1,10}(_[0-9]{1,9})?")
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")


def is_job_number(value: Any) -> bool:
    """The number of a Slurm job, or of an array's element: '123', '120_3'. Such become arguments of commands."""
    return isinstance(value, str) and _JOB_NUMBER.fullmatch(value) is not None


def is_job(value: Any) -> bool:
    """A job's number, or '' for a run without one."""
    return value == "" or is_job_number(value)


def is_node_name(value: Any) -> bool:
    """A machine's name or address, and no list, option or path: such become arguments of commands."""
    return isinstance(value, str) and _NODE_NAME.fullmatch(value) is not None


def is_nodes(value: Any) -> bool:
    """A list of names of machines."""
    return isinstance(value, list) and all(map(is_node_name, value))


RUN: Mapping[str, Check] = {
    "name": is_text,
    "recipe_hash": is_text,
    "identity": is_mapping,
    "vit_dist": is_text,
    "measured": is_mapping,
    lineage.KEY: lineage.is_lineage,
}


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


def is_taken_down(value: Any) -> bool:
    """Lists, each of a line, a position and the ordinals that it means from there on."""
    if not isinstance(value, list | tuple):
        return False
    shaped = (isinstance(one, list | tuple) and len(one) == 3 and isinstance(one[2], list | tuple) for one in value)
    return all(shaped) and all(is_text(line) and all(map(is_count, [at, *found])) for line, at, found in value)


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
STATE_SINCE: Mapping[str, Check] = {
    "loss_steps": lambda value: isinstance(value, list) and all(map(is_count, value)),
    "taken_down": is_taken_down,
}
"""What markers of former versions lack in it, and others may."""
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
    lineage.KEY: lineage.is_lineage,
}
"""The marker of a checkpoint."""

FIELDS: Mapping[str, Mapping[str, Check]] = {names.RUN: RUN}
"""By the name of the file."""
