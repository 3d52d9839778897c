"""Diagnostics of a fit, as sentences: too few sizes, rising errors, parameters that the points do not identify."""

from __future__ import annotations

import math

import numpy as np

from vit_dist.core.units import counted
from vit_dist.scaling.fit.curve import CurveFit
from vit_dist.scaling.fit.forms import FORMS, MAX_EXPONENT, Array

# A floor whose interval spans this fraction of what it could be at all is not known.
_WIDE = 0.75
# Deviation from the curve over that of neighbours: 1 for independent noise, 1.8 where neighbours err 70% alike.
_MISSES = 2.5


def short(number: float) -> str:
    """A size for texts, to three digits: 292M, 1.5k, 0.25; 3e+18 where there is no suffix."""
    if not 1000 <= abs(number) < 1e13:
        return f"{number:.3g}"
    digits = 2 - math.floor(math.log10(abs(number)))
    rounded = round(number, digits)
    for suffix, multiple in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if abs(rounded) >= multiple:
            return f"{rounded / multiple:.3g}{suffix}"
    return f"{rounded / 1e3:.3g}k"


def span(low: float | None, high: float | None, digits: int = 0) -> str:
    """An interval for texts: [279M, 306M]; an end that is open, beyond what was looked at, is left blank."""
    ends = [
        "" if end is None or end == 0 or not math.isfinite(end) else f"{end:.{digits}g}" if digits else short(end)
        for end in (low, high)
    ]
    if not any(ends) and (low is None or math.isnan(low)):
        return "[no interval]"
    return f"[{ends[0] or 'below'}, {ends[1] or 'beyond'}]"


def whereabouts(inside: bool, interval_inside: bool) -> str:
    """Where a size that was read off curves lies, for texts and tables."""
    if not inside:
        return "extrapolated"
    return "inside data" if interval_inside else "inside data, interval reaches beyond"


def says_something(fit: CurveFit) -> bool:
    """Whether a curve stands for its points: else nothing is drawn of it, and nothing is read off it.

    Of fewer sizes than its form wants it is one of many that go through them, and of errors that do not fall it is the
    form's, which can only fall.
    """
    return fit.fitted and fit.num_sizes >= FORMS[fit.form].min_sizes and not _does_not_fall(fit)


def diagnose(fit: CurveFit) -> list[str]:
    """Warnings on a fit, worst first."""
    return [*_rises(fit), *_few(fit), *_unidentified(fit), *_misses(fit)]


def _means(fit: CurveFit) -> tuple[Array, Array]:
    """Sizes, and the mean log error at each."""
    x, log_y = np.array(fit.x), np.log(fit.error)
    sizes = np.unique(x)
    return sizes, np.array([log_y[x == size].mean() for size in sizes])


def _does_not_fall(fit: CurveFit) -> bool:
    _, means = _means(fit)
    return bool(means[-1] >= means[0])


def _rises(fit: CurveFit) -> list[str]:
    x, log_y = np.array(fit.x), np.log(fit.error)
    sizes, means = _means(fit)
    if _does_not_fall(fit):
        first, last = (f"{np.exp(means[k]):.4g} at {short(sizes[k])}" for k in (0, -1))
        return [f"error does not fall with size: {first}, {last}; the forms can only fall, so this fit says nothing"]
    if fit.points == "curve":
        return []
    counts = np.array([(x == size).sum() for size in sizes])
    within = x.size - sizes.size
    deviation = 0.0
    if within:
        spread = sum(((log_y[x == size] - mean) ** 2).sum() for size, mean in zip(sizes, means, strict=True))
        deviation = float(np.sqrt(spread / within))
    noise = 2 * deviation * np.sqrt(1 / counts[1:] + 1 / counts[:-1])
    worse = np.flatnonzero(np.diff(means) > noise)
    why = "more than its seeds explain" if deviation else "with one run each"
    warnings = []
    for i in worse[:3]:
        before, after = (f"{np.exp(means[k]):.4g} at {short(sizes[k])}" for k in (i, i + 1))
        warnings.append(f"error rises from {before} to {after}, {why}")
    return warnings


def _few(fit: CurveFit) -> list[str]:
    form, warnings = FORMS[fit.form], []
    if fit.num_sizes < form.min_sizes:
        warnings.append(f"too few sizes: {fit.num_sizes}, where {fit.form} wants {form.min_sizes} or more")
    if fit.form == "m1":
        warnings.append("m1 has no floor: if there is one, it is too low beyond the data and its intervals too narrow")
    if fit.deviation is None:
        warnings.append("as many parameters as points: no intervals")
    elif fit.points == "runs" and fit.num_points == fit.num_sizes and fit.num_sizes < 8:
        warnings.append("one run a size: intervals rest on few residuals; three seeds a size or more are better")
    return warnings


def _unidentified(fit: CurveFit) -> list[str]:
    warnings = []
    if fit.starts >= 4 and fit.starts_agree < fit.starts / 4:
        warnings.append(
            f"only {fit.starts_agree} of {counted(fit.starts, 'start')} found this curve: there may be a better one"
        )
    b = fit.params["b"]
    if b <= 1e-6:
        warnings.append("the exponent is 0: the curve is flat")
    elif b >= 0.99 * MAX_EXPONENT:
        warnings.append(f"the exponent is at its bound, {MAX_EXPONENT:g}: the form is not identified")
    floor = fit.intervals.get("c")
    if floor is not None and floor[1] - floor[0] > _WIDE * min(fit.error):
        ends = f"{floor[0]:.3g} to {floor[1]:.3g}"
        warnings.append(f"the floor is not identified: anything from {ends}; believe the curve inside the data only")
    slope = fit.intervals["b"]
    if slope is not None and b > 1e-6 and slope[1] > 5 * max(slope[0], 1e-9):
        warnings.append(f"the exponent is not identified: anything from {slope[0]:.3g} to {slope[1]:.3g}")
    return warnings


def misses(fit: CurveFit) -> float | None:
    """How many times what neighbours differ by the points leave the curve, where that is too much for noise; else None.

    Then the curve bends otherwise than the points.
    """
    residuals = fit.residuals
    if fit.points != "curve" or fit.deviation is None or residuals.size < 2 * FORMS[fit.form].num_params:
        return None
    near = float(np.sqrt(np.mean(np.diff(residuals) ** 2) / 2))
    times = fit.deviation / max(near, 1e-12)
    return times if times >= _MISSES and fit.deviation >= 1e-3 else None


def _misses(fit: CurveFit) -> list[str]:
    times = misses(fit)
    if times is None:
        return []
    return [f"the points leave the curve by {times:.1f} times what neighbours differ by: the form misses their shape"]
