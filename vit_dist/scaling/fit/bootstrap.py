"""Resampled errors for intervals: around the curve with its pooled deviation, seeds of a size, blocks of a curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vit_dist.scaling.fit.forms import Array

# Points along one training curve are resampled in runs of this many: neighbours err alike.
BLOCK = 5
# Seeds of one size are resampled from this many up; fewer say too little of their own spread.
SEEDS = 5


@dataclass(frozen=True)
class Points:
    """What is fitted, by rising size: sizes, log errors, and for points along training curves the curve of each.

    `curves` is empty where each point is a run of its own.
    """

    x: Array
    log_y: Array
    curves: tuple[str, ...] = ()

    @property
    def sizes(self) -> Array:
        """The distinct sizes."""
        return np.unique(self.x)

    def select(self, mask: np.ndarray) -> Points:
        """Some of the points."""
        curves = tuple(c for c, keep in zip(self.curves, mask, strict=True) if keep) if self.curves else ()
        return Points(self.x[mask], self.log_y[mask], curves)


def pooled_deviation(residuals: Array, num_params: int) -> float | None:
    """The deviation of log error around the curve, over all sizes; None with no more points than parameters."""
    freedom = residuals.size - num_params
    return None if freedom <= 0 else float(np.sqrt((residuals**2).sum() / freedom))


def bootstrap(points: Points, fitted: Array, num_params: int, count: int, rng: np.random.Generator) -> Array:
    """Log errors as they might have been, [count, n].

    Along training curves: blocks of residuals, put onto the fitted curve. Else normal residuals with the pooled
    deviation, which is itself drawn for each bootstrap from its chi-square distribution, since a few points tell it
    badly; sizes with 5 seeds or more take their own runs with replacement instead.

    Args:
        points: what was fitted.
        fitted: log of the curve at the points, [n].
        num_params: parameters fitted.
        count: bootstraps.
        rng: where the draws come from.
    """
    residuals = points.log_y - fitted
    freedom = residuals.size - num_params
    if not count:
        return np.empty((0, residuals.size))
    if points.curves:
        wider = float(np.sqrt(residuals.size / max(freedom, 1)))
        return fitted + _blocks(points, residuals, count, rng) * wider
    deviation = pooled_deviation(residuals, num_params)
    if deviation is None:
        return np.empty((0, residuals.size))
    drawn = deviation * np.sqrt(freedom / rng.chisquare(freedom, size=(count, 1)))
    result = fitted + drawn * rng.standard_normal((count, residuals.size))
    for size in points.sizes:
        at = np.flatnonzero(points.x == size)
        if at.size >= SEEDS:
            mean = points.log_y[at].mean()
            spread = (points.log_y[at] - mean) * np.sqrt(at.size / (at.size - 1))
            result[:, at] = mean + spread[rng.integers(at.size, size=(count, at.size))]
    return np.asarray(result)


def _blocks(points: Points, residuals: Array, count: int, rng: np.random.Generator) -> Array:
    """Residuals in circular blocks of 5 neighbours, each training curve by itself, [count, n]."""
    result = np.empty((count, residuals.size))
    names = np.array(points.curves)
    for name in dict.fromkeys(points.curves):
        at = np.flatnonzero(names == name)
        own = residuals[at] - residuals[at].mean()
        starts = rng.integers(at.size, size=(count, -(-at.size // BLOCK)))
        places = (starts[:, :, None] + np.arange(BLOCK)) % at.size
        result[:, at] = own[places.reshape(count, -1)[:, : at.size]]
    return result
