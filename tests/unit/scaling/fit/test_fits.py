"""Fitting scaling curves: against exact curves, published numbers, scipy, and bad input."""

from __future__ import annotations

import csv
import functools
import json
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fit_coverage import coverage
from tests.places import CURVES
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.scaling import CurveFit, FitOptions, alternatives, fit_curve, refit
from vit_dist.scaling.fit.bootstrap import Points, bootstrap
from vit_dist.scaling.fit.crossings import crossover
from vit_dist.scaling.fit.forms import FORMS
from vit_dist.scaling.fit.published import published_m4
from vit_dist.scaling.fit.solve import fit_form, huber

QUICK = FitOptions(bootstraps=40)
NONE = FitOptions(bootstraps=0)
SIZES = np.geomspace(1e6, 1e9, 20)

# A curve of each form, as theta at the centre of SIZES.
TRUTHS = {
    "m1": (-1.0, 0.3),
    "m2": (-1.5, 0.4, 0.15),
    "zhai": (-1.5, 0.6, 0.15, 0.2),
    "m4": (-0.5, 0.5, 0.2, 0.4, 0.99),
}


@functools.cache
def points(model: str, training: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    with CURVES.open() as file:
        rows = [r for r in csv.DictReader(file) if r["Model"] == model and (r["Training"] == "1") == training]
    return tuple(float(r["Seen Examples"]) for r in rows), tuple(float(r["Loss"]) for r in rows)


def exact(form: str, x: np.ndarray = SIZES) -> np.ndarray:
    return FORMS[form].values(np.array(TRUTHS[form]), np.log(x) - np.log(SIZES).mean())


def away(fit: CurveFit, model: str) -> float:
    """RMSE of log error on the points that were not fitted."""
    x, y = points(model, training=False)
    return float(np.sqrt(np.mean((np.log(fit.predict(x)) - np.log(y)) ** 2)))


# Published numbers


@pytest.mark.parametrize(
    ("model", "published"), [("BiT/101/3", 0.0306), ("BiT/50/1", 0.0186), ("ViT/B/16", 0.0144), ("ViT/S/16", 0.0072)]
)
def test_the_authors_equations_of_m4_extrapolate_as_published(model: str, published: float) -> None:
    fit = published_m4(*points(model, training=True), name=model)
    assert away(fit, model) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("model", "published"), [("BiT/101/3", 0.0306), ("BiT/50/1", 0.0186), ("ViT/B/16", 0.0144), ("ViT/S/16", 0.0072)]
)
def test_the_chosen_form_extrapolates_better_than_the_published_one(model: str, published: float) -> None:
    assert away(fit_curve(*points(model, training=True), options=NONE), model) < published


@pytest.mark.parametrize(("form", "expected"), [("m4", 292e6), ("zhai", 302e6)])
def test_vit_overtakes_bit_where_least_squares_says_and_the_interval_holds_the_points_own_crossing(
    form: str, expected: float
) -> None:
    fits = [fit_curve(*points(m, training=True), form=form, name=m) for m in ("BiT/50/1", "ViT/B/16")]
    found = crossover(*fits)
    assert (found.winner, found.loser, found.inside) == ("ViT/B/16", "BiT/50/1", True)
    assert found.x == pytest.approx(expected, rel=0.1)
    assert found.low is not None
    assert found.high is not None
    # 283M: where straight lines through the points themselves cross
    assert found.low < 283e6 < found.high
    assert found.low > 0.7 * found.x
    assert found.share == 1
    alone = found.per_form[form]
    assert alone["low"] > 0.9 * found.x
    # one of the curves misses its points as zhai, so that other forms have their say
    assert (len(found.per_form) > 1) == (form == "zhai")


# Exact curves


@pytest.mark.parametrize("form", list(FORMS))
def test_a_curve_without_noise_is_found_again(form: str) -> None:
    fit = fit_curve(SIZES, exact(form), form=form, points="runs", options=NONE)
    far = np.geomspace(1e5, 1e11, 30)
    assert fit.predict(far) == pytest.approx(exact(form, far), rel=2e-3)
    assert np.abs(fit.residuals).max() < 1e-5
    true = FORMS[form].params(np.array(TRUTHS[form]), float(np.log(SIZES).mean()))
    assert fit.params["b"] == pytest.approx(float(true["b"]), rel=1e-2)
    assert fit.starts_agree >= 1


@settings(max_examples=25, deadline=None)
@given(b=st.floats(0.1, 1.2), c=st.floats(0.02, 0.4), top=st.floats(0.5, 0.95))
def test_any_saturating_power_law_is_found_again(b: float, c: float, top: float) -> None:
    x = np.geomspace(1e4, 1e7, 6)
    y = (top - c) * (x / x[0]) ** -b + c
    fit = fit_curve(x, y, form="m2", options=NONE)
    assert fit.params["b"] == pytest.approx(b, rel=0.02)
    assert fit.params["c"] == pytest.approx(c, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-8, 1e8), form=st.sampled_from(list(FORMS)))
def test_the_unit_of_x_changes_nothing_but_the_unit(scale: float, form: str) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, SIZES.size)
    y = np.minimum(exact(form) * np.exp(noise), 0.999)
    one = fit_curve(SIZES, y, form=form, points="runs", options=QUICK)
    other = fit_curve(SIZES * scale, y, form=form, points="runs", options=QUICK)
    assert other.predict(SIZES * scale) == pytest.approx(one.predict(SIZES), rel=2e-4)
    assert other.params["b"] == pytest.approx(one.params["b"], rel=0.02)
    assert other.warnings == one.warnings


@pytest.mark.parametrize("form", list(FORMS))
def test_gradients_are_those_of_finite_differences_and_inverses_undo_values(form: str) -> None:
    theta, u, step = np.array(TRUTHS[form]), np.linspace(-3, 3, 7), 1e-6
    y, slope = FORMS[form].gradient(theta, u)
    for i in range(theta.size):
        moved = np.eye(theta.size)[i] * step
        both = [FORMS[form].values(theta + sign * moved, u) for sign in (1, -1)]
        assert slope[:, i] == pytest.approx((both[0] - both[1]) / (2 * step), rel=1e-4, abs=1e-8)
    again = [float(FORMS[form].inverse(theta, float(value))) for value in y]
    assert again == pytest.approx(u.tolist(), abs=1e-6)
    floor = float(FORMS[form].floor(theta))
    if floor:
        assert FORMS[form].inverse(theta, floor * 0.99) == np.inf


@pytest.mark.parametrize("form", ["m2", "zhai", "m4"])
def test_no_minimum_is_below_the_one_found_by_scipy_from_many_starts(form: str) -> None:
    from scipy.optimize import least_squares

    x, y = (np.array(v) for v in points("ViT/S/16", training=True))
    u, log_y, one = np.log(x) - np.log(x).mean(), np.log(y), FORMS[form]
    found = fit_form(one, u, log_y, starts=12, delta=1e-3, seed=0)
    low, high = one.bounds(u, y)
    rng, best = np.random.default_rng(7), np.inf
    for _ in range(4):
        start = low + (high - low) * rng.uniform(0.2, 0.8, low.size)
        start[:2] = np.log(np.median(y)), rng.uniform(0.1, 1)
        solved = least_squares(
            lambda t: np.log(one.values(t, u)) - log_y, start, bounds=(low, high), loss="huber", f_scale=1e-3
        )
        best = min(best, solved.cost)
    assert found.loss <= best * 1.001
    assert found.loss == pytest.approx(float(huber(np.log(one.values(found.theta, u)) - log_y, 1e-3)), rel=1e-6)
    assert found.agree > 6


# Intervals


def test_nominal_95_percent_intervals_hold_the_truth_at_4_sizes_and_3_seeds() -> None:
    got = coverage(4, 3, trials=60, delta=1e-3, seed=3)
    assert min(got.exponent, got.floor, got.largest, got.beyond) >= 0.85
    assert got.unknown < 0.3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), form=st.sampled_from(["m1", "m2", "zhai"]))
def test_the_band_contains_the_curve_and_widens_beyond_the_data(seed: int, form: str) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.02, SIZES.size)
    fit = fit_curve(SIZES, exact(form) * np.exp(noise), form=form, points="runs", options=QUICK)
    at = np.geomspace(1e5, 1e11, 50)
    low, high = fit.band(at)
    assert (low <= fit.predict(at)).all()
    assert (fit.predict(at) <= high).all()
    middle, far = (np.log(fit.band(x)[1] / fit.band(x)[0]) for x in (3e7, 1e12))
    assert far > middle


def test_seeds_are_resampled_from_five_up_and_blocks_along_a_curve() -> None:
    x = np.repeat([1.0, 2.0], [5, 3])
    log_y = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.1, 0.2])
    drawn = bootstrap(Points(x, log_y), np.repeat([0.3, 0.1], [5, 3]), 2, 100, np.random.default_rng(0))
    own = {round(0.3 + d * (5 / 4) ** 0.5, 6) for d in (-0.2, -0.1, 0, 0.1, 0.2)}
    assert set(drawn[:, :5].round(6).ravel()) == own
    assert len(set(drawn[:, 5:].round(6).ravel())) == 300
    line = Points(np.arange(1.0, 21), np.arange(20.0), ("",) * 20)
    blocks = bootstrap(line, np.full(20, 9.5), 0, 50, np.random.default_rng(0)) - 9.5
    steps = np.diff(blocks.reshape(50, 4, 5), axis=2)
    assert set(steps.round(6).ravel()) <= {1.0, -19.0}


def test_without_more_points_than_parameters_there_are_no_intervals_and_it_is_said() -> None:
    fit = fit_curve([1e3, 1e4, 1e5], [0.5, 0.3, 0.25], form="m2", options=QUICK)
    assert fit.intervals == {"a": None, "b": None, "c": None}
    assert np.isnan(fit.band(1e4)[0])
    assert any("as many parameters as points" in warning for warning in fit.warnings)


def test_points_of_one_run_each_are_runs_and_many_along_one_are_a_curve() -> None:
    assert fit_curve(SIZES, exact("m2"), form="m2", options=NONE).points == "curve"
    assert fit_curve(np.repeat(SIZES, 2), np.repeat(exact("m2"), 2), form="m2", options=NONE).points == "runs"
    few = fit_curve(SIZES[:5], exact("m2")[:5], form="m2", options=NONE, runs=["a"] * 5)
    assert (few.points, few.runs) == ("curve", ("a",) * 5)
    assert fit_curve(SIZES, exact("m2"), form="m2", points="runs", options=NONE).points == "runs"


# Choosing


def test_the_form_that_made_the_points_is_chosen_and_small_sets_get_small_forms() -> None:
    for form in ("m1", "m2"):
        chosen = []
        for seed in range(5):
            y = exact(form) * np.exp(np.random.default_rng(seed).normal(0, 0.01, SIZES.size))
            chosen.append(fit_curve(SIZES, y, points="runs", options=NONE).form)
        assert statistics.mode(chosen) == form
    assert set(fit_curve(SIZES[:3], exact("m2")[:3], options=NONE).scores) == {"m1"}
    assert set(fit_curve(SIZES[:5], exact("m2")[:5], options=NONE).scores) == {"m1", "m2"}
    assert set(fit_curve(SIZES[:6], exact("m2")[:6], options=NONE).scores) == {"m1", "m2", "zhai"}
    assert set(fit_curve(SIZES[:8], exact("m2")[:8], options=NONE).scores) == set(FORMS)


def test_the_largest_sizes_are_held_out_for_the_score() -> None:
    y = exact("m1").copy()
    bent = fit_curve(SIZES, np.where(SIZES > 5e8, y * 1.2, y), form="m1", points="runs", options=NONE)
    # the four largest of twenty are held out; two of them were raised
    assert bent.score == pytest.approx(np.log(1.2) * (2 / 4) ** 0.5, rel=1e-3)


def test_alternatives_hold_this_form_and_every_other_that_foretells_as_well() -> None:
    y = exact("m2") * np.exp(np.random.default_rng(0).normal(0, 0.01, SIZES.size))
    fit = fit_curve(SIZES, y, form="m2", points="runs", options=QUICK)
    others = alternatives(fit)
    assert next(iter(others)) == "m2"
    assert "zhai" in others
    assert "m1" not in others
    assert others["zhai"].estimator.startswith("zhai:")
    assert refit(fit, "m1").form == "m1"


# JSON


@settings(max_examples=8, deadline=None)
@given(form=st.sampled_from(list(FORMS)), bootstraps=st.sampled_from([0, 7]))
def test_a_fit_goes_through_json_unchanged(form: str, bootstraps: int) -> None:
    noise = np.random.default_rng(2).normal(0, 0.02, SIZES.size)
    fit = fit_curve(
        SIZES, np.minimum(exact(form) * np.exp(noise), 0.99), form=form, options=FitOptions(bootstraps=bootstraps)
    )
    text = json.dumps(fit.to_json(), allow_nan=False)
    again = CurveFit.from_json(json.loads(text))
    assert again == fit
    assert np.array_equal(again.draws, fit.draws)
    assert json.dumps(again.to_json()) == text
    assert np.array_equal(again.band(SIZES), fit.band(SIZES), equal_nan=True)


def test_nothing_fitted_goes_through_json_too() -> None:
    fit = fit_curve([1.0], [0.5])
    assert CurveFit.from_json(json.loads(json.dumps(fit.to_json(), allow_nan=False))) == fit


def test_the_same_points_in_another_order_give_the_same_fit() -> None:
    x, y = points("ViT/S/16", training=True)
    order = np.random.default_rng(0).permutation(len(x))
    one, other = (
        fit_curve(np.array(x)[i], np.array(y)[i], form="m2", options=QUICK) for i in (np.arange(len(x)), order)
    )
    assert one.to_json() == other.to_json()


# Bad input


@pytest.mark.parametrize(
    ("x", "y", "warning"),
    [
        ([1e6], [0.5], "one point only"),
        ([1e6, 1e6, 1e6], [0.5, 0.51, 0.49], "one size only"),
        ([], [], "no point only"),
        ([1e6, 2e6], [0.5, np.nan], "left out 1 of 2 points that are not numbers above 0: nan at x = 2e"),
    ],
)
def test_one_size_is_no_curve_and_says_so(x: list[float], y: list[float], warning: str) -> None:
    fit = fit_curve(x, y, name="vit")
    assert (fit.form, fit.fitted, fit.params) == ("none", False, {})
    assert np.isnan(fit.predict(1e6))
    assert np.isnan(fit.band([1e6, 1e7])).all()
    assert any(warning in one for one in fit.warnings)


@pytest.mark.parametrize(
    ("x", "y", "warning"),
    [
        ([1e3, 1e4, 1e5], [0.3, 0.4, 0.5], "error does not fall with size: 0.3 at 1k, 0.5 at 100k"),
        ([1e3, 1e4, 1e5, 1e6], [0.5, 0.3, 0.4, 0.2], "error rises from 0.3 at 10k to 0.4 at 100k"),
        ([1e3, 1e4], [0.5, 0.4], "too few sizes: 2"),
        ([1e3, 1e4, 1e5], [0.5, 0.4, 0.33], "m1 has no floor"),
        ([1e3, 1e4, 1e5, 1e6, 1e7], [0.5, 0.3, 0.25, 0.22, np.inf], "left out 1 of 5"),
        ([1e3, 1e4, 1e5, 0.0, 1e7], [0.5, 0.3, 0.25, 0.22, -0.1], "left out 2 of 5"),
        ([1e3, 1e4, 1e5, 1e6], [0.9, 0.82, 0.71, 0.64], "one run a size"),
    ],
)
def test_points_that_a_fit_should_not_be_believed_on_are_warned_of(
    x: list[float], y: list[float], warning: str
) -> None:
    assert any(warning in one for one in fit_curve(x, y, options=QUICK).warnings)


def test_a_floor_that_the_points_do_not_tell_is_said_to_be_unknown() -> None:
    x = np.repeat([1e3, 3e3, 1e4, 3e4], 3)
    y = 0.6 * (x / 1e3) ** -0.1 * np.exp(np.random.default_rng(0).normal(0, 0.03, x.size))
    assert any("floor is not identified" in one for one in fit_curve(x, y, form="m2").warnings)
    fit = fit_curve(SIZES, exact("m2") * np.exp(np.random.default_rng(0).normal(0, 0.005, 20)), form="m2")
    assert fit.warnings == ()


def test_a_form_that_misses_the_shape_of_the_points_is_said_to() -> None:
    assert any(
        "misses their shape" in one for one in fit_curve(*points("ViT/B/16", True), form="m1", options=NONE).warnings
    )
    assert not fit_curve(*points("ViT/B/16", True), form="m4", options=NONE).warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "m3"}, r"unknown form 'm3'; did you mean"),
        ({"form": "m4"}, r"form m4 has 5 parameters, and there are 3 sizes"),
        ({"points": "lines"}, r"points='lines'; "),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_curve([1e3, 1e4, 1e5], [0.5, 0.4, 0.3], **arguments)  # type: ignore[arg-type]


def test_sizes_and_errors_must_be_as_many() -> None:
    with pytest.raises(DataError, match="vit: 2 sizes, 3 errors, 1 run"):
        fit_curve([1, 2], [0.1, 0.2, 0.3], runs=["a"], name="vit")


def test_the_published_estimator_takes_error_rates_alone() -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        published_m4([1, 2, 3], [2.0, 1.5, 1.2])
