"""What a FLOP buys: the running minimum of error over compute, and the best size at each compute budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.scaling.fit.bootstrap import pooled_deviation
from vit_dist.scaling.fit.curve import CurveFit, FitOptions, Interval
from vit_dist.scaling.fit.diagnostics import short
from vit_dist.scaling.fit.fits import fit_curve
from vit_dist.scaling.fit.forms import Array

_DEFAULTS = FitOptions()


@dataclass(frozen=True)
class ComputePoint:
    """One run: its compute (any unit), its error, and for iso-compute its size (parameters)."""

    compute: float
    error: float
    label: str = ""
    size: float | None = None


@dataclass(frozen=True)
class Frontier:
    """The points that no cheaper point beats, by rising compute; `fit` is a curve through three or more of them."""

    points: tuple[ComputePoint, ...]
    fit: CurveFit | None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"points": [vars(p).copy() for p in self.points], "fit": self.fit and self.fit.to_json()}


@dataclass(frozen=True)
class Budget:
    """One compute budget: log error = quadratic in log size.

    `coefficients` are those of (log size - centre)^2, ^1, ^0. `best` is the size at the minimum, None where there is
    none inside the sizes, and then `problem` says why.
    """

    compute: float
    sizes: tuple[float, ...]
    errors: tuple[float, ...]
    coefficients: tuple[float, float, float] | None
    centre: float
    best: float | None
    best_error: float | None
    problem: str

    def predict(self, size: float) -> float:
        """The quadratic's error at a size; NaN without one."""
        if self.coefficients is None:
            return math.nan
        return float(np.exp(np.polyval(self.coefficients, math.log(size) - self.centre)))

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "sizes": list(self.sizes), "errors": list(self.errors)}


@dataclass(frozen=True)
class IsoCompute:
    """Budgets, and the power law best size = factor * compute^exponent through two minima or more."""

    budgets: tuple[Budget, ...]
    exponent: float | None
    exponent_interval: Interval | None
    factor: float | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "budgets": [b.to_json() for b in self.budgets], "warnings": list(self.warnings)}


def frontier(points: Iterable[ComputePoint], *, form: str = "auto", options: FitOptions = _DEFAULTS) -> Frontier:
    """The running minimum of error over compute, and a curve through it.

    The minimum of noisy runs lies too low, the more so the more runs there are: the curve describes what was found.
    """
    best: list[ComputePoint] = []
    for point in sorted(_finite(points), key=lambda p: (p.compute, p.error)):
        if not best or point.error < best[-1].error:
            best.append(point)
    fit = None
    if len(best) >= 3:
        x, y = [p.compute for p in best], [p.error for p in best]
        fit = fit_curve(x, y, form=form, points="runs", name="frontier", options=options)
    return Frontier(tuple(best), fit)


def iso_compute(
    points: Iterable[ComputePoint], *, tolerance: float = 0.1, options: FitOptions = _DEFAULTS
) -> IsoCompute:
    """Log error as a quadratic in log size for each budget, and a power law through the minima.

    Args:
        points: runs with sizes; computes within `tolerance` of the smallest of a group are one budget.
        tolerance: as a share.
        options: bootstraps, confidence and seed of the exponent's interval.

    Raises:
        DataError: a point without a size.
    """
    groups = _groups(_finite(points), tolerance)
    budgets = tuple(_budget(group) for group in groups)
    warnings = [f"budget {short(b.compute)}: {b.problem}" for b in budgets if b.problem]
    usable = [b for b in budgets if b.best is not None]
    if len(usable) < 2:
        warnings.append(f"{len(usable)} budgets with a minimum inside their sizes: no power law")
        return IsoCompute(budgets, None, None, None, tuple(warnings))
    log_compute = np.log([b.compute for b in usable])
    exponent, offset = np.polyfit(log_compute, np.log([b.best or math.nan for b in usable]), 1)
    interval = _exponent_interval(usable, log_compute, float(exponent), options)
    if interval is None:
        warnings.append("the exponent has no interval: budgets need more than three sizes each, or seeds")
    return IsoCompute(budgets, float(exponent), interval, float(np.exp(offset)), tuple(warnings))


def _finite(points: Iterable[ComputePoint]) -> list[ComputePoint]:
    return [p for p in points if all(math.isfinite(v) and v > 0 for v in (p.compute, p.error))]


def _groups(points: Sequence[ComputePoint], tolerance: float) -> list[list[ComputePoint]]:
    groups: list[list[ComputePoint]] = []
    for point in sorted(points, key=lambda p: p.compute):
        if point.size is None or not point.size > 0:
            raise DataError(f"the run {point.label!r} of compute {point.compute:g} has no size: iso-compute needs one")
        if groups and point.compute <= groups[-1][0].compute * (1 + tolerance):
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _budget(group: Sequence[ComputePoint]) -> Budget:
    group = sorted(group, key=lambda p: p.size or 0.0)
    sizes, errors = tuple(float(p.size or 0.0) for p in group), tuple(p.error for p in group)
    compute = float(np.exp(np.mean(np.log([p.compute for p in group]))))
    centre = float(np.mean(np.log(sizes)))
    if len(set(sizes)) < 3:
        problem = f"{len(set(sizes))} sizes; a minimum needs three"
        return Budget(compute, sizes, errors, None, centre, None, None, problem)
    a, b, c = (float(v) for v in np.polyfit(np.log(sizes) - centre, np.log(errors), 2))
    least, problem = math.nan, ""
    if a <= 0:
        problem = "error has no minimum over size (it bends downwards)"
    else:
        least = centre - b / (2 * a)
        if not math.log(sizes[0]) <= least <= math.log(sizes[-1]):
            side = "smaller" if least < math.log(sizes[0]) else "larger"
            problem = f"the minimum lies outside its sizes: {side} models are needed"
    if problem:
        return Budget(compute, sizes, errors, (a, b, c), centre, None, None, problem)
    return Budget(compute, sizes, errors, (a, b, c), centre, math.exp(least), math.exp(c - b * b / (4 * a)), "")


def _exponent_interval(
    budgets: Sequence[Budget], log_compute: Array, exponent: float, options: FitOptions
) -> Interval | None:
    """Parametric bootstrap: errors around all quadratics with the pooled deviation, minima and power law again."""
    fits = [(np.log(b.sizes) - b.centre, np.array(b.coefficients), b) for b in budgets]
    residuals = np.concatenate([np.log(b.errors) - np.polyval(q, u) for u, q, b in fits])
    deviation = pooled_deviation(residuals, 3 * len(fits))
    if deviation is None or not options.bootstraps:
        return None
    rng = np.random.default_rng([options.seed, 2])
    freedom = residuals.size - 3 * len(fits)
    drawn = deviation * np.sqrt(freedom / rng.chisquare(freedom, size=options.bootstraps))
    minima = []
    for u, q, b in fits:
        noise = drawn[:, None] * rng.standard_normal((options.bootstraps, u.size))
        again = np.polyfit(u, (np.polyval(q, u) + noise).T, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.where(again[0] > 0, -again[1] / (2 * again[0]), np.where(again[1] > 0, u[0], u[-1]))
        minima.append(b.centre + np.clip(least, u[0], u[-1]))
    exponents = np.polyfit(log_compute, np.array(minima), 1)[0]
    tail = (1 - options.confidence) / 2
    low, high = np.quantile(exponents, [tail, 1 - tail])
    return float(min(low, exponent)), float(max(high, exponent))
