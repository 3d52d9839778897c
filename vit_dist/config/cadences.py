"""Whether durations of a recipe fit each other: warm-up and run, evaluations and the checkpoints that they rate.

No torch.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from vit_dist.config.lengths import in_steps, lengths_of, whole_steps
from vit_dist.config.schema import Recipe
from vit_dist.core.registry import Plugin
from vit_dist.core.units import Duration


def schedule_in_steps(recipe: Recipe, *, epoch_examples: int | None, total_steps: int) -> tuple[Plugin | None, str]:
    """A recipe's schedule with all its lengths in steps, and why it does not fit the run, or ''. The one place for it.

    Args:
        recipe: of a run.
        epoch_examples: of a pass over its set; None: not known, and None in place of the schedule where it matters.
        total_steps: what its horizon comes to.
    """
    lengths = lengths_of(recipe.schedule, "schedule")
    if epoch_examples is None and any(isinstance(one, Duration) and one.unit == "epochs" for one in lengths.values()):
        return None, ""
    schedule: Any = in_steps(
        recipe.schedule,
        global_batch=recipe.global_batch,
        epoch_examples=epoch_examples or 0,
        total_steps=total_steps,
    )
    misfit = _too_long_warmup(recipe, whole_steps(schedule.warmup), total_steps)
    if not misfit and (misfit := schedule.misfit(total_steps)):
        given = ", ".join(f"{key}={one}" for key, one in lengths.items())
        misfit += f" (the recipe: {given}, horizon={recipe.horizon}, global_batch={recipe.global_batch})"
    return schedule, misfit


def average_from(recipe: Recipe, *, epoch_examples: int | None, total_steps: int) -> tuple[int | None, str]:
    """How many steps are taken before a recipe's `ema` counts any, None where there is none; and what is wrong, or ''.

    Args:
        recipe: of a run.
        epoch_examples: of a pass over its set; None: not known.
        total_steps: what its horizon comes to.
    """
    ema = recipe.ema
    if ema is None or (isinstance(ema.start, Duration) and ema.start.unit == "epochs" and epoch_examples is None):
        return None, ""
    size = {"global_batch": recipe.global_batch, "epoch_examples": epoch_examples or 0, "total_steps": total_steps}
    start = whole_steps(in_steps(ema, **size).start)
    if start < total_steps:
        return start, ""
    return start, (
        f"ema.start={ema.start} is step {start:,}, beyond the last of the run's {total_steps:,} steps "
        f"(horizon={recipe.horizon}, global_batch={recipe.global_batch}): nothing would be averaged; give an earlier "
        f"place, such as 90%"
    )


def _too_long_warmup(recipe: Recipe, warmup_steps: int, total_steps: int) -> str:
    """Why a warm-up does not fit its run, and what to do; '' where it does."""
    if warmup_steps <= total_steps:
        return ""
    warmup = recipe.schedule.warmup  # type: ignore[attr-defined]
    tenth = total_steps // 10
    # Most meet it who shorten a recipe's run: its warm-up was made for the whole.
    return (
        f"schedule.warmup={warmup} is {warmup_steps:,} steps, longer than the whole run of {total_steps:,} steps "
        f"(horizon={recipe.horizon}, global_batch={recipe.global_batch}); a horizon that is changed wants a warm-up "
        f'that goes with it: give "schedule.warmup={tenth} steps" too{", a tenth of the run" if tenth else ""}'
    )


def unrated_checkpoints(recipe: Recipe, num_samples: int | None = None) -> str:
    """Why `checkpoint.keep_best` will rate the last checkpoint alone, in words for a warning; '' where it will not.

    Args:
        recipe: of a run.
        num_samples: of the training set, where it is known; without it, cadences in epochs cannot be compared.
    """
    config = recipe.checkpoint
    if not config.keep_best:
        return ""
    key, measured = measured_every(recipe, config.keep_best)
    asked = f"checkpoint.keep_best={config.keep_best} rates checkpoints at whose step it was measured"
    advice = f"make checkpoint.every a multiple of {key}"
    if config.every == "auto" or "seconds" in (config.every.unit, measured.unit):
        return (
            f"{asked}; with {key}={measured} and checkpoint.every={config.every}, one of them by the clock, "
            f"that may be the last alone; give both in steps, examples or epochs, and {advice}"
        )
    units = {recipe.horizon.unit, config.every.unit, measured.unit}
    if num_samples is None and "epochs" in units:
        return ""
    size = {"global_batch": recipe.global_batch, "epoch_examples": num_samples or 0}
    last = recipe.horizon.steps(**size)
    evaluated, saved = measured.examples(**size), config.every.examples(**size)
    if (
        not saved
        or _first_step(saved, recipe.global_batch) >= last
        or _meet(evaluated, saved, recipe.global_batch, last)
    ):
        return ""
    return (
        f"{asked}, and that is the last alone, which is then kept whatever it is worth: {key}={measured} and "
        f"checkpoint.every={config.every} meet at no step before the last, {last:,}; {advice}"
    )


def measured_every(recipe: Recipe, tag: str) -> tuple[str, Duration]:
    """How often a metric is measured, and the key that says so.

    Args:
        recipe: of a run.
        tag: of the metric.
    """
    for i, evaluator in enumerate(recipe.evaluators):
        own: Duration | None = getattr(evaluator, "every", None)
        if own is not None and tag in (evaluator.metrics(recipe) or {}):  # type: ignore[attr-defined]
            return f"evaluators[{i}].every", own
    return "eval.every", recipe.eval.every


def _first_step(period: Fraction, batch: int, times: int = 1) -> int:
    """The step after which the n-th multiple of a period has been crossed."""
    return math.ceil(times * period / batch)


def _meet(a: Fraction, b: Fraction, batch: int, last: int) -> bool:
    """Whether some step before the last crosses a multiple of both periods, in examples."""
    rare, often = max(a, b), min(a, b)
    if not often:
        return False
    times = 1
    while (step := _first_step(rare, batch, times)) < last:
        # The rule of Cadence.due.
        if step * batch // often > (step - 1) * batch // often:
            return True
        times += 1
    return False
