"""Small whole checkpoints, and changes to them that no checksum tells: parts and markers are sealed anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_dist.core.run.checkpoints import FORMAT, MARKER, rank_file, seal_marker
from vit_dist.core.world import World
from vit_dist.engines._slices import EngineState, split_over_ranks
from vit_dist.train.checkpoint.format import Snapshot, checksum

_RANKS = 2


def small_state(step: int, world: World, *, moments: bool = True) -> EngineState:
    """A linear layer's state at a step: its weight is trained by Adam, its bias is frozen."""
    weight = torch.arange(12.0).view(4, 3) + step
    tensors = [("weight", "fc.weight", weight), ("weight", "fc.bias", torch.ones(4))]
    if not moments:
        return EngineState(split_over_ranks(tensors, world), {})
    # The trained ones last: the cut between two ranks goes through them.
    tensors = [*tensors[1:], ("exp_avg", "fc.weight", weight), tensors[0], ("exp_avg_sq", "fc.weight", weight)]
    slices = [piece for kind in tensors for piece in split_over_ranks([kind], world)]
    return EngineState(slices, {"fc.weight": {"step": 3.0}})


def small_checkpoint(folder: Path, step: int, *, moments: bool = True) -> None:
    """Write a whole checkpoint of two ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(_RANKS):
        Snapshot(small_state(step, World(rank, _RANKS), moments=moments), None).write(folder / rank_file(rank))
    counts = dict.fromkeys(("skipped", "bad_in_row", "spikes"), 0)
    state = {"step": step, "position": step, **counts, "quarantined": [], "losses": [], "passed_over": [], "order": {}}
    marker = {"format": FORMAT, "layout": {"world_size": _RANKS}, "recipe": {}, "state": state, "files": {}}
    (folder / MARKER).write_bytes(seal_marker(marker))
    reseal(folder)


@dataclass
class Forged:
    """A part, taken to pieces."""

    header: dict[str, Any]
    slices: dict[str, Any]
    scalars: dict[str, Any]
    metadata: dict[str, Any]
    data: bytearray


def forge(folder: Path, rank: int, edit: Callable[[Forged], object]) -> None:
    """Change a part of a checkpoint, and let checksums and marker fit it."""
    path = folder / rank_file(rank)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    metadata = header.pop("__metadata__")
    part = Forged(
        header, json.loads(metadata["slices"]), json.loads(metadata["scalars"]), metadata, bytearray(content[begin:])
    )
    edit(part)
    described = {"slices": json.dumps(part.slices), "scalars": json.dumps(part.scalars)}
    text = json.dumps({**part.header, "__metadata__": {**part.metadata, **described}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + part.data)
    reseal(folder)


def reseal(folder: Path, edit: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Let a marker fit the parts that lie there; change it besides."""
    marker = json.loads((folder / MARKER).read_text())
    marker["files"] = {
        path.name: {"bytes": path.stat().st_size, "xxh128": checksum(path)}
        for path in sorted(folder.glob("rank-*.safetensors"))
    }
    if edit is not None:
        edit(marker)
    (folder / MARKER).write_bytes(seal_marker(marker))
