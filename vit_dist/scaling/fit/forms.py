"""The curves that are fitted to error against size: values, derivatives, inverses, bounds; many curves at once.

Every form is a function of u = log(x) - log_x0, so that no parameter depends on the unit of x, and is fitted as a
vector `theta`. `theta` may have leading axes, [..., p], and then u has them too or is broadcast: [..., n].

    m1    a x^-b
    m2    a x^-b + c
    zhai  a (x + d)^-b + c                       Zhai et al., Scaling Vision Transformers, 2022, equation 1
    m4    (y - c) / (e0 - y)^alpha = a x^-b      Alabdulmohsin et al., Revisiting Neural Scaling Laws, 2022, equation 4
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

MAX_EXPONENT = 10.0
_MAX_ALPHA = 10.0
_TINY = 1e-300


@dataclass(frozen=True)
class Form:
    """One form.

    `gradient(theta, u)` is the predicted error, [..., n], and its derivatives, [..., n, p]. `inverse(theta, y)` is u
    where the curve has the value y, [...]: inf where it never falls to it, -inf where it is below it everywhere.
    `bounds(u, y)` are the lower and upper bounds of theta for these data. `params(theta, log_x0)` names the parameters
    in the unit of x, the way the formula has them; `min_sizes` is how many sizes the form needs to be chosen.
    """

    name: str
    formula: str
    theta_names: tuple[str, ...]
    min_sizes: int
    gradient: Callable[[Array, Array], tuple[Array, Array]]
    inverse: Callable[[Array, float], Array]
    bounds: Callable[[Array, Array], tuple[Array, Array]]
    params: Callable[[Array, float], dict[str, Array]]

    @property
    def num_params(self) -> int:
        """How many numbers are fitted."""
        return len(self.theta_names)

    def values(self, theta: Array, u: Array) -> Array:
        """[..., p], [..., n] -> [..., n]: the predicted error."""
        return self.gradient(theta, u)[0]

    def floor(self, theta: Array) -> Array:
        """[..., p] -> [...]: the error that no size goes below."""
        if "c" not in self.theta_names:
            return np.zeros(theta.shape[:-1])
        return np.asarray(theta[..., self.theta_names.index("c")])


def _columns(theta: Array) -> list[Array]:
    """[..., p] -> p arrays [..., 1]."""
    return [theta[..., i : i + 1] for i in range(theta.shape[-1])]


def _m1(theta: Array, u: Array) -> tuple[Array, Array]:
    log_a, b = _columns(theta)
    y = np.exp(log_a - b * u)
    return y, np.stack(np.broadcast_arrays(y, -u * y), axis=-1)


def _m2(theta: Array, u: Array) -> tuple[Array, Array]:
    log_a, b, c = _columns(theta)
    power = np.exp(log_a - b * u)
    return power + c, np.stack(np.broadcast_arrays(power, -u * power, 1.0), axis=-1)


def _zhai(theta: Array, u: Array) -> tuple[Array, Array]:
    # shift = log(1 + d / x0); log_a is the log of the power term at x0, which leaves little for d and a to trade
    log_a, b, c, shift = _columns(theta)
    d = np.expm1(shift)
    moved = np.exp(u) + d
    distance = np.log(moved) - shift
    power = np.exp(log_a - b * distance)
    by_shift = -b * power * ((1 + d) / moved - 1)
    return power + c, np.stack(np.broadcast_arrays(power, -distance * power, 1.0, by_shift), axis=-1)


def _log_sigmoid(s: Array) -> Array:
    return np.minimum(s, 0.0) - np.log1p(np.exp(-np.abs(s)))


def _m4_place(level: Array, alpha: Array) -> tuple[Array, Array, Array, Array]:
    """Solve log sigmoid(s) - alpha log sigmoid(-s) = level; gives s's sigmoid, its complement, log of it, and slope.

    The left side rises with s and bends one way only, so Newton's steps from its asymptotes converge for alpha > 0.
    """
    s = np.where(level < 0, level, level / np.maximum(alpha, 0.05))
    for _ in range(6):
        near, far = _log_sigmoid(s), _log_sigmoid(-s)
        slope = np.exp(far) + alpha * np.exp(near)
        s = s - np.clip((near - alpha * far - level) / np.maximum(slope, 1e-12), -20, 20)
    near, far = _log_sigmoid(s), _log_sigmoid(-s)
    up, down = np.exp(near), np.exp(far)
    return up, down, far, np.maximum(down + alpha * up, 1e-12)


def _m4(theta: Array, u: Array) -> tuple[Array, Array]:
    # y = c + (e0 - c) sigmoid(s): inside (c, e0) for every s
    level, b, c, alpha, e0 = _columns(theta)
    up, down, log_down, slope = _m4_place(level - b * u, alpha)
    y = c + (e0 - c) * up
    by_level = (e0 - c) * up * down / slope
    parts = np.broadcast_arrays(by_level, -u * by_level, down, by_level * log_down, up)
    return y, np.stack(parts, axis=-1)


def _distance(log_a: Array, b: Array, excess: Array) -> Array:
    """Where exp(log_a - b u) is `excess`; inf where it never is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = log_a - np.log(excess)
        u = np.where(b > 0, gap / b, np.where(gap > 0, np.inf, -np.inf))
    return np.where(excess > 0, u, np.inf)


def _power_inverse(theta: Array, y: float) -> Array:
    floor = theta[..., 2] if theta.shape[-1] > 2 else 0.0
    return _distance(theta[..., 0], theta[..., 1], np.asarray(y - floor))


def _zhai_inverse(theta: Array, y: float) -> Array:
    log_a, b, c, shift = np.moveaxis(theta, -1, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        moved = np.exp(_distance(log_a, b, y - c) + shift) - np.expm1(shift)
        return np.where(moved > 0, np.log(np.maximum(moved, _TINY)), -np.inf)


def _m4_inverse(theta: Array, y: float) -> Array:
    level, b, c, alpha, e0 = np.moveaxis(theta, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((y - c) / (e0 - c), 0, 1)
        gap = level - (np.log(share) - alpha * np.log1p(-share))
        u = np.where(b > 0, gap / b, np.where(gap > 0, np.inf, -np.inf))
    return np.where(share <= 0, np.inf, np.where(share >= 1, -np.inf, u))


def _amplitude(y: Array) -> tuple[float, float]:
    """Bounds of the log of the power term at the centre: far below and above anything that was measured."""
    return float(np.log(y.min())) - 20.0, float(np.log(y.max())) + 5.0


def _m1_bounds(_: Array, y: Array) -> tuple[Array, Array]:
    low, high = _amplitude(y)
    return np.array([low, 0.0]), np.array([high, MAX_EXPONENT])


def _m2_bounds(_: Array, y: Array) -> tuple[Array, Array]:
    low, high = _amplitude(y)
    return np.array([low, 0.0, 0.0]), np.array([high, MAX_EXPONENT, y.min()])


def _zhai_bounds(u: Array, y: Array) -> tuple[Array, Array]:
    low, high = _amplitude(y)
    shift = float(np.log1p(np.exp(u.max())))
    return np.array([low, 0.0, 0.0, 0.0]), np.array([high, MAX_EXPONENT, y.min(), shift])


def _m4_bounds(_: Array, y: Array) -> tuple[Array, Array]:
    top = float(y.max())
    # an error rate cannot pass 1; a loss has no such limit
    high = 1.0 if top < 1 else 4 * top
    return np.array([-30.0, 0.0, 0.0, 0.0, top]), np.array(
        [30.0, MAX_EXPONENT, y.min(), _MAX_ALPHA, max(high, top * 1.000001)]
    )


def _m1_params(theta: Array, log_x0: float) -> dict[str, Array]:
    log_a, b = theta[..., 0], theta[..., 1]
    return {"a": np.exp(log_a + b * log_x0), "b": b}


def _m2_params(theta: Array, log_x0: float) -> dict[str, Array]:
    return {**_m1_params(theta, log_x0), "c": theta[..., 2]}


def _zhai_params(theta: Array, log_x0: float) -> dict[str, Array]:
    log_a, b, c, shift = np.moveaxis(theta, -1, 0)
    return {"a": np.exp(log_a + b * (log_x0 + shift)), "b": b, "c": c, "d": np.expm1(shift) * np.exp(log_x0)}


def _m4_params(theta: Array, log_x0: float) -> dict[str, Array]:
    level, b, c, alpha, e0 = np.moveaxis(theta, -1, 0)
    log_a = level + b * log_x0 + (1 - alpha) * np.log(np.maximum(e0 - c, _TINY))
    return {"a": np.exp(log_a), "b": b, "c": c, "alpha": alpha, "e0": e0}


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form("m1", "a x^-b", ("log_a", "b"), 3, _m1, _power_inverse, _m1_bounds, _m1_params),
        Form("m2", "a x^-b + c", ("log_a", "b", "c"), 4, _m2, _power_inverse, _m2_bounds, _m2_params),
        Form(
            "zhai",
            "a (x + d)^-b + c",
            ("log_a", "b", "c", "shift"),
            6,
            _zhai,
            _zhai_inverse,
            _zhai_bounds,
            _zhai_params,
        ),
        Form(
            "m4",
            "(y - c) / (e0 - y)^alpha = a x^-b",
            ("level", "b", "c", "alpha", "e0"),
            8,
            _m4,
            _m4_inverse,
            _m4_bounds,
            _m4_params,
        ),
    )
}
