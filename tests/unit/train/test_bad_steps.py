"""What a step that went wrong is called, and why."""

from __future__ import annotations

import math

import pytest

from vit_dist.engines._protocol import StepResult
from vit_dist.train.bad_steps import describe_bad_step

ABOVE = "the loss is above 0.012, which guards.spike makes of the last 128 losses"
SPIKE, BOTH = ["loss spike", ABOVE], ["loss spike and a gradient is not finite", ABOVE]
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("result", "limit", "skips", "reason", "what"),
    [
        (StepResult(0.07, 1.0, True), 0.012, False, "spike", SPIKE),
        (StepResult(0.07, NAN, True), 0.012, False, "spike", SPIKE),
        (StepResult(0.07, NAN, False), 0.012, True, "spike", SPIKE),
        (StepResult(0.07, INF, False), 0.012, False, "spike, not finite", BOTH),
        (StepResult(0.07, NAN, False), INF, False, "not finite", ["a gradient is not finite"]),
        (StepResult(0.01, INF, False), 0.012, True, "not finite", ["a gradient is not finite"]),
        (StepResult(NAN, 1.0, False), 0.012, True, "not finite", ["the loss is not finite"]),
        (StepResult(INF, INF, False), 0.012, True, "not finite", ["the loss and a gradient are not finite"]),
    ],
)
def test_a_bad_step_is_called_by_its_own_reason(
    result: StepResult, limit: float, skips: bool, reason: str, what: list[str]
) -> None:
    assert describe_bad_step(result, limit, 128, skips=skips) == (reason, what)


def test_a_step_that_its_engine_left_out_for_no_known_reason_is_told_as_that() -> None:
    word, what = describe_bad_step(StepResult(0.01, 1.0, False), 0.012, 128, skips=True)
    assert (word, len(what)) == ("not applied", 1)
    assert "though loss and gradient norm are finite" in what[0]
