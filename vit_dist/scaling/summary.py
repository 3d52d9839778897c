"""Observations -> series (the lines of a figure) and means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vit_dist.core.units import format_count
from vit_dist.scaling.observation import Observation

# Runs of one line may differ by this factor in planned examples: how a duration is rounded to
# whole steps depends on the batch.
_SAME_DURATION = 1.2


@dataclass(frozen=True)
class Mean:
    """One series at one subset size, over its seeds. `std` is the sample standard deviation; None for one seed."""

    series: str
    family: str
    model: str
    subset: int
    metric: str
    num_seeds: int
    mean: float
    std: float | None
    lowest: float
    highest: float
    seeds: tuple[int, ...]


def by_series(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    """The lines that figures draw, {label: observations}, by family and model.

    A family of one model is a line called after the family; else each model is one. Where runs of one model and subset
    differ in duration, each duration is a line of its own. Branches are no other seeds of what they have grown from:
    beside runs that are none they are a line of their own, and where they left at several steps, one for each.
    """
    groups: dict[tuple[str, str], list[Observation]] = {}
    for one in sorted(observations, key=lambda o: (o.cell, o.directory)):
        groups.setdefault((one.family, one.model), []).append(one)
    families = [family for family, _ in groups]
    models = [model for _, model in groups]
    result: dict[str, list[Observation]] = {}
    for (family, model), group in groups.items():
        label = model if models.count(model) == 1 else f"{family} {model}"
        label = family if families.count(family) == 1 else label
        durations: dict[int, set[int]] = {}
        for one in group:
            durations.setdefault(one.subset, set()).add(one.planned_examples)
        split = any(max(planned) > _SAME_DURATION * min(planned) for planned in durations.values())
        branched = _branched(group)
        for one in group:
            name = f"{label}, {format_count(one.planned_examples)} seen" if split else label
            result.setdefault(name + branched[one.directory], []).append(one)
    return result


def _branched(group: Sequence[Observation]) -> dict[str, str]:
    """What is said of each run of a group, by its directory, beside the name of its line: ', branched' or ''."""
    steps: dict[int, set[int]] = {}
    for one in group:
        if one.lineage:
            steps.setdefault(one.subset, set()).add(one.lineage[-1].step)
    several = any(len(found) > 1 for found in steps.values())
    if not several and all(one.lineage for one in group):
        return {one.directory: "" for one in group}
    said = {one.directory: f", branched at {one.lineage[-1].step:,}" for one in group if one.lineage}
    return {one.directory: "" if not one.lineage else said[one.directory] if several else ", branched" for one in group}


def by_trunk(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    """Branches that left one trunk and differ in how long they are, {label: observations, shortest first}.

    The label is the trunk's name; beside it the model, the subset or the beginning of the recipe's hash, whichever
    tells lines of one name apart.
    """
    groups: dict[tuple[str, str, str, int], list[Observation]] = {}
    for one in sorted(observations, key=lambda o: (o.cell, o.examples_seen, o.directory)):
        if one.lineage:
            trunk = one.lineage[-1]
            groups.setdefault((trunk.run, trunk.recipe_hash, one.model, one.subset), []).append(one)
    lines = {key: found for key, found in groups.items() if len({one.examples_seen for one in found}) > 1}
    result = {}
    for key, found in lines.items():
        run, recipe_hash, model, subset = key
        alike = list(zip(*(other for other in lines if other[0] == run), strict=True))
        said = [run, model, f"{subset:,} images", recipe_hash]
        told_apart = [True, *(len(set(alike[at])) > 1 for at in (2, 3, 1))]
        result[", ".join(text for text, tells in zip(said, told_apart, strict=True) if tells)] = found
    return result


def means(observations: Iterable[Observation]) -> list[Mean]:
    """The mean over seeds of every series and subset size, by series and size."""
    result = []
    for label, members in by_series(observations).items():
        sizes: dict[int, list[Observation]] = {}
        for one in members:
            sizes.setdefault(one.subset, []).append(one)
        result += [_mean(label, subset, group) for subset, group in sorted(sizes.items())]
    return result


def _mean(label: str, subset: int, group: Sequence[Observation]) -> Mean:
    values = [one.value for one in group]
    return Mean(
        series=label,
        family=group[0].family,
        model=", ".join(sorted({one.model for one in group})),
        subset=subset,
        metric=group[0].metric,
        num_seeds=len(group),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
        seeds=tuple(sorted(one.seed for one in group)),
    )


def mean_rows(averaged: Sequence[Mean], labels: Sequence[str], *, scale: float, digits: int) -> list[list[str]]:
    """Rows of a table of means: the size, then '64.1 ± 0.3 [2]' for each series, with the number of seeds."""
    by_place = {(point.series, point.subset): point for point in averaged}
    rows = []
    for size in sorted({point.subset for point in averaged}):
        row = [f"{size:,}"]
        for label in labels:
            point = by_place.get((label, size))
            if point is None:
                row.append("-")
                continue
            spread = "" if point.std is None else f" ± {point.std * scale:.{digits}f}"
            row.append(f"{point.mean * scale:.{digits}f}{spread} [{point.num_seeds}]")
        rows.append(row)
    return rows
