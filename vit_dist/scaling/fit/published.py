"""M4 the way its authors' public code estimates it: for comparison with published numbers, not for use.

Source of the equations: google-research/google-research, revisiting_neural_scaling_laws/methods/m4.py (Alabdulmohsin et
al., 2022). There, log(y - c) is regressed on log x and log(1 - y), in which the 1 stays what e0 began as, while c and
e0 are moved until the derivatives of the squared residual vanish, taken with the e0 of the moment. Here the fixed point
of that iteration is solved for directly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vit_dist.core.errors import DataError
from vit_dist.scaling.fit.bootstrap import pooled_deviation
from vit_dist.scaling.fit.curve import CurveFit, FitOptions
from vit_dist.scaling.fit.forms import FORMS, Array

_EDGE = 1e-5


def published_m4(x: ArrayLike, error: ArrayLike, *, name: str = "") -> CurveFit:
    """Fit M4 to error rates below 1 by the authors' equations; the fit has no bootstraps.

    Raises:
        DataError: errors outside (0, 1), or no solution.
    """
    sizes, errors = np.asarray(x, dtype=float), np.asarray(error, dtype=float)
    order = np.argsort(sizes, kind="stable")
    sizes, errors = sizes[order], errors[order]
    if not ((errors > 0) & (errors < 1)).all():
        raise DataError(f"{name or 'm4'}: the published estimator takes error rates between 0 and 1")
    log_x0 = float(np.log(sizes).mean())
    u = np.log(sizes) - log_x0
    solutions, starts = _solve_equations(u, errors)
    if not solutions:
        raise DataError(f"{name or 'm4'}: the published estimator's equations have no solution for these points")
    level, b, alpha, c, e0 = solutions[0]
    theta = np.array([level - (1 - alpha) * np.log(e0 - c), b, c, alpha, e0])
    form = FORMS["m4"]
    params = {key: float(value) for key, value in form.params(theta, log_x0).items()}
    residuals = np.log(errors) - np.log(form.values(theta, u))
    return CurveFit(
        name=name,
        form="m4",
        params=params,
        intervals=dict.fromkeys(params),
        estimator=f"m4: {form.formula}; the authors' equations, solved for their fixed point; no intervals",
        points="runs",
        x=tuple(sizes.tolist()),
        error=tuple(errors.tolist()),
        runs=(),
        num_sizes=int(np.unique(sizes).size),
        starts=starts,
        starts_agree=sum(bool(np.allclose(one[3:], solutions[0][3:], atol=1e-4)) for one in solutions),
        deviation=pooled_deviation(residuals, form.num_params),
        scores={},
        warnings=(),
        options=FitOptions(bootstraps=0),
        theta=tuple(theta.tolist()),
        log_x0=log_x0,
        draws=np.empty((0, form.num_params)),
    )


def _solve_equations(u: Array, errors: Array) -> tuple[list[Array], int]:
    """Every solution, (level, b, alpha, c, e0) with exponents of 0 or more, and how many starts there were."""
    from scipy.optimize import least_squares

    regress = np.linalg.pinv(np.stack([np.ones_like(u), -u, np.log(1 - errors)], axis=1))

    def linear(c: float) -> Array:
        return np.asarray(regress @ np.log(errors - c))

    def slopes(point: Array) -> Array:
        c, e0 = point
        level, b, alpha = linear(c)
        residual = np.log(errors - c) - alpha * np.log(e0 - errors) - (level - b * u)
        return np.array([np.mean(residual / (errors - c)), np.mean(residual / (e0 - errors))])

    low, high = errors.min(), errors.max()
    runs = [
        least_squares(
            slopes,
            [floor * low, high + rest * (1 - high)],
            bounds=([0, high + _EDGE], [low - _EDGE, 2]),
            x_scale=[0.1, 0.001],
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
        )
        for floor in (0.95, 0.9, 0.8, 0.6)
        for rest in (0.75, 0.95)
    ]
    # A run that ends in a minimum above 0 has solved nothing: both slopes must vanish.
    points = [run.x for run in runs if run.cost < 1e-12 and min(linear(run.x[0])[1:]) >= 0]
    return [np.array([*linear(c), c, e0]) for c, e0 in points], len(runs)
