"""Bounded Huber regression of log error for many curves at once: Levenberg-Marquardt in numpy, one row a problem."""

from __future__ import annotations

import numpy as np

from vit_dist.study.forms import Array, Form


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
    rows, p = theta.shape
    u = np.broadcast_to(u, (rows, u.shape[-1]))
    log_y = np.broadcast_to(log_y, u.shape)
    low, high = np.broadcast_to(low, theta.shape), np.broadcast_to(high, theta.shape)
    best = np.clip(theta, low, high)
    cost = np.full(rows, np.inf)
    result, result_cost = best.copy(), cost
    alive = np.arange(rows)
    damping = np.full(rows, 1e-2)
    quiet = np.zeros(rows, dtype=int)
    y, slope = form.gradient(best, u)
    residual, jacobian = _log(y, slope, log_y)
    cost = huber(residual, delta)
    result_cost = cost.copy()
    for _ in range(steps):
        step = _step(residual, jacobian, best, low[alive], high[alive], damping, delta)
        trial = np.clip(best + step, low[alive], high[alive])
        y, slope = form.gradient(trial, u[alive])
        new_residual, new_jacobian = _log(y, slope, log_y[alive])
        new_cost = huber(new_residual, delta)
        better = new_cost < cost
        gain = np.where(better, cost - new_cost, 0.0)
        best = np.where(better[:, None], trial, best)
        residual = np.where(better[:, None], new_residual, residual)
        jacobian = np.where(better[:, None, None], new_jacobian, jacobian)
        quiet = np.where(gain > 1e-7 * cost, 0, quiet + 1)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping * 0.3, damping * 4.0), 1e-9, 1e9)
        result[alive], result_cost[alive] = best, cost
        go = (quiet < 8) & (cost > 1e-24)
        if not go.all():
            alive, best, residual, jacobian = alive[go], best[go], residual[go], jacobian[go]
            cost, damping, quiet = cost[go], damping[go], quiet[go]
            if not alive.size:
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
    held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    free = ~held
    normal = normal * (free[:, :, None] & free[:, None, :])
    p = theta.shape[1]
    diagonal = np.einsum("mpp->mp", normal)
    scale = diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    normal = normal + np.eye(p) * np.where(free, damping[:, None] * scale + 1e-300, 1.0)[:, :, None]
    return -np.linalg.solve(normal, np.where(free, gradient, 0.0)[..., None])[..., 0]
