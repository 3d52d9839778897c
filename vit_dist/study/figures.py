"""Figures of a study: drawn without a display, the same bytes for the same observations, readable in grey."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_dist.core.files import write_bytes
from vit_dist.core.units import format_count
from vit_dist.study.collect import Collection
from vit_dist.study.summary import Mean, is_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart also by people who see fewer colours; the yellow is left out: too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#555555"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "svg.hashsalt": "vit_dist",
    "svg.fonttype": "path",
}


def curve(collection: Collection, averaged: Sequence[Mean]) -> Figure:
    """The metric against the number of pretraining examples, a line a family, seeds as small open marks."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.6), dpi=160, facecolor="white")
        axes = figure.add_axes((0.09, 0.125, 0.70, 0.70))
        scale = 100.0 if is_share(collection.metric) else 1.0
        ends = [_draw_family(axes, collection, averaged, family, i, scale) for i, family in _families(averaged)]
        _axes(axes, averaged, collection.metric)
        _label_ends(axes, ends)
        figure.text(0.02, 0.945, _title(collection.metric), fontsize=11.5, fontweight="bold", color="#111111")
        figure.text(0.02, 0.897, _subtitle(collection), fontsize=8, color=_GREY)
        figure.text(0.02, 0.863, _legend(averaged), fontsize=8, color=_GREY)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG (by suffix), without dates or versions in it."""
    import matplotlib as mpl

    kind = path.suffix.removeprefix(".")
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write_bytes(str(path), buffer.getvalue())


def _families(averaged: Sequence[Mean]) -> list[tuple[int, str]]:
    return list(enumerate(dict.fromkeys(point.family for point in averaged)))


def _draw_family(
    axes: Axes, collection: Collection, averaged: Sequence[Mean], family: str, index: int, scale: float
) -> tuple[float, float, str, str]:
    """Draw one line; returns its right end (x, y), its label and colour."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    points = [point for point in averaged if point.family == family]
    xs, ys = [point.subset for point in points], [point.mean * scale for point in points]
    axes.plot(xs, ys, color=colour, marker=marker, markersize=5.5, linewidth=1.8, zorder=3)
    several = [point for point in points if point.std is not None]
    if several:
        axes.errorbar(
            [point.subset for point in several],
            [point.mean * scale for point in several],
            yerr=[(point.std or 0.0) * scale for point in several],
            fmt="none",
            ecolor=colour,
            elinewidth=1.2,
            capsize=3.5,
            zorder=2,
        )
        sizes = {point.subset for point in several}
        dots = [one for one in collection.observations if one.family == family and one.subset in sizes]
        axes.plot(
            [one.subset for one in dots],
            [one.value * scale for one in dots],
            linestyle="none",
            marker=marker,
            markersize=3.6,
            markerfacecolor="white",
            markeredgecolor=colour,
            markeredgewidth=0.9,
            zorder=4,
        )
    params = sorted({one.num_params for one in collection.observations if one.family == family})
    size = f"{_short(params[0])} parameters" if len(params) == 1 else f"{_short(params[0])}-{_short(params[-1])} param."
    return xs[-1], ys[-1], f"{family}\n{size}", colour


def _axes(axes: Axes, averaged: Sequence[Mean], metric: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes = sorted({point.subset for point in averaged})
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(round(x))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.08)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("pretraining examples (distinct images, log scale)")
    axes.set_ylabel("top-1 accuracy on the validation set (%)" if metric == "val/top1" else metric)


def _apart(sizes: Sequence[int]) -> list[int]:
    """The sizes to label: all, or where they crowd those at least 1.25 times the last one labelled."""
    shown: list[int] = []
    for size in sizes:
        if not shown or size >= shown[-1] * 1.25:
            shown.append(size)
    return shown


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name the lines at their right ends, moved apart where they would overlap."""
    right = axes.get_xlim()[1]
    low, high = axes.get_ylim()
    least = 0.105 * (high - low)
    ordered = sorted(ends, key=lambda end: end[1])
    heights = [end[1] for end in ordered]
    # Push up from below, then back down from the top, so that the stack stays inside the axes.
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + least)
    top = high - 0.02 * (high - low)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], top)
        top = heights[i] - least
    for (x, y, label, colour), height in zip(ordered, heights, strict=True):
        name, _, size = label.partition("\n")
        place: dict[str, Any] = {"xycoords": "data", "textcoords": "offset points", "annotation_clip": False}
        axes.plot([x, right], [y, height], color=colour, linewidth=0.8, alpha=0.5, clip_on=False)
        axes.annotate(
            name, (right, height), (5, 1), color=colour, fontweight="bold", fontsize=9.5, va="bottom", **place
        )
        axes.annotate(size, (right, height), (5, -1), color=_GREY, fontsize=7.5, va="top", **place)


def _title(metric: str) -> str:
    what = "Validation accuracy" if metric == "val/top1" else metric
    return f"{what} against number of pretraining examples"


def _subtitle(collection: Collection) -> str:
    names = ", ".join(sorted({one.dataset for one in collection.observations}))
    seen = sorted({one.examples_seen for one in collection.observations})
    amount = f"{_short(seen[0])}" if len(seen) == 1 else f"{_short(seen[0])} to {_short(seen[-1])}"
    parts = [f"study {collection.study}" if collection.study else "", f"dataset {names}"]
    left_out = f" ({len(collection.excluded)} left out)" if collection.excluded else ""
    parts += [f"{len(collection.observations)} runs{left_out}", f"each saw {amount} examples, repeats counted"]
    return "  ·  ".join(part for part in parts if part)


def _legend(averaged: Sequence[Mean]) -> str:
    counts = sorted({point.num_seeds for point in averaged})
    if counts == [1]:
        return "One seed a point: differences between lines may be chance."
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    return f"{seeds} a point: lines join their means, bars are ±1 standard deviation, open marks are single runs."


def _short(number: int) -> str:
    """Three digits and a unit: 78412 -> '78.4k'."""
    for suffix, multiple in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= multiple:
            return f"{number / multiple:.3g}{suffix}"
    return str(number)
