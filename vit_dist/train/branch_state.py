"""What a branch keeps of its trunk's train state: counters and position, and what rests on the trunk's set or loss.

No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from vit_dist.data.sets import TrainingSet
from vit_dist.data.takedown import TakenDown, dump_taken, find, load_taken

_COMPARABLE = ("data", "loss", "model", "fingerprint")
"""Sections in which a change makes the losses before it no measure of those after it."""


def carried_state(
    raw: Mapping[str, Any], data: TrainingSet, changed: Iterable[str], *, new_head: bool
) -> dict[str, Any]:
    """The train state with which a branch begins, as plain data.

    Step, position, skipped ranges and counts go on. On other shards ordinals mean other samples: those that could not
    be decoded are forgotten, and what was taken down is looked up anew. Where losses of before say nothing of those to
    come (another loss, set or head), the spike guard begins anew.

    Args:
        raw: the trunk's, from its marker.
        data: the branch's training set.
        changed: dotted keys in which the branch differs.
        new_head: whether it has a head of its own.

    Raises:
        DataError: an index cannot be read.
    """
    state = {**raw, "order": asdict(data.identity)}
    if _content(raw["order"]) != _content(state["order"]):
        state["quarantined"] = []
        taken = load_taken(raw.get("taken_down", ()))
        if taken:
            meant = find([one.line for one in taken], data.parts)
            state["taken_down"] = dump_taken(TakenDown(one.line, one.position, meant[one.line]) for one in taken)
    if new_head or any(key.partition(".")[0] in _COMPARABLE for key in changed):
        state["losses"], state["loss_steps"] = [], []
    return state


def _content(order: Mapping[str, Any]) -> Any:
    """Which shards the ordinals of an order count, whatever subset and lanes of them are read."""
    parts = order.get("components")
    if isinstance(parts, Mapping):
        return [(name, part.get("fingerprint")) for name, part in sorted(parts.items()) if isinstance(part, Mapping)]
    return order.get("fingerprint")
