"""A fitted curve of error against size: what it predicts, how sure that is, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vit_dist.scaling.fit.bootstrap import BLOCK
from vit_dist.scaling.fit.forms import FORMS, Array

Interval = tuple[float, float]


@dataclass(frozen=True)
class FitOptions:
    """How to fit; the same options and the same points give the same fit.

    `starts` seeded starts a form; `bootstraps` resampled fits (0: no intervals); `confidence` of the intervals; `delta`
    where Huber's loss turns linear, in log error; `seed` of starts and bootstraps.
    """

    starts: int = 12
    bootstraps: int = 200
    confidence: float = 0.95
    delta: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class CurveFit:
    """A curve of error against size.

    `form` is m1, m2, zhai, m4, or "none" where nothing could be fitted (`warnings` say why, predictions are NaN).
    `params` are those of `formula`, in the unit of x; `intervals` those of the bootstrap at `options.confidence`, None
    without one. `points` is "runs" (each point a run of its own) or "curve" (points along training curves, bootstrapped
    in blocks). `scores` is the leave-largest-out log-RMSE of each form that was tried. `deviation` is the pooled
    deviation of the log error from the curve. `starts_agree` of `starts` starts ended at the same loss. `theta`,
    `log_x0` and `draws` [B, p] are the curve and its bootstraps as `forms.py` has them.
    """

    name: str
    form: str
    params: Mapping[str, float]
    intervals: Mapping[str, Interval | None]
    estimator: str
    points: str
    x: tuple[float, ...]
    error: tuple[float, ...]
    runs: tuple[str, ...]
    num_sizes: int
    starts: int
    starts_agree: int
    deviation: float | None
    scores: Mapping[str, float]
    warnings: tuple[str, ...]
    options: FitOptions
    theta: tuple[float, ...]
    log_x0: float
    draws: Array = field(compare=False, repr=False)
    block: int = BLOCK

    @property
    def formula(self) -> str:
        """The form as text."""
        return FORMS[self.form].formula if self.form in FORMS else ""

    @property
    def fitted(self) -> bool:
        """True where there is a curve."""
        return self.form in FORMS

    @property
    def num_points(self) -> int:
        """How many points were fitted."""
        return len(self.x)

    @property
    def score(self) -> float | None:
        """Leave-largest-out log-RMSE of the form chosen."""
        return self.scores.get(self.form)

    @property
    def floor(self) -> float:
        """The error that no size goes below (0 for m1, NaN without a curve)."""
        return float(FORMS[self.form].floor(np.array(self.theta))) if self.fitted else math.nan

    @property
    def x_range(self) -> Interval:
        """The smallest and the largest size fitted."""
        return min(self.x), max(self.x)

    @property
    def residuals(self) -> Array:
        """[n]: log(error) - log(curve) of each point."""
        return np.asarray(np.log(self.error) - np.log(self.predict(self.x)))

    def predict(self, x: ArrayLike) -> Array:
        """Sizes [...] -> the curve's errors [...]."""
        sizes = np.asarray(x, dtype=float)
        if not self.fitted:
            return np.full(sizes.shape, np.nan)
        u = np.log(sizes.ravel()) - self.log_x0
        return FORMS[self.form].values(np.array(self.theta), u).reshape(sizes.shape)

    def predict_draws(self, x: ArrayLike) -> Array:
        """Sizes [n] -> the errors of each bootstrap [B, n]."""
        sizes = np.asarray(x, dtype=float).ravel()
        if not self.fitted or not len(self.draws):
            return np.empty((0, sizes.size))
        return FORMS[self.form].values(self.draws, np.broadcast_to(np.log(sizes) - self.log_x0, (1, sizes.size)))

    def band(self, x: ArrayLike) -> tuple[Array, Array]:
        """Sizes [...] -> low and high [...]: the interval of the curve (not of a new run); NaN without bootstraps."""
        sizes = np.asarray(x, dtype=float)
        drawn = self.predict_draws(sizes)
        if not len(drawn):
            return np.full(sizes.shape, np.nan), np.full(sizes.shape, np.nan)
        low, high = np.quantile(drawn, self.tails, axis=0)
        curve = self.predict(sizes).ravel()
        return np.minimum(low, curve).reshape(sizes.shape), np.maximum(high, curve).reshape(sizes.shape)

    @property
    def tails(self) -> Interval:
        """The two quantiles that hold the interval."""
        return (1 - self.options.confidence) / 2, (1 + self.options.confidence) / 2

    def solve_for(self, error: float) -> tuple[float, Array]:
        """The size at which the curve has an error, and that of each bootstrap, [B]; inf: never, 0: at every size."""
        form = FORMS[self.form]
        with np.errstate(over="ignore"):
            here = np.exp(form.inverse(np.array(self.theta), error) + self.log_x0)
            drawn = np.exp(form.inverse(self.draws, error) + self.log_x0) if len(self.draws) else np.empty(0)
        return float(here), drawn

    def inside(self, x: float) -> bool:
        """True where a size lies within the data."""
        low, high = self.x_range
        return low <= x <= high

    def to_json(self, *, draws: bool = True) -> dict[str, Any]:
        """A plain dict; None for what is not finite. Without `draws` it is small, and has no bands."""
        return {
            "name": self.name,
            "form": self.form,
            "formula": self.formula,
            "params": {k: plain(v) for k, v in self.params.items()},
            "intervals": {k: v and [plain(v[0]), plain(v[1])] for k, v in self.intervals.items()},
            "estimator": self.estimator,
            "points": self.points,
            "block": self.block,
            "num_points": self.num_points,
            "num_sizes": self.num_sizes,
            "x": list(self.x),
            "error": list(self.error),
            "runs": list(self.runs),
            "residuals": [plain(v) for v in self.residuals] if self.x else [],
            "deviation": plain(self.deviation),
            "scores": {k: plain(v) for k, v in self.scores.items()},
            "starts": self.starts,
            "starts_agree": self.starts_agree,
            "warnings": list(self.warnings),
            "options": vars(self.options).copy(),
            "theta": list(self.theta),
            "log_x0": self.log_x0,
            "draws": self.draws.tolist() if draws else [],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CurveFit:
        """The fit that `to_json` was made of."""
        return cls(
            name=data["name"],
            form=data["form"],
            params={k: _number(v) for k, v in data["params"].items()},
            intervals={k: v and (_number(v[0]), _number(v[1])) for k, v in data["intervals"].items()},
            estimator=data["estimator"],
            points=data["points"],
            block=data["block"],
            x=tuple(data["x"]),
            error=tuple(data["error"]),
            runs=tuple(data["runs"]),
            num_sizes=data["num_sizes"],
            starts=data["starts"],
            starts_agree=data["starts_agree"],
            deviation=data["deviation"],
            scores={k: _number(v) for k, v in data["scores"].items()},
            warnings=tuple(data["warnings"]),
            options=FitOptions(**data["options"]),
            theta=tuple(data["theta"]),
            log_x0=data["log_x0"],
            draws=np.array(data["draws"], dtype=float).reshape(len(data["draws"]), len(data["theta"])),
        )


def plain(value: float | None) -> float | None:
    """A number for JSON: None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
