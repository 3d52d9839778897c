"""Fit curves of error against size: forms tried, one chosen, intervals, warnings. `fit_curve` is the way in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.units import counted
from vit_dist.scaling.fit.bootstrap import BLOCK, Points, bootstrap, pooled_deviation
from vit_dist.scaling.fit.curve import CurveFit, FitOptions, Interval
from vit_dist.scaling.fit.diagnostics import diagnose
from vit_dist.scaling.fit.forms import FORMS, Array, Form
from vit_dist.scaling.fit.solve import Solution, fit_form, solve_many

# Without names of runs, this many sizes with one point each are taken for one training curve.
_CURVE_SIZES = 12
# A form whose leave-largest-out log-RMSE is at most this many times the best one's is plausible.
_PLAUSIBLE = 2.0
_DEFAULTS = FitOptions()
# A larger form must beat a smaller one by this factor: with a score that is only as good, it follows noise.
_BETTER = 0.95


def fit_curve(
    x: ArrayLike,
    error: ArrayLike,
    *,
    form: str = "auto",
    points: str = "auto",
    runs: Sequence[str] | None = None,
    name: str = "",
    options: FitOptions = _DEFAULTS,
) -> CurveFit:
    """Fit error against size.

    Args:
        x: sizes (examples, images seen, FLOPs, ...), one a point; equal sizes are seeds of one size.
        error: error or loss at each, above 0. Points that are not numbers above 0 are left out, with a warning.
        form: m1, m2, zhai, m4, or auto: the one with the lowest leave-largest-out log-RMSE among those that the
            number of sizes allows.
        points: "runs", "curve" (points along training curves), or auto: "curve" where a run has several points, or,
            without `runs`, where there are 12 sizes or more with one point each.
        runs: which training run each point belongs to.
        name: what the curve is called in texts.
        options: starts, bootstraps, confidence, Huber's delta, seed.

    Returns:
        the fit; with form "none" and a warning where no two sizes are left.

    Raises:
        ConfigError: an unknown form, or one with more parameters than there are sizes.
        DataError: sizes, errors and runs of different number.
    """
    if form != "auto" and form not in FORMS:
        raise ConfigError(f"unknown form {form!r}{did_you_mean(form, ['auto', *FORMS])}")
    data, names, warnings = _usable(x, error, runs, name)
    along = _along_curves(data, names, points)
    data = replace(data, curves=tuple(names) if along and names else ("",) * data.x.size if along else ())
    sizes = data.sizes
    if sizes.size < 2:
        count = "no point" if not sizes.size else "one point" if data.x.size == 1 else "one size"
        return _no_fit(data, names, name, options, (*warnings, f"{count} only: a curve needs two sizes or more"))
    if form != "auto" and FORMS[form].num_params > sizes.size:
        raise ConfigError(
            f"{_called(name)}form {form} has {FORMS[form].num_params} parameters, and there are "
            f"{sizes.size} sizes; give more sizes, or a smaller form"
        )
    tried = [form] if form != "auto" else [f.name for f in FORMS.values() if f.min_sizes <= sizes.size] or ["m1"]
    scores = {one: score for one in tried if (score := _held_out(data, FORMS[one], options)) is not None}
    chosen = _choose(tried, scores)
    return _fit(data, names, FORMS[chosen], name, options, scores, warnings, auto=form == "auto")


def refit(fit: CurveFit, form: str) -> CurveFit:
    """The same points and options with another form."""
    runs = fit.runs or None
    return fit_curve(fit.x, fit.error, form=form, points=fit.points, runs=runs, name=fit.name, options=fit.options)


def alternatives(fit: CurveFit) -> dict[str, CurveFit]:
    """The fits of all plausible forms, this one first: what a statement beyond the data should span.

    Plausible is a form that the number of sizes allows and whose leave-largest-out log-RMSE is at most twice the best,
    or that is nearest to the points.
    """
    if not fit.fitted:
        return {}
    data = Points(np.array(fit.x), np.log(fit.error))
    scores, misfits = dict(fit.scores), {}
    for form in FORMS.values():
        if form.min_sizes > fit.num_sizes:
            continue
        score = _held_out(data, form, fit.options) if form.name not in scores else scores[form.name]
        if score is not None:
            scores[form.name] = score
        misfits[form.name] = _solve(data, form, fit.options)[0].loss
    limit = _PLAUSIBLE * min(scores.values(), default=math.inf)
    plausible = {form for form, score in scores.items() if score <= limit}
    plausible |= {form for form, loss in misfits.items() if loss <= min(misfits.values())}
    others = [form for form in FORMS if form in plausible and form != fit.form]
    return {fit.form: fit, **{form: refit(fit, form) for form in others}}


def _called(name: str) -> str:
    return f"{name}: " if name else ""


def _usable(
    x: ArrayLike, error: ArrayLike, runs: Sequence[str] | None, name: str
) -> tuple[Points, list[str], list[str]]:
    """The points that can be fitted, by rising size, their runs, and a warning on the others."""
    sizes, errors = np.asarray(x, dtype=float).ravel(), np.asarray(error, dtype=float).ravel()
    if sizes.size != errors.size or (runs is not None and len(runs) != sizes.size):
        counts = f"{counted(sizes.size, 'size')}, {errors.size} errors" + (
            f", {counted(len(runs), 'run')}" if runs is not None else ""
        )
        raise DataError(f"{_called(name)}{counts}: there must be as many of each")
    usable = np.isfinite(sizes) & np.isfinite(errors) & (sizes > 0) & (errors > 0)
    warnings = []
    left_out = np.flatnonzero(~usable)
    if left_out.size:
        warnings.append(_left_out(sizes[left_out], errors[left_out], usable.size))
    order = np.flatnonzero(usable)[np.argsort(sizes[usable], kind="stable")]
    names = [str(runs[i]) for i in order] if runs is not None else []
    return Points(sizes[order], np.log(errors[order])), names, warnings


def _left_out(sizes: Array, errors: Array, of: int) -> str:
    """A warning on points that no curve can be fitted to."""
    if (errors == 0).all() and (sizes > 0).all():
        at = ", ".join(f"{size:,.10g}" for size in np.unique(sizes)[:4])
        more = ", ..." if np.unique(sizes).size > 4 else ""
        points = f"{errors.size} of {counted(of, 'point has', 'points have')}" if of > 1 else "the only point has"
        return f"{points} an error of 0 (at {at}{more}), which has no logarithm: left out of the fit"
    shown = ", ".join(f"{error:g} at x = {size:g}" for size, error in zip(sizes[:4], errors[:4], strict=True))
    more = ", ..." if errors.size > 4 else ""
    return f"left out {errors.size} of {counted(of, 'point')} that are not numbers above 0: {shown}{more}"


def _along_curves(data: Points, names: list[str], points: str) -> bool:
    if points not in {"auto", "runs", "curve"}:
        raise ConfigError(f"points={points!r}{did_you_mean(points, ['auto', 'runs', 'curve'])}")
    if points != "auto":
        return points == "curve"
    if names:
        return len(set(names)) < len(names)
    return data.sizes.size == data.x.size >= _CURVE_SIZES


def _no_fit(data: Points, names: list[str], name: str, options: FitOptions, warnings: tuple[str, ...]) -> CurveFit:
    return CurveFit(
        name=name,
        form="none",
        params={},
        intervals={},
        estimator="nothing fitted",
        points="curve" if data.curves else "runs",
        x=tuple(data.x.tolist()),
        error=tuple(np.exp(data.log_y).tolist()),
        runs=tuple(names),
        num_sizes=data.sizes.size,
        starts=0,
        starts_agree=0,
        deviation=None,
        scores={},
        warnings=warnings,
        options=options,
        theta=(),
        log_x0=0.0,
        draws=np.empty((0, 0)),
    )


def _held_out(data: Points, form: Form, options: FitOptions) -> float | None:
    """Log-RMSE on the largest sizes (one in five, at least one) of a fit to the others; None with too few others."""
    sizes = data.sizes
    largest = sizes[-max(1, sizes.size // 5) :]
    rest = data.select(data.x < largest[0])
    if rest.sizes.size < min(form.num_params, sizes.size - 1) or rest.sizes.size < 2:
        return None
    solution, log_x0 = _solve(rest, form, options)
    held = data.x >= largest[0]
    predicted = form.values(solution.theta, np.log(data.x[held]) - log_x0)
    return float(np.sqrt(np.mean((np.log(predicted) - data.log_y[held]) ** 2)))


def _choose(tried: Sequence[str], scores: Mapping[str, float]) -> str:
    """The form with the lowest score; a larger form must be clearly better than a smaller one."""
    chosen = tried[0]
    for one in tried[1:]:
        if scores.get(one, math.inf) < _BETTER * scores.get(chosen, math.inf):
            chosen = one
    return chosen


def _solve(data: Points, form: Form, options: FitOptions) -> tuple[Solution, float]:
    # Centred, so that level and exponent of a curve do not trade against each other, and the unit of x changes nothing.
    log_x = np.log(data.x)
    log_x0 = float(log_x.mean())
    solution = fit_form(form, log_x - log_x0, data.log_y, starts=options.starts, delta=options.delta, seed=options.seed)
    return solution, log_x0


def _fit(
    data: Points,
    names: list[str],
    form: Form,
    name: str,
    options: FitOptions,
    scores: Mapping[str, float],
    warnings: Sequence[str],
    *,
    auto: bool,
) -> CurveFit:
    solution, log_x0 = _solve(data, form, options)
    u = np.log(data.x) - log_x0
    fitted = np.log(form.values(solution.theta, u))
    draws = _draws(data, fitted, form, solution.theta, u, options)
    params = {key: float(value) for key, value in form.params(solution.theta, log_x0).items()}
    tail = (1 - options.confidence) / 2
    # Where all resampled fits lie to one side of the fit, the interval is widened to hold it.
    intervals: dict[str, Interval | None] = dict.fromkeys(params)
    if len(draws):
        for key, values in form.params(draws, log_x0).items():
            low, high = np.quantile(values, [tail, 1 - tail])
            intervals[key] = (float(min(low, params[key])), float(max(high, params[key])))
    fit = CurveFit(
        name=name,
        form=form.name,
        params=params,
        intervals=intervals,
        estimator=_estimator(form, data, options, len(draws), auto=auto, tried=len(scores)),
        points="curve" if data.curves else "runs",
        x=tuple(data.x.tolist()),
        error=tuple(np.exp(data.log_y).tolist()),
        runs=tuple(names),
        num_sizes=data.sizes.size,
        starts=options.starts,
        starts_agree=solution.agree,
        deviation=pooled_deviation(data.log_y - fitted, form.num_params),
        scores=dict(scores),
        warnings=tuple(warnings),
        options=options,
        theta=tuple(solution.theta.tolist()),
        log_x0=log_x0,
        draws=draws,
    )
    return replace(fit, warnings=(*fit.warnings, *diagnose(fit)))


def _draws(data: Points, fitted: Array, form: Form, theta: Array, u: Array, options: FitOptions) -> Array:
    """Theta of every bootstrap, [B, p]; each starts from the fit itself."""
    rng = np.random.default_rng([options.seed, 1])
    log_y = bootstrap(data, fitted, form.num_params, options.bootstraps, rng)
    if not len(log_y):
        return np.empty((0, form.num_params))
    if data.log_y.max() < 0:
        # What is below 1 everywhere is an error rate, and stays one.
        log_y = np.minimum(log_y, -1e-4)
    bounds = [form.bounds(u, np.exp(row)) for row in log_y]
    low, high = (np.stack(side) for side in zip(*bounds, strict=True))
    begin = np.broadcast_to(theta, (len(log_y), theta.size))
    return solve_many(form, begin, u, log_y, low, high, delta=options.delta)[0]


def _estimator(form: Form, data: Points, options: FitOptions, drawn: int, *, auto: bool, tried: int) -> str:
    """How the fit was made, for captions."""
    parts = [
        f"{form.name}: {form.formula}",
        f"Huber (delta {options.delta:g}) on log error, {counted(options.starts, 'start')}",
    ]
    if auto and tried > 1:
        parts.append(f"chosen of {tried} forms by leave-largest-out log-RMSE")
    if drawn:
        how = f"block bootstrap (blocks of {BLOCK})" if data.curves else "parametric bootstrap (pooled deviation)"
        parts.append(f"{options.confidence:.0%} intervals from {counted(drawn, 'draw')} of a {how}")
    return "; ".join(parts)
