"""Figures of fits: curves with their bands, residuals, where curves cross."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_dist.scaling.fit.crossings import GRID, Crossover, bootstrap_crossings
from vit_dist.scaling.fit.curve import CurveFit
from vit_dist.scaling.fit.forms import Array
from vit_dist.scaling.report.figure_style import (
    AXIS,
    INK,
    SURFACE,
    TEXT,
    Drawing,
    colours,
    count_axis,
    error_axis,
    legend,
    new_figure,
    plain_log_axis,
    short,
)
from vit_dist.scaling.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EXAMPLES = "pretraining examples (distinct images)"
# Curves are drawn to this many times the largest size.
_BEYOND = 4.0
_MOST_CROSSINGS = 4
# Pairs of which fewer bootstraps cross are in the table only.
_MIN_CROSSING = 0.05


def _error_label(results: Results) -> str:
    highest = results.rule.range[1]
    return results.metric if results.rule.better == "lower" else f"error ({highest or 0:g} - {results.metric})"


def _how(fits: Sequence[CurveFit]) -> str:
    """The estimators of some fits, for a caption."""
    by_estimator: dict[str, list[str]] = {}
    for fit in fits:
        by_estimator.setdefault(fit.estimator, []).append(fit.name)
    return " ".join(f"{', '.join(names)}: {estimator}." for estimator, names in by_estimator.items())


def fit_figure(results: Results) -> Drawing | None:
    """Figure 4: error against examples, both logarithmic, with the fitted curves and their bands."""
    fits = {label: fit for label, fit in results.fits.items() if fit.x}
    curves = results.curves
    if not curves:
        return None
    figure, (axes,) = new_figure(4.0)
    chosen, held_out = colours(results), {one.fit.name: one for one in results.held_out}
    sizes = [x for fit in fits.values() for x in fit.x]
    for label, fit in fits.items():
        colour, marker = chosen[label]
        largest = held_out[label].size if label in held_out else None
        inside = [(x, y) for x, y in zip(fit.x, fit.error, strict=True) if x != largest]
        axes.plot(*zip(*inside, strict=True), ls="none", marker=marker, ms=4.5, color=colour, label=label, zorder=3)
        if largest is not None:
            last = [(x, y) for x, y in zip(fit.x, fit.error, strict=True) if x == largest]
            axes.plot(
                *zip(*last, strict=True), ls="none", marker=marker, ms=6.5, mfc="none", mec=colour, mew=1.0, zorder=4
            )
            axes.plot(*zip(*last, strict=True), ls="none", marker=marker, ms=3, color=colour, zorder=4)
        if label in curves:
            _curve(axes, fit, colour)
        if label in held_out:
            one = held_out[label]
            axes.plot(
                [one.size * 1.07], [one.predicted], marker="x", ms=5.5, mew=1.4, color=colour, ls="none", zorder=5
            )
    error_axis(axes, [y for fit in fits.values() for y in fit.error])
    count_axis(axes, [*sizes, _BEYOND * max(sizes)], f"{_EXAMPLES}, log scale", reach=1.2)
    axes.set_xlim(min(sizes) / 1.3, max(sizes) * _BEYOND * 1.35)
    axes.set_ylabel(f"{_error_label(results)}, log scale")
    legend(figure, axes)
    parts = ["Lines: fitted to all points; dashed and pale beyond the data."]
    if any(len(fit.draws) for fit in curves.values()):
        parts.append("Shaded: 95% interval of the curve.")
    if held_out:
        parts.append("Ringed: the largest size; crosses: what a fit without it says of it.")
    if without := [label for label in fits if label not in curves]:
        parts.append(f"No line: {', '.join(without)}, whose fit says nothing (see the remarks).")
    return Drawing("fits", "Fits", " ".join([*parts, _how(list(curves.values()))]), figure)


def _curve(axes: Axes, fit: CurveFit, colour: str) -> None:
    low, high = fit.x_range
    for begin, end, line, strength in ((low, high, "-", 1.0), (high, high * _BEYOND, "--", 0.65)):
        x = np.geomspace(begin, end, 80)
        axes.plot(x, fit.predict(x), color=colour, ls=line, lw=1.5, alpha=strength, zorder=2)
        bottom, top = fit.band(x)
        if np.isfinite(bottom).all():
            axes.fill_between(x, bottom, top, color=colour, alpha=0.16 * strength, lw=0, zorder=1)


def residual_figure(results: Results) -> Drawing | None:
    """Figure 5: log error less that of the curve, by size; a pattern would say that the form is wrong."""
    fits = [fit for fit in results.curves.values() if fit.num_points > len(fit.params)]
    if not fits:
        return None
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, (axes,) = new_figure(3.0)
    chosen = colours(results)
    axes.axhline(0, color=AXIS, lw=1)
    for i, fit in enumerate(fits):
        colour, marker = chosen[fit.name]
        aside = 1.06 ** (i - (len(fits) - 1) / 2)
        axes.plot(
            np.array(fit.x) * aside, 100 * fit.residuals, ls="none", marker=marker, ms=4, color=colour, alpha=0.55
        )
        sizes = np.unique(fit.x)
        middle = [100 * fit.residuals[np.array(fit.x) == size].mean() for size in sizes]
        axes.plot(sizes * aside, middle, color=colour, lw=1.4, marker=marker, ms=1, label=fit.name)
    count_axis(axes, [x for fit in fits for x in fit.x], f"{_EXAMPLES}, log scale")
    # Of a fit through every point the residuals are those of floating point.
    most = max(1.0, 110 * max(float(np.abs(fit.residuals).max()) for fit in fits))
    axes.set_ylim(-most, most)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_ylabel("log error, less the curve's (%)")
    legend(figure, axes)
    caption = (
        "Each mark is a run, lines join the means; marks of one size are moved apart. Residuals of the fits above: "
        + ", ".join(
            f"{fit.name} {fit.form}" + (f" (deviation {100 * fit.deviation:.2g}%)" if fit.deviation else "")
            for fit in fits
        )
        + "."
    )
    return Drawing("residuals", "Residuals", caption, figure)


def crossover_figure(results: Results) -> Drawing | None:
    """Figure 6: where bootstraps of two curves cross."""
    shown = []
    for cross, a, b in results.crossovers:
        drawn = _drawn(cross, a, b)
        if drawn.size and (cross.x is not None or (cross.share or 0) >= _MIN_CROSSING):
            shown.append((cross, drawn))
    if not shown:
        return None
    shown = shown[:_MOST_CROSSINGS]
    figure, panels = new_figure(0.75 + 1.35 * len(shown), len(shown))
    figure.subplots_adjust(top=1 - 0.3 / figure.get_figheight(), hspace=0.85)
    chosen = colours(results)
    for axes, (cross, drawn) in zip(panels, shown, strict=True):
        low, high = cross.range
        places = np.log(drawn[(drawn > 0) & np.isfinite(drawn)])
        counts, edges = np.histogram(places, bins=50, range=(np.log(low), np.log(high)))
        fractions = counts / drawn.size
        axes.bar(
            np.exp(edges[:-1]),
            100 * fractions,
            np.diff(np.exp(edges)),
            align="edge",
            color=chosen[cross.winner][0],
            alpha=0.7,
        )
        data = (
            max(min(results.fits[n].x) for n in (cross.winner, cross.loser)),
            min(max(results.fits[n].x) for n in (cross.winner, cross.loser)),
        )
        axes.axvspan(data[0], data[1], color=AXIS, alpha=0.13, lw=0, zorder=0)
        if cross.x is not None:
            mark = {"marker": "v", "ms": 7, "mec": INK, "mfc": INK if cross.inside else SURFACE, "clip_on": False}
            height = 100 * fractions.max() * 1.08
            # An end that is open: to the end of what was looked at. There are draws, so there is an interval.
            axes.hlines(height, cross.low or low, cross.high or high, color=INK, lw=1, zorder=2)
            axes.plot([cross.x], [height], ls="none", **mark)  # type: ignore[arg-type]
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        plain_log_axis(axes.xaxis)
        axes.set_ylabel("% of draws")
        percent = "" if cross.share is None else f": {cross.share:.0%} of draws cross"
        axes.set_title(f"{cross.winner} overtakes {cross.loser}{percent}", loc="left", color=TEXT, pad=8)
    panels[-1].set_xlabel(f"{_EXAMPLES}, log scale")
    pairs = "; ".join(cross.text for cross, _ in shown)
    caption = "Where the bootstraps of two fitted curves cross for the last time. Grey: sizes where both have data."
    if crossings := [cross for cross, _ in shown if cross.x is not None]:
        caption += " Mark: where the curves cross; line: its interval."
        if not all(cross.inside for cross in crossings):
            caption += " A crossing outside of the data is extrapolated (open mark) and may well be wrong."
    caption += f" {pairs}."
    return Drawing("crossovers", "Crossovers", caption, figure)


def _drawn(cross: Crossover, a: CurveFit, b: CurveFit) -> Array:
    """Where each pair of bootstraps crosses, [pairs], as `bootstrap_crossings` says it; empty without a range."""
    if cross.range[1] <= cross.range[0]:
        return np.empty(0)
    winner, loser = (a, b) if a.name == cross.winner else (b, a)
    return bootstrap_crossings(winner, loser, np.geomspace(*cross.range, GRID))
