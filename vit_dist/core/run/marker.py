"""What the fields of a checkpoint's marker say of each other: each can be of its kind, and two lie. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from vit_dist.core.run import records
from vit_dist.core.small_files import DamagedError, checked, is_count, is_mapping, shown
from vit_dist.core.units import Duration


def check_relations(marker: Mapping[str, Any]) -> None:
    """Hold the fields of a marker against each other, as far as they are there: older versions wrote fewer.

    Args:
        marker: whose fields are of their kinds, but for those of `state`.

    Raises:
        DamagedError: says which fields, and what they say.
    """
    try:
        state = checked(marker["state"], {**records.STATE, **records.STATE_SINCE})
        # Counts of a state that is cut short have nothing to be held against.
        if "step" in state and "position" in state:
            for problem in _of_state(state, marker["recipe"]):
                raise DamagedError(problem)
    except DamagedError as error:
        raise DamagedError(f"state: {error}") from None
    for problem in (*_of_recipe(marker), *_of_order(marker["state"].get("order", {}), marker["recipe"])):
        raise DamagedError(problem)


def _of_state(state: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    step, position, batch = state["step"], state["position"], recipe.get("global_batch")
    ranges = state.get("passed_over", [])
    skipped, quarantined, bad_in_row = state.get("skipped", 0), state.get("quarantined", []), state.get("bad_in_row", 0)
    if batch is not None:
        over = sum(end - begin for begin, end in ranges)
        # Examples are trained on in whole batches, or passed over by a rewind.
        if not is_count(batch) or not batch or step * batch + over != position:
            yield f"position {position:,} is not step {step:,} x global_batch {shown(batch)}" + (
                f" + {over:,} that a rewind passed over" if over else ""
            )
        elif any(end % batch for pair in ranges for end in pair):
            yield f"passed_over is {shown(ranges)}, which are no whole batches of {batch:,}"
        elif state.get("spikes", 0) > position // batch:
            yield f"spikes is {state['spikes']:,}, of the {position // batch:,} steps up to position {position:,}"
        else:
            yield from _beyond_horizon(step, batch, recipe.get("horizon"), state.get("order", {}))
    if ranges and ranges[-1][1] > position:
        yield f"passed_over ends at {ranges[-1][1]:,}, behind position {position:,}"
    late = next((entry for entry in state.get("taken_down", []) if entry[1] > position), None)
    if late is not None:
        yield f"taken_down: {shown(late[0])} counts from position {late[1]:,} on, behind position {position:,}"
    if skipped > step:
        yield f"skipped is {skipped:,}, of {step:,} steps"
    if bad_in_row > skipped:
        yield f"bad_in_row is {bad_in_row:,}, and {skipped:,} steps were not applied"
    if len(state.get("losses", [])) > step - skipped:
        yield f"losses are {len(state['losses']):,}, of {step - skipped:,} steps that were applied"
    taken = state.get("loss_steps")
    if taken is not None and (
        len(taken) != len(state.get("losses", [])) or any(a >= b for a, b in pairwise([0, *taken, step + 1]))
    ):
        yield f"loss_steps is {shown(taken)}: no steps of {len(state.get('losses', [])):,} losses, up to {step:,}"
    if any(a >= b for a, b in pairwise(quarantined)):
        yield "quarantined is not sorted, or names a sample twice"


def _beyond_horizon(step: int, batch: int, horizon: Any, order: Mapping[str, Any]) -> Iterator[str]:
    if horizon is None:
        return
    try:
        length = Duration.parse(horizon)
        samples = order.get("num_samples")
        if length.unit == "epochs" and not is_count(samples):
            return
        last = length.steps(global_batch=batch, epoch_examples=samples or 0)
    except ValueError as error:
        yield f"the recipe's horizon: {error}"
        return
    if step > last:
        yield f"step {step:,} is beyond the recipe's horizon of {last:,} steps"


def _of_recipe(marker: Mapping[str, Any]) -> Iterator[str]:
    recipe, layout, classes = marker["recipe"], marker["layout"], marker.get("classes", [])
    batch, ranks, data = recipe.get("global_batch"), layout.get("world_size"), recipe.get("data", {})
    if is_count(batch) and is_count(ranks) and ranks and batch % ranks:
        yield f"recipe: global_batch {batch:,} does not fall to the {ranks:,} ranks of the layout in equal parts"
    if not is_mapping(data):
        yield f"recipe: data is {shown(data)}"
    # Fewer: the last outputs of a head may be nobody's.
    elif classes and is_count(data.get("num_classes", 0)) and len(classes) > data.get("num_classes", len(classes)):
        yield f"classes names {len(classes):,}, the recipe's num_classes is {shown(data['num_classes'])}"
    negative = next((name for name, value in marker.get("goodput", {}).items() if value < 0), None)
    if negative is not None:
        yield f"goodput: {shown(negative)} is {marker['goodput'][negative]} seconds"


def _of_order(order: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    """Where the order of examples, of a set without parts, is another than the recipe's."""
    for name in ("fingerprint", "seed"):
        if name in order and name in recipe and order[name] != recipe[name]:
            yield f"state: order: {name} is {shown(order[name])}, the recipe's is {shown(recipe[name])}"
