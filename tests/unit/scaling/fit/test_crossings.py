"""Crossovers, forecasts, sizes needed, frontiers and iso-compute, against curves that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.scaling import (
    ComputePoint,
    CurveFit,
    FitOptions,
    crossover,
    fit_curve,
    forecast,
    frontier,
    iso_compute,
    needed,
)

QUICK = FitOptions(bootstraps=60)
NONE = FitOptions(bootstraps=0)
X = np.repeat(np.geomspace(1e4, 1e7, 7), 3)


def power(a: float, b: float, c: float, x: np.ndarray | float = X) -> np.ndarray:
    return np.asarray(a * (np.asarray(x) / 1e4) ** -b + c)


def noisy(y: np.ndarray, name: str, *, x: np.ndarray = X, form: str = "m2", noise: float = 0.01) -> CurveFit:
    rng = np.random.default_rng(len(name))
    return fit_curve(x, y * np.exp(rng.normal(0, noise, y.size)), form=form, name=name, options=QUICK)


def crossing(first: tuple[float, float, float], second: tuple[float, float, float]) -> float:
    x = np.geomspace(1e3, 1e9, 2_000_001)
    return float(x[np.flatnonzero(np.diff(np.sign(power(*first, x) - power(*second, x))))[-1]])


VIT, BIT = (0.7, 0.35, 0.10), (0.5, 0.25, 0.12)


# Crossovers


def test_the_steeper_curve_overtakes_where_it_does_and_either_order_says_the_same() -> None:
    fits = [fit_curve(X, power(*p), form="m2", name=n, options=NONE) for n, p in (("vit", VIT), ("bit", BIT))]
    found = crossover(*fits)
    assert found.x == pytest.approx(crossing(VIT, BIT), rel=1e-3)
    assert (found.winner, found.loser, found.inside, found.share) == ("vit", "bit", True, None)
    assert crossover(*fits[::-1]) == found


def test_a_crossover_among_the_data_has_an_interval_and_says_inside_data() -> None:
    found = crossover(noisy(power(*VIT), "vit"), noisy(power(*BIT), "bit-r"))
    truth = crossing(VIT, BIT)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= truth <= found.high
    assert found.high < 3 * found.low
    assert (found.inside, found.interval_inside, found.share, list(found.per_form)) == (True, True, 1.0, ["m2"])
    assert found.text.startswith("vit overtakes bit-r at ")
    assert "inside data; 100% of bootstraps cross" in found.text
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["range"] == [1e4, 1e8]


def test_a_crossover_beyond_the_data_is_called_extrapolated_and_spans_the_forms() -> None:
    slow, fast = (0.7, 0.2, 0.10), (0.5, 0.1, 0.12)
    below = X < 2e5
    fits = [noisy(power(*p)[below], n, x=X[below], noise=0.004) for n, p in (("vit", slow), ("bit-r", fast))]
    found = crossover(*fits, range=(1e4, 1e8))
    assert not found.inside
    assert "extrapolated" in found.text
    assert len(found.per_form) > 1
    own = found.per_form["m2"]
    assert found.low is None or own["low"] is None or found.low <= own["low"]
    assert found.high is None or (own["high"] is not None and found.high >= own["high"])
    assert found.low is None or found.low <= crossing(slow, fast)
    assert found.high is None or found.high >= crossing(slow, fast)


def test_a_crossover_inside_the_data_whose_interval_is_not_says_both() -> None:
    found = crossover(noisy(power(*VIT), "vit", noise=0.05), noisy(power(*BIT), "bit-r", noise=0.05))
    assert found.x is not None
    assert 1e4 < found.x < 1e7
    assert found.low is None or found.low < 1e4 or found.high is None or found.high > 1e7
    assert (found.inside, found.interval_inside) == (True, False)
    assert "(inside data, interval reaches beyond; " in found.text
    assert "extrapolated" not in found.text


def test_curves_that_do_not_cross_in_the_range_give_no_number() -> None:
    found = crossover(noisy(power(*VIT), "vit"), noisy(power(*VIT) * 1.5, "bit-r"))
    assert (found.x, found.low, found.high, found.share) == (None, None, None, 0.0)
    assert found.text.startswith(
        "no crossing in range 10k to 100M: vit is better than bit-r all over it (error, lower is better)"
    )
    assert "0% of bootstraps cross" in found.text


def test_intervals_of_crossovers_hold_the_truth_as_often_as_they_should() -> None:
    held, truth = 0, crossing(VIT, BIT)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        options = FitOptions(bootstraps=60, seed=seed)
        fits = [
            fit_curve(X, power(*p) * np.exp(rng.normal(0, 0.01, X.size)), form="m2", options=options)
            for p in (VIT, BIT)
        ]
        found = crossover(*fits)
        held += (found.low or 0) <= truth <= (found.high or np.inf)
    assert held >= 17


def test_an_interval_that_reaches_beyond_the_range_is_open_there() -> None:
    found = crossover(
        noisy(power(*VIT), "vit", noise=0.05), noisy(power(*BIT), "bit-r", noise=0.05), range=(1e4, 1.6e5)
    )
    assert found.share is not None
    assert 0.2 < found.share < 0.97
    assert found.high is None
    assert "beyond]" in found.text or found.x is None


def test_a_family_with_one_point_has_no_crossover() -> None:
    found = crossover(fit_curve([1e4], [0.5], name="hybrid"), noisy(power(*BIT), "bit-r"))
    assert found.text == "no crossover of hybrid and bit-r: no curve for 'hybrid'"
    assert (found.x, found.inside) == (None, False)


# Forecasts


def test_forecasts_inside_the_data_are_of_one_form_and_outside_of_all_plausible_ones() -> None:
    fit = noisy(power(*VIT), "vit")
    inside, outside = forecast(fit, 1e6), forecast(fit, 1e9)
    assert (inside.inside, list(inside.per_form)) == (True, ["m2"])
    assert outside.inside is False
    assert len(outside.per_form) > 1
    for one in (inside, outside):
        assert one.low is not None
        assert one.high is not None
        assert one.low <= power(*VIT, one.x) <= one.high
        assert one.low <= min(f["low"] or 0 for f in one.per_form.values())
    assert inside.accuracy == pytest.approx(1 - float(power(*VIT, 1e6)), abs=0.01)
    assert "(extrapolated to 100 times the data's end; over forms m2, " in outside.text
    json.dumps(outside.to_json(), allow_nan=False)


@pytest.mark.parametrize("form", ["m1", "m2", "zhai", "m4"])
def test_the_size_needed_is_the_inverse_of_the_forecast(form: str) -> None:
    fit = (
        noisy(power(*VIT), "vit", form=form, x=X)
        if form != "m4"
        else fit_curve(X, power(*VIT), form=form, options=QUICK)
    )
    target = float(fit.predict(3e6))
    found = needed(fit, target)
    assert found.x == pytest.approx(3e6, rel=1e-6)
    assert found.low is not None
    assert found.high is not None
    # Without noise, as for m4, the interval is as narrow as rounding.
    assert found.low <= 3e6 * (1 + 1e-9)
    assert found.high >= 3e6 * (1 - 1e-9)
    assert (found.inside, found.share) == (True, 1.0)


def test_a_size_needed_inside_the_data_whose_interval_is_not_says_both() -> None:
    fit = noisy(power(*VIT), "vit", noise=0.05)
    found = needed(fit, float(fit.predict(8e6)))
    assert (found.inside, found.interval_inside) == (True, False)
    assert "needs 8M [" in found.text
    assert "(inside data, interval reaches beyond; over forms m2, " in found.text
    assert "(inside data; 100% of bootstraps reach it)" in needed(fit, float(fit.predict(1e5))).text


def test_a_target_below_the_floor_is_not_reached_and_the_floor_is_named() -> None:
    found = needed(noisy(power(*VIT), "vit"), 0.05)
    assert (found.x, found.high, found.inside) == (None, None, False)
    assert found.floor == pytest.approx(0.1, abs=0.02)
    assert found.text.startswith(f"vit: error 0.05 is not reached: floor {found.floor:.4g}; 0% of bootstraps reach it")


def test_a_target_beyond_all_reason_or_below_the_data_gets_words() -> None:
    flat = fit_curve(X, power(0.5, 0.02, 0.0), form="m1", options=QUICK)
    assert "is not reached within a million times the largest size" in needed(flat, 0.05).text
    shifted = fit_curve(X, 0.5 * ((X + 1e6) / 1e6) ** -0.5 + 0.1, form="zhai", options=QUICK)
    assert "is reached at every size" in needed(shifted, 0.9).text


def test_without_a_curve_there_is_nothing_to_forecast() -> None:
    fit = fit_curve([1e4], [0.5], name="vit")
    assert forecast(fit, 1e6).text == "vit: no curve to forecast from"
    assert needed(fit, 0.1).x is None


def test_sizes_and_targets_are_above_zero() -> None:
    fit = fit_curve(X, power(*VIT), options=NONE)
    with pytest.raises(ConfigError, match="size 0"):
        forecast(fit, 0)
    with pytest.raises(ConfigError, match="target error of -1"):
        needed(fit, -1)


# Compute


def test_the_frontier_is_what_no_cheaper_run_beats() -> None:
    runs = [(1.0, 0.5), (1.0, 0.6), (2.0, 0.55), (3.0, 0.4), (4.0, 0.4), (9.0, 0.3), (5.0, np.nan)]
    found = frontier((ComputePoint(c, e, str(i)) for i, (c, e) in enumerate(runs)), options=NONE)
    assert [p.label for p in found.points] == ["0", "3", "5"]
    assert found.fit is not None
    assert found.fit.form == "m1"
    assert frontier([ComputePoint(1, 0.5)]).fit is None
    json.dumps(found.to_json(), allow_nan=False)


def iso(noise: float = 0.0, exponent: float = 0.5) -> list[ComputePoint]:
    rng = np.random.default_rng(0)
    points = []
    for compute in (1.0, 4.0, 16.0, 64.0):
        best = 1e6 * compute**exponent
        for size in best * np.array([0.25, 0.5, 0.9, 2.0, 4.0]):
            error = np.exp(-1 - 0.1 * np.log(compute) + 0.05 * np.log(size / best) ** 2 + rng.normal(0, noise or 1e-12))
            points.append(ComputePoint(compute * rng.uniform(1, 1.05), float(error), size=float(size)))
    return points


def test_minima_at_each_budget_and_their_power_law_are_found_again() -> None:
    exact = iso_compute(iso())
    # computes within a budget differ by up to 5%, so the law is that of their means
    assert exact.exponent == pytest.approx(0.5, abs=0.01)
    assert [b.best for b in exact.budgets] == pytest.approx([1e6, 2e6, 4e6, 8e6], rel=1e-3)
    assert exact.budgets[0].best_error == pytest.approx(np.exp(-1), rel=1e-3)
    assert exact.budgets[0].predict(1e6) == pytest.approx(np.exp(-1), rel=1e-3)
    assert exact.factor == pytest.approx(1e6, rel=0.03)
    found = iso_compute(iso(noise=0.01))
    assert found.exponent_interval is not None
    low, high = found.exponent_interval
    assert low < 0.5 < high
    assert 0.02 < high - low < 0.4
    json.dumps(found.to_json(), allow_nan=False)


def test_budgets_without_a_minimum_are_left_out_and_say_why() -> None:
    falling = [ComputePoint(100, 0.5 / size + 0.01 * size**-2, size=size) for size in (1.0, 2.0, 4.0)]
    bent = [ComputePoint(1000, e, size=s) for s, e in ((1.0, 0.1), (2.0, 0.2), (4.0, 0.1))]
    two = [ComputePoint(1e4, 0.1, size=s) for s in (1.0, 2.0)]
    found = iso_compute([*falling, *bent, *two, *iso()])
    assert found.exponent == pytest.approx(0.5, abs=0.01)
    problems = " ".join(found.warnings)
    assert "larger models are needed" in problems
    assert "bends downwards" in problems
    assert "2 sizes; a minimum needs three" in problems
    alone = iso_compute(two)
    assert (alone.exponent, alone.exponent_interval) == (None, None)
    assert "no power law" in alone.warnings[-1]


def test_iso_compute_needs_sizes() -> None:
    with pytest.raises(DataError, match="'r1' of compute 3 has no size"):
        iso_compute([ComputePoint(3, 0.5, "r1")])
