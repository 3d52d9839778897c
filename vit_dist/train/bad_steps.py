"""Steps that went wrong: which examples they were made of, and when there were too many."""

from __future__ import annotations

import math

import numpy as np

from vit_dist.core.log import WARNING, log
from vit_dist.data.sets import TrainingSet
from vit_dist.engines._collectives import all_gather_object
from vit_dist.engines._protocol import StepResult
from vit_dist.train.health.guards import check_in_row
from vit_dist.train.run import Run

_MOST_KEYS = 64


def record_bad_step(run: Run, step: int, ordinals: list[int], result: StepResult, limit: float, *, spike: bool) -> None:
    """Write down which examples a bad step was made of; stop where it is one too many. A collective.

    Args:
        run: of which it was a step.
        step: its number.
        ordinals: of this rank's examples.
        result: of the step.
        limit: above which its loss is a spike.
        spike: whether it was a loss spike.

    Raises:
        RunError: too many steps in a row were not applied.
    """
    world = run.world
    # Each rank knows the examples of its own rank batch only, and one rank writes the file.
    gathered = all_gather_object(ordinals, world)
    if world.is_main:
        everyone = sorted(ordinal for part in gathered for ordinal in part)
        what = f"loss spike, {result.loss:.6g} over its limit {limit:.6g}" if spike else _what_is_not_finite(result)
        left_out = "" if result.applied else "; the step was not applied"
        log(f"  step {step:,}: {what}; gradient norm {result.grad_norm:.6g}{left_out}", WARNING)
        entry = {
            "step": step,
            "reason": "spike" if spike else "not finite",
            "loss": _json_number(result.loss),
            "grad_norm": _json_number(result.grad_norm),
            "applied": result.applied,
            "keys": _keys(run.data, everyone[:_MOST_KEYS]),
            "ordinals": everyone,
        }
        run.lines(run.directory.nonfinite).add(entry)
    check_in_row(run.recipe.guards, run.state, step, run.directory)


def _what_is_not_finite(result: StepResult) -> str:
    if not math.isfinite(result.loss):
        return f"the loss is not finite ({result.loss:g})"
    return f"a gradient is not finite, at loss {result.loss:.6g}"


def _json_number(value: float) -> float | str:
    # JSON has no NaN and no infinity.
    return value if math.isfinite(value) else str(value)


def _keys(data: TrainingSet, ordinals: list[int]) -> list[str]:
    """Keys of samples; of large batches the first ones only, since each may take an index of its own to be read."""
    keys = []
    for ordinal in ordinals:
        part = [p for p in data.parts if p.first_ordinal <= ordinal][-1]
        first = part.manifest.first_ordinals
        inner = ordinal - part.first_ordinal
        shard = int(np.searchsorted(first[: len(part.manifest.counts)], inner, side="right")) - 1
        try:
            keys.append(part.manifest.read_index(shard).key(inner - int(first[shard])))
        # The index may be away just now, and this is only a diagnosis: the ordinal names the example too.
        except Exception:
            keys.append(f"#{ordinal}")
    return keys
