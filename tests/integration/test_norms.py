"""`log.norms`: the same numbers from every engine, and not a bit of training changed by looking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def check(found: dict[str, Any], case: str, reference: str, tolerance: float) -> None:
    undisturbed, watched, same_bits = found[case]
    assert same_bits, f"{case}: the weights or moments differ from those of a run that was not watched"
    assert watched["loss"] == undisturbed["loss"]
    assert watched["hooks"] == undisturbed["hooks"], f"{case}: hooks were left in the model"
    values, expected = watched["values"], found[reference][1]["values"]
    assert values.keys() == expected.keys()
    assert values["gradient_norm/all"] == pytest.approx(values["grad_norm"], rel=1e-3 if "bf16" in case else 1e-5)
    for name, value in values.items():
        # A key's bias moves no logit: its gradient is rounding, and Adam's update of it too.
        if not name.startswith("update_norm/") or name.endswith("/all"):
            assert value == pytest.approx(expected[name], rel=tolerance, abs=tolerance), f"{case}: {name}"


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.drill), 2])
def test_zero_1_and_2_and_fsdp_give_the_norms_of_plain_torch_and_looking_changes_no_bit(
    run_world: Callable[..., Any], nproc: int
) -> None:
    cases = ["plain:0:fp32:vit-test:2", "deepspeed:1:fp32:vit-test:2", "deepspeed:2:fp32:vit-test:2"]
    relative = ["plain:0:fp32:vit-test+relative+recompute:1", "deepspeed:1:fp32:vit-test+relative+recompute:1"]
    bf16 = ["plain:0:bf16:vit-test:2", "deepspeed:1:bf16:vit-test:2"]
    convolutions = ["plain:0:fp32:bit-test:1", "deepspeed:2:fp32:bit-test:1"]
    cases.append("fsdp:0:fp32:vit-test:2")
    bf16.append("fsdp:0:bf16:vit-test:2")
    found = run_world("integration/norms_worker.py", nproc, *cases, *relative, *bf16, *convolutions)
    for some, tolerance in (cases, 1e-4), (relative, 1e-4), (bf16, 3e-2), (convolutions, 1e-3):
        for case in some:
            check(found, case, some[0], tolerance)
    values = found[cases[0]][1]["values"]
    assert values["gradient_norm/all"] > values["gradient_norm/head.weight"] > 0
    assert 0 < values["update_norm/all"] < values["weight_norm/all"]
    logits = {name: value for name, value in values.items() if name.startswith("attention_logit/")}
    assert set(logits) == {"attention_logit/all", "attention_logit/blocks.0.attn", "attention_logit/blocks.1.attn"}
    assert logits["attention_logit/all"] == max(logits.values()) > 0
    assert not any(name.startswith("attention_logit") for name in found[convolutions[0]][1]["values"])


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.drill), 2])
def test_zero_3_gives_the_norms_of_plain_torch_and_looking_changes_no_bit(
    run_world: Callable[..., Any], nproc: int
) -> None:
    # A process of its own: stage 3 replaces torch's linear function for good.
    cases = ["plain:0:fp32:vit-test:2", "deepspeed:3:fp32:vit-test:2"]
    found = run_world("integration/norms_worker.py", nproc, *cases)
    for case in cases:
        check(found, case, cases[0], 1e-4)
