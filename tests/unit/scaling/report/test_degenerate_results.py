"""Reports of results without a curve in them: all right, all wrong, all equal, one point, one family at its ceiling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.scaling.logged_runs import log_run
from vit_dist.scaling.collect import collect
from vit_dist.scaling.fit.curve import FitOptions
from vit_dist.scaling.report.figures import examples_figure
from vit_dist.scaling.report.figures_compute import compute_figure
from vit_dist.scaling.report.figures_fit import fit_figure, residual_figure
from vit_dist.scaling.report.page import _summary, _warnings
from vit_dist.scaling.results import Results, analyse

Value = Callable[[str, int, int], float | None]
CASES: dict[str, Value] = {
    "all right": lambda _f, _n, _s: 1.0,
    "all wrong": lambda _f, _n, _s: 0.0,
    "all equal": lambda _f, _n, _s: 0.75,
    "right with the largest": lambda _f, n, _s: 1.0 if n == 500 else 0.9,
    "one family right": lambda f, n, _s: 1.0 if f == "bit" else 0.5 + n / 2000,
    "one point": lambda f, n, s: 0.6 if (f, n, s) == ("vit", 500, 0) else None,
    "one point, all right": lambda f, n, s: 1.0 if (f, n, s) == ("vit", 500, 0) else None,
    "one size": lambda f, n, _s: {"vit": 0.5, "bit": 0.6}[f] if n == 500 else None,
    "one seed right": lambda _f, n, s: 1.0 if s else 0.5 + n / 2000,
}


@pytest.fixture
def results_of(tmp_path: Path) -> Callable[[str], Results]:
    def make(case: str) -> Results:
        for family in ("vit", "bit"):
            for subset in (100, 500):
                for seed in (0, 1):
                    value = CASES[case](family, subset, seed)
                    if value is not None:
                        log_run(tmp_path, family, subset, seed, top1={10: value})
        return analyse(collect(str(tmp_path)), FitOptions(bootstraps=20, starts=2))

    return make


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_drawn_without_a_warning_and_with_something_in_each_panel(
    case: str, results_of: Callable[[str], Results]
) -> None:
    """Warnings of matplotlib are errors here."""
    results = results_of(case)
    for draw in (examples_figure, compute_figure, fit_figure, residual_figure):
        drawing = draw(results)
        if drawing is None:
            continue
        drawing.figure.draw_without_rendering()
        for axes in drawing.figure.axes:
            assert any(len(line.get_xdata()) for line in axes.get_lines())  # type: ignore[arg-type]
            low, high = axes.get_ylim()
            assert low < high
            if axes.get_ylabel() == "validation top-1 (%)":
                assert low > -5
                assert high < 105
    said = " ".join([*_summary(results), *_warnings(results)])
    assert "nan" not in said
    assert "inf " not in said


@pytest.mark.parametrize("case", ["all right", "all wrong", "all equal", "right with the largest"])
def test_of_two_curves_that_are_one_neither_is_called_the_better(
    case: str, results_of: Callable[[str], Results]
) -> None:
    results = results_of(case)
    assert results.crossovers == []
    assert "better than" not in " ".join(_summary(results))


def test_an_error_of_zero_is_told_as_what_it_is(results_of: Callable[[str], Results]) -> None:
    told = " ".join(_warnings(results_of("one family right")))
    assert "bit: 4 of 4 points have an error of 0 (at 100, 500), which has no logarithm: left out of the fit." in told


def test_the_headline_says_which_way_is_better(results_of: Callable[[str], Results]) -> None:
    assert _summary(results_of("one size"))[0] == "Validation top-1 (%): higher is better."
