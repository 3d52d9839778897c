"""What a curve says of sizes that were not measured, and which size an error needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_dist.study.fits import CurveFit


@dataclass(frozen=True)
class Forecast:
    """Error at a size. `low` and `high` span all plausible forms where the size lies outside the data (`inside` false).

    `per_form` has error, low and high of each. `text` says it in one sentence.
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
    """The size at which a curve reaches an error; x is None where it never does: its `floor` lies above.

    `low` and `high` None: open there (more than half a tail of the bootstraps never reach it). `share` of the bootstraps reach it.
    """

    name: str
    target: float
    x: float | None
    low: float | None
    high: float | None
    share: float | None
    floor: float | None
    inside: bool
    per_form: Mapping[str, Mapping[str, float | None]]
    text: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**vars(self), "per_form": {form: dict(one) for form, one in self.per_form.items()}}


def forecast(fit: CurveFit, x: float) -> Forecast:
    """The error at a size, inside or outside the data."""
    raise NotImplementedError


def needed(fit: CurveFit, target: float) -> Needed:
    """The size needed for an error of `target`."""
    raise NotImplementedError
