"""What a curve says of sizes that were not measured, and which size an error needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_dist.core.errors import ConfigError
from vit_dist.scaling.fit.curve import CurveFit, plain
from vit_dist.scaling.fit.diagnostics import short, span, whereabouts
from vit_dist.scaling.fit.fits import alternatives

# A size this many times the largest one measured is no forecast.
_FAR = 1e6


@dataclass(frozen=True)
class Forecast:
    """Error at a size. `low` and `high` span all plausible forms where the size lies outside the data (`inside` false).

    `per_form` has error, low and high of each. `text` says it in one sentence. Numbers are None without a curve.
    """

    name: str
    x: float
    error: float | None
    low: float | None
    high: float | None
    inside: bool
    per_form: Mapping[str, Mapping[str, float | None]]
    text: str

    @property
    def accuracy(self) -> float | None:
        """1 - error."""
        return None if self.error is None else 1 - self.error

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "per_form": {form: dict(one) for form, one in self.per_form.items()}}


@dataclass(frozen=True)
class Needed:
    """The size at which a curve reaches an error; x is None where it never does within a million times the data.

    `low` and `high` None: open there; for `high`, more than half a tail of the bootstraps never reach it. `share` of
    the bootstraps reach it. `floor` is that of the curve. `inside`: x lies within the data; `interval_inside`: so does
    its interval; where one of them does not, low and high span all plausible forms.
    """

    name: str
    target: float
    x: float | None
    low: float | None
    high: float | None
    share: float | None
    floor: float | None
    inside: bool
    interval_inside: bool
    per_form: Mapping[str, Mapping[str, float | None]]
    text: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "per_form": {form: dict(one) for form, one in self.per_form.items()}}


def forecast(fit: CurveFit, x: float) -> Forecast:
    """The error at a size, inside or outside the data.

    Raises:
        ConfigError: a size that is not above 0.
    """
    if not (np.isfinite(x) and x > 0):
        raise ConfigError(f"a forecast at size {x:g}: give a size above 0")
    if not fit.fitted:
        return Forecast(fit.name, float(x), None, None, None, False, {}, f"{fit.name}: no curve to forecast from")
    inside = fit.inside(x)
    per_form: dict[str, Mapping[str, float | None]] = {}
    for form, one in ({fit.form: fit} if inside else alternatives(fit)).items():
        ends = (plain(float(end)) for end in one.band(x))
        per_form[form] = {"error": float(one.predict(x)), **dict(zip(("low", "high"), ends, strict=True))}
    error = float(fit.predict(x))
    low, high = _union(per_form)
    where = "inside data"
    if not inside:
        edge = fit.x_range[1] if x > fit.x_range[1] else fit.x_range[0]
        where = f"extrapolated to {x / edge:.3g} times the data's end; over forms {', '.join(per_form)}"
    text = f"{fit.name + ' ' if fit.name else ''}at {short(x)}: error {error:.4g} {span(low, high, 4)} ({where})"
    return Forecast(fit.name, float(x), error, low, high, inside, per_form, text)


def needed(fit: CurveFit, target: float) -> Needed:
    """The size needed for an error of `target`.

    Raises:
        ConfigError: a target that is not above 0.
    """
    if not (np.isfinite(target) and target > 0):
        raise ConfigError(f"a target error of {target:g}: give an error above 0")
    called = f"{fit.name}: " if fit.name else ""
    if not fit.fitted:
        text = f"{called}no curve to read it from"
        return Needed(fit.name, float(target), None, None, None, None, None, False, False, {}, text)
    per_form = {fit.form: _reach(fit, target)}
    x, low, high = (per_form[fit.form][key] for key in ("x", "low", "high"))
    share = per_form[fit.form]["share"]
    first, last = fit.x_range
    inside = x is not None and first <= x <= last
    interval_inside = inside and (share is None or (first <= (low or 0.0) and (high or np.inf) <= last))
    if not interval_inside:
        per_form |= {form: _reach(one, target) for form, one in alternatives(fit).items() if form != fit.form}
        lows, highs = ([one[key] for one in per_form.values()] for key in ("low", "high"))
        low = None if None in lows else min(v for v in lows if v is not None)
        high = None if None in highs else max(v for v in highs if v is not None)
    where = whereabouts(inside, interval_inside)
    text = f"{called}error {target:.4g} {_needed_text(fit, target, x, low, high, where, share, list(per_form))}"
    floor = plain(fit.floor)
    return Needed(fit.name, float(target), x, low, high, share, floor, inside, interval_inside, per_form, text)


def _union(per_form: Mapping[str, Mapping[str, float | None]]) -> tuple[float | None, float | None]:
    lows = [one["low"] for one in per_form.values() if one["low"] is not None]
    highs = [one["high"] for one in per_form.values() if one["high"] is not None]
    return min(lows, default=None), max(highs, default=None)


def _reach(fit: CurveFit, target: float) -> dict[str, float | None]:
    far = _FAR * fit.x_range[1]
    here, drawn = fit.solve_for(target)
    x = here if 0 < here <= far else None
    if not drawn.size:
        return {"x": x, "low": None, "high": None, "share": None}
    low, high = np.quantile(np.where(drawn <= far, drawn, np.inf), fit.tails, method="nearest")
    if x is not None:
        low, high = min(low, x), max(high, x)
    return {"x": x, "low": plain(low) if low > 0 else None, "high": plain(high), "share": float((drawn <= far).mean())}


def _needed_text(
    fit: CurveFit,
    target: float,
    x: float | None,
    low: float | None,
    high: float | None,
    where: str,
    share: float | None,
    forms: list[str],
) -> str:
    reached = "" if share is None else f"; {share:.0%} of bootstraps reach it"
    if x is None:
        if target <= fit.floor:
            return f"is not reached: floor {fit.floor:.4g}{reached}"
        if fit.solve_for(target)[0] == 0:
            return "is reached at every size: the curve starts below it"
        return f"is not reached within a million times the largest size{reached}"
    over = f"; over forms {', '.join(forms)}" if len(forms) > 1 else ""
    return f"needs {short(x)} {span(low, high)} ({where}{over}{reached})"
