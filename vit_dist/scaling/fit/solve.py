"""Bounded Huber regression of log error: many starts and bootstraps at once in numpy, the final fit by scipy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vit_dist.scaling.fit.forms import Array, Form


@dataclass(frozen=True)
class Solution:
    """The best of several starts: theta [p], Huber's loss, and how many starts ended at the same loss."""

    theta: Array
    loss: float
    agree: int


def fit_form(form: Form, u: Array, log_y: Array, *, starts: int, delta: float, seed: int) -> Solution:
    """Fit one form to points.

    Seeded starts are followed together; scipy's least_squares refines the best of them.

    Args:
        form: the curve.
        u: centred log sizes, [n].
        log_y: log errors, [n].
        starts: how many.
        delta: where Huber's loss turns linear.
        seed: of the starts.
    """
    from scipy.optimize import least_squares

    low, high = form.bounds(u, np.exp(log_y))
    begin = _starts(form, log_y, low, high, starts, seed)
    thetas, losses = solve_many(form, begin, u, log_y, low, high, delta=delta)
    best = int(losses.argmin())
    theta, loss = thetas[best], float(losses[best])
    if form.num_params < log_y.size:
        inner = np.clip(theta, low + 1e-10 * (high - low), high - 1e-10 * (high - low))
        polished = least_squares(
            lambda t: np.log(np.maximum(form.values(t, u), 1e-300)) - log_y,
            inner,
            jac=lambda t: _log(*form.gradient(t, u), log_y)[1],
            bounds=(low, high),
            loss="huber",
            f_scale=delta,
            x_scale="jac",
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
            max_nfev=50,
        )
        if polished.cost < loss:
            theta, loss = polished.x, float(polished.cost)
    agree = int((losses <= loss * 1.001 + 1e-14).sum())
    return Solution(theta, loss, max(agree, 1))


def _starts(form: Form, log_y: Array, low: Array, high: Array, starts: int, seed: int) -> Array:
    """Seeded starts inside the bounds, [starts, p]: exponents 0.05 to 2, floors up to the lowest error."""
    rng = np.random.default_rng([seed, len(form.name), *form.name.encode()])
    theta = low + (high - low) * rng.random((starts, form.num_params))
    exponents = np.exp(rng.uniform(np.log(0.05), np.log(2.0), starts))
    theta[:, 1] = exponents
    floor = form.floor(theta)
    if form.name == "m4":
        theta[:, 3] = rng.uniform(0.05, 1.5, starts)
        theta[:, 4] = low[4] + (high[4] - low[4]) * rng.random(starts)
    # The power term meets the middle of the points.
    middle = np.exp(np.median(log_y))
    theta[:, 0] = np.log(np.maximum(middle - floor, 0.05 * middle))
    return np.asarray(np.clip(theta, low, high))


def huber(residual: Array, delta: float) -> Array:
    """[..., n] -> [...]: the sum of Huber's losses, quadratic within delta."""
    size = np.abs(residual)
    return np.asarray(np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum(axis=-1))


def solve_many(
    form: Form, theta: Array, u: Array, log_y: Array, low: Array, high: Array, *, delta: float, steps: int = 100
) -> tuple[Array, Array]:
    """Fit every row from its own start.

    Args:
        form: the curve.
        theta: starts, [m, p], inside the bounds.
        u: centred log sizes, [m, n] or [n].
        log_y: log of the errors, [m, n] or [n].
        low: lower bounds, [m, p] or [p].
        high: upper bounds, likewise.
        delta: where Huber's loss turns from quadratic to linear, in log error.
        steps: most steps a row.

    Returns:
        theta [m, p] and Huber's loss [m].
    """
    rows = theta.shape[0]
    u = np.broadcast_to(u, (rows, u.shape[-1]))
    log_y = np.broadcast_to(log_y, u.shape)
    low, high = np.broadcast_to(low, theta.shape), np.broadcast_to(high, theta.shape)
    best = np.clip(theta, low, high)
    result = best.copy()
    rows_left = np.arange(rows)
    damping = np.full(rows, 1e-2)
    # Steps without gain to speak of, in a row.
    quiet = np.zeros(rows, dtype=int)
    y, slope = form.gradient(best, u)
    residual, jacobian = _log(y, slope, log_y)
    cost = huber(residual, delta)
    result_cost = cost.copy()
    for _ in range(steps):
        step = _step(residual, jacobian, best, low[rows_left], high[rows_left], damping, delta)
        trial = np.clip(best + step, low[rows_left], high[rows_left])
        y, slope = form.gradient(trial, u[rows_left])
        new_residual, new_jacobian = _log(y, slope, log_y[rows_left])
        new_cost = huber(new_residual, delta)
        better = new_cost < cost
        gain = np.where(better, cost - new_cost, 0.0)
        best = np.where(better[:, None], trial, best)
        residual = np.where(better[:, None], new_residual, residual)
        jacobian = np.where(better[:, None, None], new_jacobian, jacobian)
        quiet = np.where(gain > 1e-7 * cost, 0, quiet + 1)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping * 0.3, damping * 4.0), 1e-9, 1e9)
        result[rows_left], result_cost[rows_left] = best, cost
        # Rows that have converged leave, so that the last few cost a few rows' work.
        active = (quiet < 8) & (cost > 1e-24)
        if not active.all():
            rows_left, best, residual, jacobian = rows_left[active], best[active], residual[active], jacobian[active]
            cost, damping, quiet = cost[active], damping[active], quiet[active]
            if not rows_left.size:
                break
    return result, result_cost


def _log(y: Array, slope: Array, log_y: Array) -> tuple[Array, Array]:
    y = np.maximum(y, 1e-300)
    return np.log(y) - log_y, slope / y[..., None]


def _step(
    residual: Array, jacobian: Array, theta: Array, low: Array, high: Array, damping: Array, delta: float
) -> Array:
    """One damped step of reweighted least squares; parameters that press against a bound stay."""
    weight = 1.0 / np.maximum(np.abs(residual) / delta, 1.0)
    weighted = jacobian * weight[..., None]
    gradient = np.einsum("mnp,mn->mp", weighted, residual)
    normal = np.matmul(np.swapaxes(weighted, 1, 2), jacobian)
    free = ~(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))
    normal = normal * (free[:, :, None] & free[:, None, :])
    p = theta.shape[1]
    diagonal = np.einsum("mpp->mp", normal)
    scale = diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    normal = normal + np.eye(p) * np.where(free, damping[:, None] * scale + 1e-300, 1.0)[:, :, None]
    return -np.linalg.solve(normal, np.where(free, gradient, 0.0)[..., None])[..., 0]
