"""Where one curve overtakes another, how sure that is, and whether data or extrapolation says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_dist.scaling.fit.curve import CurveFit, Interval, plain
from vit_dist.scaling.fit.diagnostics import misses, short, span, whereabouts
from vit_dist.scaling.fit.fits import alternatives
from vit_dist.scaling.fit.forms import Array

# Sizes that a crossing is looked for at.
GRID = 600


@dataclass(frozen=True)
class Crossover:
    """From `x` on `winner` has the lower error than `loser`.

    Without a crossing in `range`: x is None and `winner` is lower all over it. `low` and `high` are the interval; None
    means it is open there: more than half a tail of the bootstraps cross beyond that end of the range, or never.
    `share` of the bootstraps cross in the range. `inside`: x lies where both curves have data; `interval_inside`: so
    does its interval. `per_form` has x, low, high and share of each pair of forms; low and high span all of them:
    several where x or its interval lies beyond the data, or where a curve misses its points.
    """

    winner: str
    loser: str
    x: float | None
    low: float | None
    high: float | None
    share: float | None
    inside: bool
    interval_inside: bool
    range: Interval
    per_form: Mapping[str, Mapping[str, float | None]]
    text: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        per_form = {form: dict(one) for form, one in self.per_form.items()}
        return {**vars(self), "range": list(self.range), "per_form": per_form}


@dataclass(frozen=True)
class _Crossing:
    """One pair of forms: x is NaN without a crossing; low and high may be 0 or inf, beyond the range."""

    x: float
    low: float
    high: float
    share: float | None

    def to_json(self) -> dict[str, float | None]:
        return {"x": plain(self.x), "low": plain(self.low or np.nan), "high": plain(self.high), "share": self.share}


def crossover(
    a: CurveFit, b: CurveFit, range: Interval | None = None, *, by: str = "error, lower is better"
) -> Crossover:
    """Where two curves cross for the last time.

    Args:
        a: one curve.
        b: the other, on the same x.
        range: sizes to look in; by default from the smallest size both have to ten times the largest either has.
        by: what a person compares the two by, and which way, for the text: the curves themselves are of errors.
    """
    if not (a.fitted and b.fitted):
        missing = " and ".join(repr(fit.name) for fit in (a, b) if not fit.fitted)
        return _without(a, b, range or (0.0, 0.0), f"no crossover of {a.name} and {b.name}: no curve for {missing}")
    (a_low, a_high), (b_low, b_high) = a.x_range, b.x_range
    where = range or (max(a_low, b_low), 10 * max(a_high, b_high))
    grid = np.geomspace(*where, GRID)
    # Who is lower at the far end wins, so that a crossing is an overtaking and only the last one counts.
    gap_at_end = float(np.log(a.predict(grid[-1:]))[0] - np.log(b.predict(grid[-1:]))[0])
    winner, loser = (a, b) if gap_at_end < 0 else (b, a)
    crossing = _crossing(winner, loser, grid)
    data = max(a_low, b_low), min(a_high, b_high)
    # False without a crossing, which is NaN.
    inside = bool(data[0] <= crossing.x <= data[1])
    per_form = {_pair(winner, loser): crossing}
    low, high = crossing.low, crossing.high
    unsure = not (inside and _within(data, low, high)) or misses(a) or misses(b)
    if unsure and crossing.share is not None:
        for one in alternatives(winner).values():
            for other in alternatives(loser).values():
                per_form.setdefault(_pair(one, other), _crossing(one, other, grid))
        low = min(one.low for one in per_form.values())
        high = max(one.high for one in per_form.values())
    crossed = bool(np.isfinite(crossing.x))
    interval_inside = inside and _within(data, low, high)
    return Crossover(
        winner=winner.name,
        loser=loser.name,
        x=plain(crossing.x),
        low=plain(low or np.nan) if crossed else None,
        high=plain(high) if crossed else None,
        share=crossing.share,
        inside=inside,
        interval_inside=interval_inside,
        range=(float(where[0]), float(where[1])),
        per_form={form: one.to_json() for form, one in per_form.items()},
        text=_text(
            winner, loser, crossing, (low, high), whereabouts(inside, interval_inside), where, len(per_form), by
        ),
    )


def _without(a: CurveFit, b: CurveFit, range: Interval, text: str) -> Crossover:
    return Crossover(a.name, b.name, None, None, None, None, False, False, range, {}, text)


def _within(data: Interval, low: float, high: float) -> bool:
    """Whether an interval lies within the data; one that was not asked for (NaN) reaches nowhere."""
    return bool(np.isnan(low) or (data[0] <= low and high <= data[1]))


def _pair(winner: CurveFit, loser: CurveFit) -> str:
    return winner.form if winner.form == loser.form else f"{winner.form} / {loser.form}"


def _crossing(winner: CurveFit, loser: CurveFit, grid: Array) -> _Crossing:
    gap = np.log(winner.predict(grid)) - np.log(loser.predict(grid))
    x = _last(gap[None], grid)[0]
    here = float(x) if 0 < x < np.inf else np.nan
    drawn = bootstrap_crossings(winner, loser, grid)
    if not drawn.size:
        return _Crossing(here, np.nan, np.nan, None)
    low, high = np.quantile(drawn, winner.tails, method="nearest")
    if np.isfinite(here):
        low, high = min(low, here), max(high, here)
    return _Crossing(here, float(low), float(high), float(((drawn > 0) & (drawn < np.inf)).mean()))


def bootstrap_crossings(winner: CurveFit, loser: CurveFit, grid: Array) -> Array:
    """Where pairs of bootstraps cross for the last time, [pairs]: 0 below the grid, inf beyond it or never."""
    winner_draws, loser_draws = winner.predict_draws(grid), loser.predict_draws(grid)
    count = min(len(winner_draws), len(loser_draws))
    if not count:
        return np.empty(0)
    # The draws of two fits may share their noise, which would cancel in the gap: pair them at random.
    loser_draws = loser_draws[np.random.default_rng(winner.options.seed).permutation(len(loser_draws))]
    return _last(np.log(winner_draws[:count]) - np.log(loser_draws[:count]), grid)


def _last(gap: Array, grid: Array) -> Array:
    """[B, n] -> [B]: where the gap turns negative for good; 0 if it always is, inf if it is not at the end."""
    below = gap < 0
    # The last place that is not below, and its neighbour, which is.
    place = gap.shape[1] - 1 - np.argmax(~below[:, ::-1], axis=1)
    place = np.minimum(place, gap.shape[1] - 2)
    rows = np.arange(len(gap))
    before, after = gap[rows, place], gap[rows, place + 1]
    # Linear between the two in log error over log size, in which power laws are straight.
    fraction = np.clip(before / np.where(before == after, 1.0, before - after), 0, 1)
    x = np.exp(np.log(grid[place]) + fraction * (np.log(grid[place + 1]) - np.log(grid[place])))
    return np.where(below.all(axis=1), 0.0, np.where(below[:, -1], x, np.inf))


def _text(
    winner: CurveFit,
    loser: CurveFit,
    crossing: _Crossing,
    interval: Interval,
    how: str,
    where: Interval,
    num_forms: int,
    by: str,
) -> str:
    cross = "" if crossing.share is None else f"{crossing.share:.0%} of bootstraps cross"
    if not np.isfinite(crossing.x):
        tail = f"; {cross} there" if cross else ""
        return (
            f"no crossing in range {short(where[0])} to {short(where[1])}: {winner.name} is better than {loser.name} "
            f"all over it ({by}){tail}"
        )
    if num_forms > 1:
        how += f"; interval over {num_forms} pairs of forms"
    notes = "; ".join(note for note in (how, cross) if note)
    return f"{winner.name} overtakes {loser.name} at {short(crossing.x)} {span(*interval)} ({notes})"
