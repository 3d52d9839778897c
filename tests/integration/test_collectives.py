"""What ranks send in a step, and how often the host reads inside DeepSpeed: the figures of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

SIZES = {"float32": 4, "bfloat16": 2, "uint8": 1, "float64": 8}
BUCKET = 2000
# Stage 3 last: it replaces torch's linear function for good.
CASES = {
    "plain": "plain:0:bf16:2",
    "1": "deepspeed:1:bf16:2",
    "1 in bf16": "deepspeed:1:bf16:2:reduce_dtype=bf16",
    "1 of fp32": "deepspeed:1:fp32:1",
    "2": "deepspeed:2:bf16:2",
    "2, small": f"deepspeed:2:bf16:1:reduce_bucket={BUCKET}:allgather_bucket={BUCKET}",
    "3": "deepspeed:3:bf16:1",
    "3, small": f"deepspeed:3:bf16:1:reduce_bucket={BUCKET}",
}
READS = {"plain": 0, "1": 2, "1 in bf16": 2, "1 of fp32": 3, "2": 4, "2, small": 4, "3": 1, "3, small": 1}
"""Numbers that the host reads inside DeepSpeed 0.19.8 in a step."""


def volume(result: dict[str, Any], collective: str) -> tuple[int, int]:
    """Calls of a collective on more than single numbers, and their bytes together."""
    tensors = [(dtype, elements) for dtype, elements in result["sent"].get(collective, []) if elements > 1]
    return len(tensors), sum(SIZES[dtype] * elements for dtype, elements in tensors)


def test_a_step_sends_and_reads_as_the_docs_say(run_world: Callable[..., Any]) -> None:
    results = run_world("integration/collectives_worker.py", 2, *CASES.values())
    found = {name: results[case] for name, case in CASES.items()}
    params, groups = found["plain"]["parameters"], 2  # of parameters, with weight decay and without
    summed, scattered, gathered = (
        {name: volume(result, collective) for name, result in found.items()}
        for collective in ("allreduce", "reduce_scatter_base", "allgather_base")
    )

    def whole(size: int, calls: int = 1) -> tuple[int, Any]:
        # Each group is padded to a multiple of the ranks.
        return calls, pytest.approx(size * params, abs=16)

    # Once a step, however many micro-batches; ZeRO-2 alone sums each of them.
    assert summed["plain"] == whole(4)
    assert summed["1"] == summed["1 in bf16"] == (0, 0)
    assert scattered["1"] == whole(4, groups)
    assert scattered["1 in bf16"] == whole(2, groups)
    assert gathered["1"] == gathered["2"] == gathered["2, small"] == whole(2, groups)
    assert summed["1 of fp32"] == whole(4)
    assert gathered["1 of fp32"] == whole(4, groups)
    assert summed["2"] == whole(2 * 4, 2)
    assert scattered["3"] == whole(4)
    assert gathered["3"] == whole(2, 2)
    # Buckets that are used: no more fits in, but a parameter that is larger than one.
    for name, sums in ("2, small", summed), ("3, small", scattered):
        assert sums[name][0] >= params / (2 * 4096)
        assert sums[name][1] == whole(4)[1]
    assert {name: result["reads"] for name, result in found.items()} == READS
