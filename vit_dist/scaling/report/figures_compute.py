"""Figures of compute: what a FLOP buys, and the best model size for a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_dist.core.units import counted
from vit_dist.scaling import paper
from vit_dist.scaling.fit.diagnostics import says_something
from vit_dist.scaling.fit.frontiers import Frontier
from vit_dist.scaling.report.figure_style import (
    AXIS,
    COLOURS,
    INK,
    MARKERS,
    SURFACE,
    Drawing,
    colours,
    compute_unit,
    error_axis,
    legend,
    new_figure,
    paper_lines,
    plain_log_axis,
    short,
    value_axis,
)
from vit_dist.scaling.report.figures import metric_name
from vit_dist.scaling.results import Results
from vit_dist.scaling.summary import by_trunk

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RULE = "FLOPs are 6 x multiply-adds of one image's forward pass x examples seen, as in the paper's Table 6."


def compute_figure(results: Results) -> Drawing | None:
    """Figure 3: metric and error against compute, with the frontier."""
    costed = {label: [one for one in members if one.exaflops] for label, members in results.series.items()}
    if results.frontier is None or not any(costed.values()):
        return None
    # An error of 0 has no place on a logarithmic axis: where all are 0 the panel above says it.
    errors = [error for members in costed.values() for one in members if (error := results.error(one.value))]
    figure, panels = new_figure(5.2 if errors else 3.1, 2 if errors else 1)
    figure.subplots_adjust(hspace=0.16)
    top, bottom = panels[0], panels[-1]
    chosen, xs = colours(results), [one.exaflops or 0.0 for members in costed.values() for one in members]
    factor, unit = compute_unit(xs)
    for label, members in costed.items():
        if not members:
            continue
        colour, marker = chosen[label]
        x = [factor * (one.exaflops or 0.0) for one in members]
        how = {"ls": "none", "marker": marker, "ms": 4.5, "color": colour, "alpha": 0.8}
        top.plot(x, [one.value * results.scale for one in members], label=label, **how)  # type: ignore[arg-type]
        placed = [(at, error) for at, one in zip(x, members, strict=True) if (error := results.error(one.value))]
        if placed:
            bottom.plot(*zip(*placed, strict=True), **how)  # type: ignore[arg-type]
    joined = _join_branches(panels, results, factor)
    drawn = _frontier(bottom, results.frontier, factor) if errors else "All errors are 0: no frontier."
    behind = results.rule.is_accuracy and factor == 1
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlim(factor * min(xs) / 1.3, max(factor * max(xs) * 1.3, 14000 if behind else 0))
    if behind:
        paper_lines(top, paper.pretraining_compute())
    plain_log_axis(top.xaxis)
    bottom.set_xlabel(f"pretraining compute ({unit}), log scale")
    top.set_ylabel(metric_name(results.metric, results.rule))
    value_axis(top, results.rule)
    if errors:
        plain_log_axis(bottom.xaxis)
        top.tick_params(labelbottom=False)
        error_axis(bottom, errors)
        bottom.set_ylabel("error, log scale")
    legend(figure, top)
    caption = (
        f"Each mark is a run. {_RULE} {drawn}"
        + (" Thin grey lines join the branches of one trunk." if joined else "")
        + (" Runs whose error is 0 stand in the upper panel alone." if errors and len(errors) < len(xs) else "")
        + (f" Dashed grey: the paper's Table 6, ImageNet top-1 after fine-tuning ({paper.SOURCE})." if behind else "")
    )
    return Drawing("compute", "Compute", caption, figure)


def _join_branches(panels: Sequence[Axes], results: Results, factor: float) -> bool:
    """Join the branches of each trunk, in the panel of values and in that of errors; whether there are any."""
    lines = by_trunk(one for members in results.series.values() for one in members if one.exaflops)
    for members in lines.values():
        ends = sorted((factor * (one.exaflops or 0.0), one.value) for one in members)
        at = [x for x, _ in ends]
        panels[0].plot(at, [value * results.scale for _, value in ends], color=AXIS, lw=0.8, zorder=0.5)
        if len(panels) > 1:
            # An error of 0 has no place on a logarithmic axis.
            errors = [results.error(value) or math.nan for _, value in ends]
            panels[1].plot(at, errors, color=AXIS, lw=0.8, zorder=0.5)
    return bool(lines)


def _frontier(axes: Axes, best: Frontier, factor: float) -> str:
    """The frontier as steps, and the curve through it, as far as errors have logarithms; what was drawn, in words."""
    points = [(factor * p.compute, p.error) for p in best.points if p.error > 0]
    if len(points) < 2:
        return "No run beats all cheaper ones: there is no frontier to draw."
    axes.plot(*zip(*points, strict=True), color=INK, lw=1.1, drawstyle="steps-post", zorder=1)
    words = "Black steps: the frontier, runs that no cheaper run beats"
    if best.fit is not None and says_something(best.fit):
        words += f"; dotted: a curve through it ({best.fit.estimator})"
        grid = np.geomspace(*best.fit.x_range, 60)
        axes.plot(factor * grid, best.fit.predict(grid), color=INK, lw=1.1, ls=":", zorder=1)
    return f"{words}."


def paper_compute_figure(results: Results) -> Drawing | None:
    """The paper's Table 6 by itself, where it cannot stand behind ours."""
    xs = [one.exaflops for one in results.collection.observations if one.exaflops]
    if not results.rule.is_accuracy or not xs or compute_unit(xs)[0] == 1:
        return None
    figure, (axes,) = new_figure(2.5)
    axes.set_ylim(76, 89.5)
    paper_lines(axes, paper.pretraining_compute())
    axes.set_xscale("log")
    axes.set_xlim(40, 14000)
    plain_log_axis(axes.xaxis)
    axes.set_xlabel("pretraining compute (exaFLOPs), log scale")
    axes.set_ylabel("ImageNet top-1 (%)")
    figure.subplots_adjust(top=0.95)
    caption = (
        f"Published numbers, not ours: Table 6 of {paper.SOURCE}: models pretrained on JFT-300M, top-1 after "
        f"fine-tuning on ImageNet. Our runs took far less compute, so these stand apart."
    )
    return Drawing("paper_compute", "Compute, in the paper", caption, figure)


def iso_figure(results: Results) -> Drawing | None:
    """Figure 7: error against model size at each compute budget."""
    if results.iso is None:
        return None
    budgets = [budget for budget in results.iso.budgets if len(set(budget.sizes)) >= 3]
    figure, (axes,) = new_figure(3.6)
    factor, unit = compute_unit([budget.compute for budget in budgets])
    for i, budget in enumerate(budgets):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        label = f"{short(factor * budget.compute)} {unit}"
        axes.plot(budget.sizes, budget.errors, ls="none", marker=marker, ms=5, color=colour, label=label)
        if budget.coefficients is not None:
            x = np.geomspace(min(budget.sizes), max(budget.sizes), 60)
            axes.plot(x, [budget.predict(size) for size in x], color=colour, lw=1.4)
        if budget.best is not None and budget.best_error is not None:
            axes.plot([budget.best], [budget.best_error], marker="*", ms=10, color=colour, mec=SURFACE, ls="none")
    axes.set_xscale("log")
    plain_log_axis(axes.xaxis)
    error_axis(axes, [error for budget in budgets for error in budget.errors])
    axes.set_xlabel("parameters, log scale")
    axes.set_ylabel("error, log scale")
    legend(figure, axes)
    return Drawing("iso_compute", "Best size for a budget", _iso_caption(results, len(budgets)), figure)


def _iso_caption(results: Results, count: int) -> str:
    assert results.iso is not None
    budgets = results.iso.budgets
    minima = sum(budget.best is not None for budget in budgets)
    law = "; no power law through the minima" if minima else ""
    if results.iso.exponent is not None:
        interval = results.iso.exponent_interval
        span = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
        law = f"; best size grows as compute^{results.iso.exponent:.2f}{span} (least squares through the minima's logs)"
    lines = any(budget.coefficients is not None and len(set(budget.sizes)) >= 3 for budget in budgets)
    return (
        f"{counted(count, 'budget')}; runs within 10% of one compute are one budget."
        + (" Lines: log error as a quadratic in log size, least squares" if lines else "")
        + ("; stars: their minima" if lines and minima else "")
        + (f"{law}." if lines else "")
        + "".join(f" {warning}" for warning in results.iso.warnings)
    )
