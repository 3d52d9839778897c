"""Steps that went wrong: which examples they were made of, and when there were too many."""

from __future__ import annotations

import math

from vit_dist.core.log import WARNING, log
from vit_dist.data.sets import TrainingSet
from vit_dist.engines._collectives import all_gather_object
from vit_dist.engines._protocol import StepResult
from vit_dist.train.health.guards import check_in_row
from vit_dist.train.run import Run

_MOST_KEYS = 64


def record_bad_step(run: Run, step: int, ordinals: list[int], result: StepResult, *, limit: float) -> None:
    """Write down which examples a bad step was made of; stop where it is one too many. A collective.

    Args:
        run: it was a step of.
        step: its number.
        ordinals: of this rank's examples.
        result: what it did.
        limit: the loss above which it was a spike.

    Raises:
        RunError: too many steps in a row were not applied.
    """
    world = run.world
    # Each rank knows the examples of its own rank batch only, and one rank writes the file.
    gathered = all_gather_object(ordinals, world)
    if world.is_main:
        everyone = sorted(ordinal for part in gathered for ordinal in part)
        remembered = min(len(run.state.losses), run.recipe.guards.spike_window)
        reason, what = describe_bad_step(result, limit, remembered, skips=run.recipe.guards.spike == "skip")
        left_out = "" if result.applied else ", the step was not applied"
        numbers = f"loss {result.loss:.6g}, gradient norm {result.grad_norm:.6g}"
        log(f"  step {step:,}: {what[0]}{left_out} ({'; '.join([numbers, *what[1:]])})", WARNING)
        entry = {
            "step": step,
            "reason": reason,
            "limit": _json_number(limit),
            "loss": _json_number(result.loss),
            "grad_norm": _json_number(result.grad_norm),
            "applied": result.applied,
            "keys": _keys(run.data, everyone[:_MOST_KEYS]),
            "ordinals": everyone,
        }
        run.lines(run.directory.nonfinite).add(entry)
    check_in_row(run.recipe.guards, run.state, step, run.directory)


def describe_bad_step(result: StepResult, limit: float, remembered: int, *, skips: bool) -> tuple[str, list[str]]:
    """Why a step is a bad one: a word for programs, and for people what it is and what tells that.

    A spike is one against the losses before it, however small its loss is; and where spikes are not skipped, it is a
    gradient that kept a step from being applied.
    """
    words, what, why = list[str](), list[str](), list[str]()
    if math.isfinite(result.loss) and result.loss > limit:
        words.append("spike")
        what.append("loss spike")
        why.append(f"the loss is above {limit:.6g}, which guards.spike makes of the last {remembered} losses")
    # A spike is skipped by making its gradients NaN: that these are not finite is then no finding of its own.
    broken = ["the loss"] if not math.isfinite(result.loss) else []
    if not result.applied and not math.isfinite(result.grad_norm) and not (words and skips):
        broken.append("a gradient")
    if broken:
        words.append("not finite")
        what.append(f"{' and '.join(broken)} {'are' if len(broken) > 1 else 'is'} not finite")
    if not words:
        words, what = ["not applied"], ["its engine has left it out, though loss and gradient norm are finite"]
    return ", ".join(words), [" and ".join(what), *why]


def _json_number(value: float) -> float | str:
    # JSON has no NaN and no infinity.
    return value if math.isfinite(value) else str(value)


def _keys(data: TrainingSet, ordinals: list[int]) -> list[str]:
    """Keys of samples; of large batches the first ones only, since each may take an index of its own to be read."""
    keys = []
    for ordinal in ordinals:
        part = data.parts.of(ordinal)
        shard, sample = part.stored(ordinal)
        try:
            keys.append(part.manifest.read_index(shard).key(sample))
        # The index may be away just now, and this is only a diagnosis: the ordinal names the example too.
        except Exception:
            keys.append(f"#{ordinal}")
    return keys
