"""How often a nominal 95% interval of a fit holds the truth: M2 curves with normal log noise, known, fitted many times.

python -m benchmarks.fit_coverage [--trials 300] [--delta 1e-3] [--form m2]

Truths are drawn: exponent 0.2 to 0.7, floor 0.05 to 0.3, error 0.6 at the smallest size, sizes over 2.4 decades,
noise 2% (standard deviation of log error). A row a design; the last is 60 points along one training curve whose
neighbours err alike (AR 0.7). Columns: exponent, floor, the curve at the largest size, the curve at three times it,
and how often the fit warns that the exponent is not identified.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from vit_dist.scaling import FitOptions, fit_curve

DESIGNS = ((4, 1), (4, 3), (4, 5), (5, 1), (5, 3), (8, 1), (8, 3), (60, 1))


@dataclass(frozen=True)
class Coverage:
    """Fractions of trials in which the interval held the truth, and how many warned that the exponent is unknown."""

    exponent: float
    floor: float
    largest: float
    beyond: float
    unknown: float


def _correlated_noise(rng: np.random.Generator, count: int, correlation: float = 0.7) -> np.ndarray:
    """Normal noise of deviation 1, an AR(1) process."""
    fresh = rng.standard_normal(count)
    noise = fresh.copy()
    for i in range(1, count):
        noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * fresh[i]
    return noise


def coverage(
    num_sizes: int, num_seeds: int, *, trials: int, form: str = "m2", noise: float = 0.02, seed: int = 0, delta: float
) -> Coverage:
    """Simulate one design; the truth is drawn anew for each trial."""
    rng = np.random.default_rng([seed, num_sizes, num_seeds])
    sizes = np.geomspace(200, 50_000, num_sizes)
    x = np.repeat(sizes, num_seeds)
    outcomes = np.zeros((trials, 5), dtype=float)
    for trial in range(trials):
        b, c = rng.uniform(0.2, 0.7), rng.uniform(0.05, 0.3)
        truth = lambda at, b=b, c=c: (0.6 - c) * (np.asarray(at) / sizes[0]) ** -b + c  # noqa: E731
        y = truth(x) * np.exp(
            noise * (_correlated_noise(rng, x.size) if num_sizes >= 12 else rng.standard_normal(x.size))
        )
        fit = fit_curve(x, y, form=form, options=FitOptions(seed=trial, delta=delta))
        places = np.array([sizes[-1], 3 * sizes[-1]])
        low, high = fit.band(places)
        inside = (low <= truth(places)) & (truth(places) <= high)
        floor = fit.intervals.get("c") or (0.0, 0.0)
        slope = fit.intervals["b"] or (np.nan, np.nan)
        outcomes[trial] = (
            slope[0] <= b <= slope[1],
            floor[0] <= c <= floor[1],
            inside[0],
            inside[1],
            any("exponent is not identified" in warning for warning in fit.warnings),
        )
    return Coverage(*outcomes.mean(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--delta", type=float, default=FitOptions().delta)
    parser.add_argument("--form", default="m2")
    parser.add_argument("--noise", type=float, default=0.02)
    args = parser.parse_args()
    print(f"form {args.form}, delta {args.delta:g}, noise {args.noise:g}, {args.trials} trials, nominal 0.95")
    print(f"{'design':>18} {'exponent':>9} {'floor':>7} {'largest':>8} {'3x':>6} {'unknown':>8} {'ms/fit':>7}")
    for num_sizes, num_seeds in DESIGNS:
        began = time.perf_counter()
        got = coverage(num_sizes, num_seeds, trials=args.trials, form=args.form, noise=args.noise, delta=args.delta)
        spent = 1000 * (time.perf_counter() - began) / args.trials
        print(
            f"{num_sizes:>2} sizes x {num_seeds} seeds {got.exponent:>9.2f} {got.floor:>7.2f} {got.largest:>8.2f} "
            f"{got.beyond:>6.2f} {got.unknown:>8.2f} {spent:>7.0f}"
        )


if __name__ == "__main__":
    main()
