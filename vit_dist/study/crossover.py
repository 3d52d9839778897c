"""Where one curve overtakes another, how sure that is, and whether data or extrapolation says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_dist.study.fits import CurveFit, Interval


@dataclass(frozen=True)
class Crossover:
    """From `x` on `winner` has the lower error than `loser`.

    Without a crossing in `range`: x is None, `winner` is lower all over it (or empty where the curves are equal). `low` and `high`
    are the interval; None means it is open there: more than half a tail of the bootstraps cross beyond that end of the range.
    `share` of the bootstraps cross in the range. `inside`: x and its interval lie where both curves have data.
    `per_form` has x, low, high and share of each form; when extrapolating, low and high span all of them.
    """

    winner: str
    loser: str
    x: float | None
    low: float | None
    high: float | None
    share: float | None
    inside: bool
    range: Interval
    per_form: Mapping[str, Mapping[str, float | None]]
    text: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            **vars(self),
            "range": list(self.range),
            "per_form": {form: dict(one) for form, one in self.per_form.items()},
        }


def crossover(a: CurveFit, b: CurveFit, range: Interval | None = None) -> Crossover:
    """Where two curves cross.

    Args:
        a: one curve.
        b: the other, on the same x.
        range: sizes to look in; by default from the smallest size both have to ten times the largest either has.
    """
    raise NotImplementedError
