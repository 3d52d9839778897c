"""Figure of branches: what runs of several lengths come to that have grown from one trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_dist.core.units import counted
from vit_dist.scaling.observation import Observation
from vit_dist.scaling.report.figure_style import (
    COLOURS,
    MARKERS,
    SURFACE,
    Drawing,
    count_axis,
    legend,
    new_figure,
    value_axis,
)
from vit_dist.scaling.report.figures import metric_name
from vit_dist.scaling.results import Results
from vit_dist.scaling.summary import by_trunk

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def horizons_figure(results: Results) -> Drawing | None:
    """The metric by examples seen: the branches of each trunk, joined, and the trunk's own course."""
    lines = by_trunk(results.collection.observations)
    if not lines:
        return None
    figure, (axes,) = new_figure(3.9)
    chosen, names = _colours(lines), _names(lines)
    courses = [_course(axes, results, members, chosen[label][0]) for label, members in lines.items()]
    for label, members in lines.items():
        colour, marker = chosen[label]
        ends = _best_of_each(results, members)
        at, values = [one.examples_seen for one in ends], [one.value * results.scale for one in ends]
        name = names.get(label, "_")
        axes.plot(at, values, color=colour, lw=0.9, marker=marker, ms=5.5, mec=SURFACE, mew=0.6, label=name, zorder=3)
        others = [(one.examples_seen, one.value * results.scale) for one in members if one not in ends]
        if others:
            axes.plot(*zip(*others, strict=True), color=colour, ls="none", marker=marker, ms=4, mfc=SURFACE, zorder=2)
    everyone = [one for members in lines.values() for one in members]
    count_axis(axes, [float(one.examples_seen) for one in everyone], "examples seen, repeats counted, log scale")
    axes.set_ylabel(metric_name(results.metric, results.rule))
    value_axis(axes, results.rule)
    legend(figure, axes)
    crowded = any(len(_best_of_each(results, members)) < len(members) for members in lines.values())
    caption = (
        f"{counted(len(everyone), 'branch', 'branches')} of {counted(len(lines), 'trunk')}, each where it has ended; a "
        "line joins those of one trunk, after which it is called."
        + (" Of several with one horizon it goes through the best; open marks are the others." if crowded else "")
        + (" Dotted: the trunk itself, while it trained." if any(courses) else "")
    )
    return Drawing("horizons", "Horizons", caption, figure)


def _colours(lines: dict[str, list[Observation]]) -> dict[str, tuple[str, str]]:
    """{label: (colour, marker)}: a colour for the trunks of one model and subset, as its seeds are; a marker each."""
    kinds = list(dict.fromkeys(_kind(members) for members in lines.values()))
    chosen = {}
    for i, (label, members) in enumerate(lines.items()):
        kind = kinds.index(_kind(members))
        marker = i if len(lines) <= len(MARKERS) else kind
        chosen[label] = (COLOURS[kind % len(COLOURS)], MARKERS[marker % len(MARKERS)])
    return chosen


def _names(lines: dict[str, list[Observation]]) -> dict[str, str]:
    """{label: what the legend says}: every trunk, or where they are too many one for each colour."""
    if len(lines) <= len(MARKERS):
        return {label: label for label in lines}
    kinds: dict[tuple[str, str, int], list[str]] = {}
    for label, members in lines.items():
        kinds.setdefault(_kind(members), []).append(label)
    return {first: f"{first} and {counted(len(rest), 'other')}" if rest else first for first, *rest in kinds.values()}


def _kind(members: Sequence[Observation]) -> tuple[str, str, int]:
    return members[0].family, members[0].model, members[0].subset


def _best_of_each(results: Results, members: Sequence[Observation]) -> list[Observation]:
    """Of each horizon the branch that ended best, shortest first."""
    found: dict[int, list[Observation]] = {}
    for one in members:
        found.setdefault(one.examples_seen, []).append(one)
    return [group[results.rule.best([one.value for one in group]) or 0] for _, group in sorted(found.items())]


def _course(axes: Axes, results: Results, members: Sequence[Observation], colour: str) -> bool:
    """Draw how the trunk of some branches fared on its way, as far as it is among the runs; whether it is."""
    trunk = members[0].lineage[-1]
    for one in results.collection.observations:
        series = results.collection.curves.get(one.directory, {}).get(results.metric)
        if one.recipe_hash != trunk.recipe_hash or series is None:
            continue
        seen = series.steps * (one.examples_seen / max(1, one.step))
        least = min(branch.examples_seen for branch in members) / 1.3
        keep = (seen >= least) & np.isfinite(series.values)
        axes.plot(seen[keep], series.values[keep] * results.scale, color=colour, lw=1.0, ls=":", alpha=0.8, zorder=1)
        return bool(keep.any())
    return False
