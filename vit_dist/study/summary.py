"""Observations -> means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from vit_dist.study.collect import Observation


@dataclass(frozen=True)
class Mean:
    """One family at one subset size, over its seeds. `std` is the sample standard deviation; None for one seed."""

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


def means(observations: Iterable[Observation]) -> list[Mean]:
    """The mean over seeds of every family and subset size, by family and size."""
    groups: dict[tuple[str, int], list[Observation]] = {}
    for one in observations:
        groups.setdefault((one.family, one.subset), []).append(one)
    result = []
    for (family, subset), group in sorted(groups.items()):
        values = [one.value for one in group]
        result.append(
            Mean(
                family=family,
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
        )
    return result


def is_share(metric: str) -> bool:
    """True for metrics between 0 and 1 that are shown in percent."""
    return metric.rpartition("/")[2].startswith(("top", "acc"))
