"""Observations -> everything a report says of them: fits, held-out predictions, crossovers, forecasts, compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_dist.core.metrics import ACCURACY, FEW_SHOT, Metric, known_metric
from vit_dist.scaling.fit.crossings import Crossover, crossover
from vit_dist.scaling.fit.curve import CurveFit, FitOptions
from vit_dist.scaling.fit.diagnostics import says_something
from vit_dist.scaling.fit.fits import fit_curve
from vit_dist.scaling.fit.forecasts import Forecast, Needed, forecast, needed
from vit_dist.scaling.fit.frontiers import ComputePoint, Frontier, IsoCompute, frontier, iso_compute
from vit_dist.scaling.observation import Collection, Observation
from vit_dist.scaling.summary import Mean, by_series, means

_MOST_PAIRS = 15
_MOST_FEW_SHOT = 3
# Forecasts are for this many times the largest size.
_AHEAD = 10.0


@dataclass(frozen=True)
class HeldOut:
    """A series fitted without its largest size, and what that fit says of it."""

    fit: CurveFit
    size: int
    measured: float
    predicted: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict; errors, not accuracies."""
        numbers = {key: value for key, value in vars(self).items() if key != "fit"}
        plain = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        return {"series": self.fit.name, "form": self.fit.form, **plain}


@dataclass(frozen=True)
class Results:
    """What a report shows. Fits are of error against pretraining examples (distinct images).

    `few_shot` has, for each few-shot tag, the last value of each run that has it: {tag: [(observation, value)]}.
    """

    collection: Collection
    series: Mapping[str, Sequence[Observation]]
    means: Sequence[Mean]
    fits: Mapping[str, CurveFit]
    held_out: Sequence[HeldOut]
    crossovers: Sequence[tuple[Crossover, CurveFit, CurveFit]]
    forecasts: Sequence[Forecast]
    needs: Sequence[Needed]
    frontier: Frontier | None
    iso: IsoCompute | None
    few_shot: Mapping[str, Sequence[tuple[Observation, float]]]

    @property
    def curves(self) -> Mapping[str, CurveFit]:
        """The fits that stand for their points: what is drawn, and what crossings and forecasts are read off."""
        return {label: fit for label, fit in self.fits.items() if says_something(fit)}

    @property
    def metric(self) -> str:
        """The tag."""
        return self.collection.metric

    @property
    def rule(self) -> Metric:
        """How the tag's values are read."""
        return self.collection.rule

    @property
    def scale(self) -> float:
        """What values are multiplied by for people: 100 for fractions."""
        return self.rule.scale

    def error(self, value: float) -> float | None:
        """The error that stands for a value of the metric in fits."""
        return self.rule.error(value)


def analyse(collection: Collection, options: FitOptions | None = None) -> Results:
    """Fit what can be fitted. What cannot says so in its own warnings."""
    options = options or FitOptions()
    series = by_series(collection.observations)
    can_fit = collection.rule.error(0.0) is not None
    fits = {label: _fit(collection.rule, label, members, options) for label, members in series.items() if can_fit}
    by = f"{collection.metric}, {collection.rule.better} is better"
    pairs = list(itertools.islice(_pairs(series, fits), _MOST_PAIRS))
    usable = [fit for fit in fits.values() if says_something(fit)]
    largest = max((max(fit.x) for fit in usable), default=0.0)
    target = min((min(fit.error) for fit in usable), default=0.0)
    points = _compute_points(collection, series)
    iso = _iso(points, options) if points else None
    return Results(
        collection=collection,
        series=series,
        means=means(collection.observations),
        fits=fits,
        held_out=[one for label, members in series.items() if can_fit and (one := _hold_out(fits[label], options))],
        crossovers=[(crossover(a, b, by=by), a, b) for a, b in pairs],
        forecasts=[forecast(fit, _AHEAD * largest) for fit in usable],
        needs=[needed(fit, target) for fit in usable],
        frontier=frontier(points, options=options) if len(points) > 1 else None,
        iso=iso,
        few_shot=_few_shot(collection),
    )


def _fit(rule: Metric, label: str, members: Sequence[Observation], options: FitOptions) -> CurveFit:
    found = [rule.error(one.value) for one in members]
    errors = [math.nan if error is None else error for error in found]
    runs = [one.directory for one in members]
    return fit_curve([one.subset for one in members], errors, points="runs", runs=runs, name=label, options=options)


def _pairs(
    series: Mapping[str, Sequence[Observation]], fits: Mapping[str, CurveFit]
) -> itertools.chain[tuple[CurveFit, CurveFit]]:
    """Pairs of series whose curves say something: those of different families first."""
    pairs = [
        (fits[a], fits[b], series[a][0].family == series[b][0].family)
        for a, b in itertools.combinations(fits, 2)
        if says_something(fits[a]) and says_something(fits[b]) and not _are_one(fits[a], fits[b])
    ]
    return itertools.chain(((a, b) for a, b, same in pairs if not same), ((a, b) for a, b, same in pairs if same))


def _are_one(a: CurveFit, b: CurveFit) -> bool:
    """Whether two curves are the same wherever either has data: then neither overtakes the other."""
    low, high = min(a.x_range[0], b.x_range[0]), max(a.x_range[1], b.x_range[1])
    grid = np.geomspace(low, high, 9)
    return bool(np.allclose(a.predict(grid), b.predict(grid), rtol=1e-6))


def _hold_out(fit: CurveFit, options: FitOptions) -> HeldOut | None:
    """None with fewer than four sizes: nothing would be left to fit; nor of a curve that says nothing."""
    sizes = sorted(set(fit.x))
    if len(sizes) < 4 or not says_something(fit):
        return None
    rest = [i for i, x in enumerate(fit.x) if x < sizes[-1]]
    held_out = [fit.error[i] for i, x in enumerate(fit.x) if x == sizes[-1]]
    refitted = fit_curve(
        [fit.x[i] for i in rest], [fit.error[i] for i in rest], points="runs", name=fit.name, options=options
    )
    low, high = refitted.band(sizes[-1])
    measured = math.exp(sum(map(math.log, held_out)) / len(held_out))
    return HeldOut(refitted, int(sizes[-1]), measured, float(refitted.predict(sizes[-1])), float(low), float(high))


def _compute_points(collection: Collection, series: Mapping[str, Sequence[Observation]]) -> list[ComputePoint]:
    points = []
    for label, members in series.items():
        for one in members:
            error = collection.rule.error(one.value)
            if error is not None and one.exaflops:
                points.append(ComputePoint(one.exaflops, error, label, float(one.num_params) or None))
    return points


def _iso(points: Sequence[ComputePoint], options: FitOptions) -> IsoCompute | None:
    """Curves of equal compute, where some budget was spent on three model sizes or more."""
    sized = [point for point in points if point.size]
    if len({point.size for point in sized}) < 3:
        return None
    iso = iso_compute(sized, options=options)
    return iso if any(len(set(budget.sizes)) >= 3 for budget in iso.budgets) else None


def _few_shot(collection: Collection) -> dict[str, list[tuple[Observation, float]]]:
    """The last few-shot values of each run; the 5-shot tags before others, as in the paper."""
    by_tag: dict[str, list[tuple[Observation, float]]] = {}
    for one in collection.observations:
        for tag, series in collection.curves.get(one.directory, {}).items():
            drawn = tag.startswith(FEW_SHOT) and known_metric(tag) == ACCURACY
            if drawn and tag != collection.metric and math.isfinite(series.values[-1]):
                by_tag.setdefault(tag, []).append((one, float(series.values[-1])))
    order = sorted(by_tag, key=lambda tag: (not tag.endswith("_5shot"), tag))
    return {tag: by_tag[tag] for tag in order[:_MOST_FEW_SHOT]}
