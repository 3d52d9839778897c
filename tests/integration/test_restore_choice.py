"""Ranks whose file systems show different checkpoints restore one and the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vit_dist.core.run.checkpoints import FORMAT, MARKER, seal_marker, step_name
from vit_dist.core.world import World
from vit_dist.engines._slices import EngineState, Slice
from vit_dist.train.checkpoint.format import Snapshot, checksum

pytestmark = pytest.mark.distributed

# What rank 0 and rank 1 see, and what both take; None: there is none.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int | None]] = {
    "same": ((1, 2), (1, 2), 2),
    "newer on 1": ((1, 2), (1, 2, 3), 2),
    "newer on 0": ((1, 2, 3), (1, 2), 2),
    "none on 0": ((), (1, 2), None),
    "apart": ((1, 3), (2, 3), 3),
    "pruned on 1": ((1, 2, 3), (3,), 3),
    "late": ((1, 2), (), 2),
    "forged on 0": ((1, 2), (1, 2), 1),
    "forged on 1": ((1, 2), (1, 2), 1),
    "forged on both": ((1, 2), (1, 2), 1),
}


def checkpoint(root: Path, step: int, size: int = 4) -> None:
    path = root / step_name(step)
    path.mkdir(parents=True)
    part = path / "rank-00000.safetensors"
    Snapshot(EngineState([Slice("weight", "w", (size,), 0, torch.full((size,), float(step)))], {}), None).write(part)
    entry = {"bytes": part.stat().st_size, "xxh128": checksum(part)}
    counts = dict.fromkeys(("position", "skipped", "bad_in_row", "spikes"), 0)
    state = {"step": step, **counts, "quarantined": [], "losses": [], "passed_over": [], "order": {}}
    marker = {"format": FORMAT, "layout": {}, "recipe": {}, "state": state, "files": {part.name: entry}}
    (path / MARKER).write_bytes(seal_marker(marker))


def test_ranks_that_see_different_checkpoints_take_the_same(run_world: Callable[..., Any], tmp_path: Path) -> None:
    for name, (*seen, _) in CASES.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        for rank, steps in enumerate(seen):
            for step in steps:
                # Of another shape, with a marker that fits it: no checksum tells.
                forged = step == 2 and (name == f"forged on {rank}" or name == "forged on both")
                checkpoint(tmp_path / "runs" / name / str(rank), step, 5 if forged else 4)
    taken = run_world("integration/choice_worker.py", 2, str(tmp_path / "runs"))
    for name, (*_, step) in CASES.items():
        assert taken[name] == [None if step is None else [step, float(step)]] * World(size=2).size, name
    first, second = taken["place"]
    assert first == second
    assert "rank 0 has restored step 7, position 70" in first
    assert "rank 1 step 7, position 71" in first
