"""What a FLOP buys: the running minimum of error over compute, and the best size at each compute budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vit_dist.study.fits import CurveFit, Interval


@dataclass(frozen=True)
class ComputePoint:
    """One run: its compute (any unit), its error, and for iso-compute its size (parameters) and budget."""

    compute: float
    error: float
    label: str = ""
    size: float | None = None


@dataclass(frozen=True)
class Frontier:
    """The points that no cheaper point beats, by rising compute; `fit` is a curve through them where there are enough."""

    points: tuple[ComputePoint, ...]
    fit: CurveFit | None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"points": [vars(p).copy() for p in self.points], "fit": self.fit and self.fit.to_json()}


@dataclass(frozen=True)
class Budget:
    """One compute budget: log error = quadratic in log size. `best` is its minimum; None where it has none inside the sizes.

    `coefficients` are those of (log size - centre)^2, ^1, ^0.
    """

    compute: float
    sizes: tuple[float, ...]
    errors: tuple[float, ...]
    coefficients: tuple[float, float, float] | None
    centre: float
    best: float | None
    best_error: float | None
    problem: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return vars(self).copy()


@dataclass(frozen=True)
class IsoCompute:
    """Budgets, and the power law best size = factor * compute^exponent through their minima (None with fewer than two)."""

    budgets: tuple[Budget, ...]
    exponent: float | None
    exponent_interval: Interval | None
    factor: float | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "budgets": [b.to_json() for b in self.budgets]}


def frontier(points: Iterable[ComputePoint], *, form: str = "auto") -> Frontier:
    """The running minimum of error over compute."""
    raise NotImplementedError


def iso_compute(points: Iterable[ComputePoint], *, tolerance: float = 0.1, confidence: float = 0.95) -> IsoCompute:
    """Quadratic in log size for each budget (computes within `tolerance` are one), and a power law through the minima."""
    raise NotImplementedError
