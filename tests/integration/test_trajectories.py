"""Every optimizer, on every engine that takes it, ends where float64 does: processes of a world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.trajectories import OPTIMIZERS, TOLERANCE

pytestmark = pytest.mark.distributed

WHOLE = ("adafactor", "adafactor-cap")
ROWS = ("lamb", "lamb-decayed", "muon", "muon-shape")
ANYWHERE = [name for name in OPTIMIZERS if name not in WHOLE + ROWS]
WORKER = "integration/trajectory_worker.py"


def engines_of(optimizer: str) -> list[str]:
    """Stage 3 last: it replaces torch's linear function for good."""
    sharded = [] if optimizer in ROWS else ["zero1", "zero2", "zero3"]
    return ["plain"] if optimizer in WHOLE else ["plain", "fsdp", *sharded]


def test_optimizers_end_where_float64_does_on_two_ranks(run_world: Callable[..., Any]) -> None:
    cases = [
        "fsdp:lamb:layer_decay=0.7:accumulation=2",
        "fsdp:muon:clip_per=block",
        "zero3:lion:layer_decay=0.7",
    ]
    found = run_world(WORKER, 2, *cases)
    assert {case: off for case, off in found.items() if not off < TOLERANCE} == {}
    assert [*found] == cases


@pytest.mark.drill
@pytest.mark.parametrize("nproc", [1, 2, 3])
@pytest.mark.parametrize("settings", ["", ":clip=null", ":layer_decay=0.7", ":layer_decay=0.7:clip_per=block"])
def test_every_optimizer_ends_where_float64_does_on_every_engine(
    run_world: Callable[..., Any], nproc: int, settings: str
) -> None:
    cases = [f"{engine}:{name}{settings}" for name in OPTIMIZERS for engine in engines_of(name)]
    if "clip_per" in settings:
        cases = [case for case in cases if not case.startswith("zero")]
    cases.sort(key=lambda case: case.startswith("zero3"))
    found = run_world(WORKER, nproc, *cases, timeout=1200)
    print(f"{nproc} ranks{settings}: {len(found)} cases, furthest {max(found.values()):.1e}")
    assert {case: off for case, off in found.items() if not off < TOLERANCE} == {}
    assert [*found] == cases
