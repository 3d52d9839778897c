"""The arithmetic of memory is held to what engines really keep: the bytes of every tensor that can be reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vit_dist.models.costs import fsdp_state_bytes, state_bytes

pytestmark = pytest.mark.distributed

# Stage 3 last: it replaces torch's linear function for good.
CASES = [
    f"{engine}:{precision}:{accumulation}"
    for engine in ("plain:0", "deepspeed:1", "deepspeed:2", "deepspeed:3")
    for precision, accumulation in (("fp32", 2), ("bf16", 2))
]


FSDP = [
    f"fsdp:{stage}:{precision}:{accumulation}{when}"
    for stage, precision, accumulation in ((2, "fp32", 1), (2, "bf16", 2), (3, "bf16", 2))
    for when in ("", ":backward")
]


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.drill), 2])
def test_state_takes_the_bytes_that_arithmetic_says(run_world: Callable[..., Any], nproc: int) -> None:
    found = run_world("integration/memory_worker.py", nproc, *FSDP, *CASES)
    for case in CASES:
        _, stage, precision, _ = case.split(":")
        expected = state_bytes(1, precision=precision, zero_stage=int(stage), devices=nproc)
        # Above it are a tensor of gradients on its way, images, and what stage 3 has gathered.
        assert expected.held - 0.05 <= found[case] <= expected.peak + 0.6, (case, nproc, found[case], expected)
    for case in FSDP:
        _, stage, precision, accumulation, *when = case.split(":")
        sums = "none" if accumulation == "1" else "whole" if stage == "2" else "shards"
        expected = fsdp_state_bytes(1, precision=precision, devices=nproc, resharded=stage == "3", sums=sums)
        # When the backward pass begins, the buffer of the last gather is still there: of a third of this model.
        at, above = (expected.peak, 1.0) if when else (expected.held, 0.1)
        assert at - 0.05 <= found[case] <= at + above, (case, nproc, found[case], expected)
