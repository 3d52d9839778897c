"""Reports of results without a curve in them: all right, all wrong, all equal, one point, one family at its ceiling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.lines import Line2D

from tests.unit.scaling.logged_runs import log_run
from vit_dist.scaling.collect import collect
from vit_dist.scaling.fit.curve import FitOptions
from vit_dist.scaling.report.figure_style import Drawing
from vit_dist.scaling.report.figures import examples_figure
from vit_dist.scaling.report.figures_compute import compute_figure
from vit_dist.scaling.report.figures_fit import fit_figure, residual_figure
from vit_dist.scaling.report.page import _summary, _warnings, draw_all
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


# {(family, size): (values, a seed each)}
Grid = dict[tuple[str, int], tuple[float, ...]]
GRIDS: dict[str, Grid] = {
    "one size": {("vit", 500): (0.4,), ("bit", 500): (0.45,)},
    "one size, two seeds": {("vit", 500): (0.4, 0.41), ("bit", 500): (0.45, 0.44)},
    "two sizes": {("vit", 500): (0.4,), ("vit", 1000): (0.5,), ("bit", 500): (0.45,), ("bit", 1000): (0.48,)},
    "two sizes, two seeds": {("vit", n): (v, v + 0.01) for n, v in ((500, 0.4), (1000, 0.5))},
    "two sizes, one of them rising": {
        ("vit", 500): (0.4,),
        ("vit", 1000): (0.5,),
        ("bit", 500): (0.5,),
        ("bit", 1000): (0.4,),
    },
    "three sizes": {("vit", n): (v,) for n, v in ((500, 0.4), (1000, 0.5), (2000, 0.56))},
    "three sizes, rising": {("vit", n): (v,) for n, v in ((500, 0.5), (1000, 0.45), (2000, 0.4))},
    "three and two": {
        ("vit", 500): (0.4,),
        ("vit", 1000): (0.5,),
        ("vit", 2000): (0.55,),
        ("bit", 500): (0.4,),
        ("bit", 1000): (0.5,),
    },
    "four sizes, two seeds": {
        ("vit", n): (v, v + 0.01) for n, v in ((500, 0.4), (1000, 0.5), (2000, 0.57), (4000, 0.62))
    },
    "seven families": {(f"vit{i}", n): (0.4 + i / 50 + n / 9000,) for i in range(7) for n in (500, 1000)},
}


def drawings_of(root: Path, grid: Grid) -> tuple[Results, dict[str, Drawing]]:
    for (family, subset), values in grid.items():
        for seed, value in enumerate(values):
            steps = subset // 50
            log_run(root, family, subset, seed, top1={steps // 2: value - 0.1, steps: value}, step=steps)
    results = analyse(collect(str(root)), FitOptions(bootstraps=20, starts=2))
    return results, {drawing.name: drawing for drawing in draw_all(results)}


@pytest.mark.parametrize("case", GRIDS)
def test_a_caption_speaks_of_what_is_drawn_and_of_nothing_else(case: str, tmp_path: Path) -> None:
    results, drawings = drawings_of(tmp_path, GRIDS[case])

    def holds(name: str, words: str, drawn: bool) -> None:
        if name in drawings:
            assert (words in drawings[name].caption) == drawn, (name, words, drawings[name].caption)

    def lines(name: str) -> list[Line2D]:
        return [line for axes in drawings[name].figure.axes for line in axes.get_lines()] if name in drawings else []

    def long(line: Line2D) -> bool:
        return len(line.get_xdata()) > 1 and line.get_linestyle() != "None"  # type: ignore[arg-type]

    assert ("fits" in drawings) == bool(results.curves)
    shaded = "fits" in drawings and bool(drawings["fits"].figure.axes[0].collections)
    holds("fits", "Shaded", shaded)
    holds("fits", "Ringed", any(line.get_marker() == "x" for line in lines("fits")))
    holds("fits", "No line", len(results.curves) < len(results.fits))
    assert sum(line.get_linestyle() == "--" for line in lines("fits")) == len(results.curves)
    steps = [line for line in lines("compute") if line.get_drawstyle() == "steps-post"]
    holds("compute", "Black steps", any(len(set(line.get_xdata())) > 1 for line in steps))  # type: ignore[arg-type]
    holds("compute", "dotted", any(line.get_linestyle() == ":" for line in lines("compute")))
    holds("compute", "exaFLOPs", "exaFLOPs" in drawings["compute"].figure.axes[-1].get_xlabel())
    holds("accuracy_by_examples", "lines join", "two seeds" in case and any(map(long, lines("accuracy_by_examples"))))
    holds("accuracy_by_examples", "bars are", bool(drawings["accuracy_by_examples"].figure.axes[0].collections))
    for name in ("learning_by_examples", "learning_by_flops"):
        holds(name, "thicker", len({line.get_linewidth() for line in lines(name)}) > 1)
        series = 6 if len(results.series) > 6 and name == "learning_by_examples" else len(results.series)
        runs = sum(len(members) for members in list(results.series.values())[:series])
        assert len(lines(name)) == runs
        assert f"{runs} run" in drawings[name].caption
        holds(name, "the first 6 of 7 series", series < len(results.series))
    for words in ("Open", "failed", "missing", "excluded"):
        holds("coverage", words, words == "missing" and case == "three and two")


@pytest.mark.parametrize(
    "case", [case for case in GRIDS if case.startswith(("two sizes", "three sizes, rising", "one"))]
)
def test_of_a_fit_that_says_nothing_nothing_is_said_or_drawn(case: str, tmp_path: Path) -> None:
    results, drawings = drawings_of(tmp_path, GRIDS[case])
    assert not results.curves
    assert not results.crossovers
    assert not results.forecasts
    assert not {"fits", "residuals", "crossovers"} & drawings.keys()
    said = " ".join(_warnings(results))
    assert (
        "a curve needs two sizes" in said or "so no curve is drawn, and no crossing or forecast read off one." in said
    )
    assert "overtakes" not in " ".join(_summary(results))
