"""Figures of what was measured: metric by examples, few-shot, learning curves, and which runs there are."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_dist.core.metrics import ACCURACY, FEW_SHOT, Metric
from vit_dist.core.run.log import VAL_TOP1
from vit_dist.core.run.names import safe_name
from vit_dist.core.units import counted, format_count
from vit_dist.scaling import paper
from vit_dist.scaling.observation import Observation
from vit_dist.scaling.report.figure_style import (
    AXIS,
    COLOURS,
    GRID,
    INK,
    SMALL,
    SURFACE,
    TEXT,
    Drawing,
    colours,
    compute_unit,
    count_axis,
    drawable,
    legend,
    new_figure,
    paper_lines,
    plain_log_axis,
    short,
    value_axis,
)
from vit_dist.scaling.results import Results
from vit_dist.scaling.summary import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EXAMPLES = "pretraining examples (distinct images)"
_MOST_PANELS = 6


def metric_name(metric: str, rule: Metric) -> str:
    """A metric for an axis: 'top-1 accuracy (%)'."""
    percent, found = " (%)" if rule.is_fraction else "", re.fullmatch(rf"{FEW_SHOT}(.+)_(\d+)shot", metric)
    if metric == VAL_TOP1:
        return f"validation top-1{percent}"
    if found is not None:
        return f"{found.group(2)}-shot top-1 on {found.group(1)}{percent}"
    return f"{metric}{percent}"


def seeds_text(averaged: Sequence[Mean]) -> str:
    """How many seeds a point has, and what the bars are."""
    counts = sorted({point.num_seeds for point in averaged})
    if counts == [1]:
        return "One seed a point: differences between them may be chance."
    seeds = f"{counted(counts[0], 'seed')}" if len(counts) == 1 else f"{counts[0]} to {counted(counts[-1], 'seed')}"
    lines = "lines join their means" if _has_lines((p.series, p.subset) for p in averaged) else "large marks are means"
    return f"{seeds} a point; {lines}, bars are ±1 standard deviation, small open marks single runs."


def _has_lines(points: Iterable[tuple[str, float]]) -> bool:
    """Whether any series has two sizes to draw a line between."""
    sizes: dict[str, set[float]] = {}
    for label, size in points:
        sizes.setdefault(label, set()).add(size)
    return any(len(found) > 1 for found in sizes.values())


def examples_figure(results: Results) -> Drawing:
    """Figure 1: the metric against the number of pretraining examples. Marks grow with parameters."""
    figure, (axes,) = new_figure(3.9)
    scale, chosen = results.scale, colours(results)
    everyone = [one for members in results.series.values() for one in members]
    sizes = [float(one.subset) for one in everyone]
    biggest = max(one.num_params for one in everyone) or 1
    for label, members in results.series.items():
        points = [point for point in results.means if point.series == label]
        area = 16 + 54 * math.sqrt(members[0].num_params / biggest)
        _line(axes, points, [(one.subset, one.value) for one in members], label, chosen[label], scale, area)
    band = _band(axes, results)
    count_axis(axes, sizes, f"{_EXAMPLES}, log scale")
    axes.set_ylabel(metric_name(results.metric, results.rule))
    behind = _behind(results, sizes)
    if behind:
        paper_lines(axes, behind)
        axes.set_xlim(min(sizes) / 1.3, 303e6 * 3)
    value_axis(axes, results.rule)
    legend(figure, axes)
    seen = sorted({one.examples_seen for one in everyone})
    amount = short(seen[0]) if len(seen) == 1 else f"{short(seen[0])} to {short(seen[-1])}"
    datasets = ", ".join(sorted({one.dataset for one in everyone}))
    caption = (
        f"{counted(len(everyone), 'run')} on {datasets}, each saw {amount} examples, repeats counted. "
        + seeds_text(results.means)
    )
    caption += " The area of a mark grows with the model's parameters." if _differ(everyone) else ""
    caption += f" Shaded: from the worst to the best {band} model." if band else ""
    caption += (
        f" Dashed grey: the paper's Table 5, ImageNet top-1 after fine-tuning ({paper.SOURCE})." if behind else ""
    )
    return Drawing(
        "accuracy_by_examples" if results.rule.is_accuracy else "metric_by_examples", "Data", caption, figure
    )


def _differ(everyone: Sequence[Observation]) -> bool:
    return len({one.num_params for one in everyone}) > 1


def _behind(results: Results, sizes: Sequence[float]) -> list[paper.PaperLine]:
    """The paper's lines, where ours reach their sizes; else they get a figure of their own."""
    return paper.pretraining_data() if results.rule.is_accuracy and max(sizes) >= 1e6 else []


def paper_data_figure(results: Results) -> Drawing | None:
    """The paper's Table 5 by itself, where it cannot stand behind ours."""
    sizes = [float(one.subset) for one in results.collection.observations]
    if not results.rule.is_accuracy or _behind(results, sizes):
        return None
    figure, (axes,) = new_figure(2.5)
    lines = paper.pretraining_data()
    axes.set_ylim(69, 90)
    paper_lines(axes, lines)
    count_axis(axes, [1.3e6, 14e6, 303e6], f"{_EXAMPLES}, log scale", reach=1.6)
    axes.set_xlim(0.9e6, 303e6 * 2.6)
    axes.set_ylabel("ImageNet top-1 (%)")
    figure.subplots_adjust(top=0.95)
    caption = (
        f"Published numbers, not ours: Table 5 of {paper.SOURCE}: top-1 after fine-tuning on ImageNet, pretrained on "
        f"ImageNet, ImageNet-21k and JFT-300M. Our runs are far smaller and of another task, so these stand apart."
    )
    return Drawing("paper_data", "Data, in the paper", caption, figure)


def _band(axes: Axes, results: Results) -> str:
    """Shade from the worst to the best of a ResNet family with several models, as the paper's Figure 3 does."""
    for family in dict.fromkeys(point.family for point in results.means):
        points = [point for point in results.means if point.family == family]
        sizes = sorted({point.subset for point in points})
        if not _is_resnet(family) or len({p.series for p in points}) < 2:
            continue
        values = [[p.mean * results.scale for p in points if p.subset == size] for size in sizes]
        axes.fill_between(sizes, [min(v) for v in values], [max(v) for v in values], color=AXIS, alpha=0.22, lw=0)
        return family
    return ""


def _line(
    axes: Axes,
    points: Sequence[Mean],
    single: Sequence[tuple[float, float]],
    label: str,
    how: tuple[str, str],
    scale: float,
    area: float,
    **more: Any,
) -> None:
    colour, marker = how
    xs, ys = [point.subset for point in points], [point.mean * scale for point in points]
    size = math.sqrt(area)
    axes.plot(xs, ys, color=colour, marker=marker, markersize=size, linewidth=1.7, label=label, zorder=3, **more)
    several = [point for point in points if point.std is not None]
    if not several:
        return
    axes.errorbar(
        [point.subset for point in several],
        [point.mean * scale for point in several],
        yerr=[(point.std or 0.0) * scale for point in several],
        fmt="none",
        color=colour,
        elinewidth=1.1,
        capsize=3,
        zorder=2,
    )
    chosen = {point.subset for point in several}
    axes.plot(
        [x for x, _ in single if x in chosen],
        [y * scale for x, y in single if x in chosen],
        linestyle="none",
        marker=marker,
        markersize=3.2,
        markerfacecolor=SURFACE,
        markeredgecolor=colour,
        markeredgewidth=0.8,
        zorder=4,
    )


def few_shot_figures(results: Results) -> list[Drawing]:
    """Figure 2: few-shot accuracy against subset size; seeds as whiskers from the lowest to the highest."""
    drawings: list[Drawing] = []
    for tag, pairs in results.few_shot.items():
        figure, (axes,) = new_figure(3.5)
        values = {one.directory: value for one, value in pairs}
        for (label, members), how in zip(results.series.items(), colours(results).values(), strict=True):
            sizes = sorted({one.subset for one in members if one.directory in values})
            rows = [
                [values[m.directory] * 100 for m in members if m.subset == n and m.directory in values] for n in sizes
            ]
            if not rows:
                continue
            middle = np.array([np.mean(row) for row in rows])
            ends = [middle - [min(row) for row in rows], [max(row) for row in rows] - middle]
            axes.errorbar(
                sizes,
                middle,
                yerr=ends,
                color=how[0],
                marker=how[1],
                markersize=5,
                linewidth=1.7,
                capsize=3,
                label=label,
                linestyle="--" if _is_resnet(members[0].family) else "-",
            )
        count_axis(axes, [float(one.subset) for one, _ in pairs], f"{_EXAMPLES}, log scale")
        axes.set_ylabel(metric_name(tag, ACCURACY))
        value_axis(axes, ACCURACY)
        legend(figure, axes)
        caption = (
            f"{tag} at the end of {counted(len(pairs), 'run')}: a linear model on frozen features, fitted by "
            f"regularised least squares on a few images of each class. {_few_shot_marks(results, pairs)}"
            f"The numbers of the paper's Figure 4 were never published."
        )
        # The tag is from a log, and the name becomes a file's.
        name = safe_name(tag.replace("/", "_"))[:100]
        taken = [drawing.name for drawing in drawings]
        drawings.append(Drawing(f"{name}-{len(taken)}" if name in taken else name, "Few-shot", caption, figure))
    return drawings


def _is_resnet(family: str) -> bool:
    return any(word in family.lower() for word in ("bit", "resnet"))


def _few_shot_marks(results: Results, pairs: Sequence[tuple[Observation, float]]) -> str:
    """What the lines and whiskers of a few-shot figure are, as far as there are any."""
    labels = {one.directory: label for label, members in results.series.items() for one in members}
    found = [(labels[one.directory], one) for one, _ in pairs if one.directory in labels]
    parts = []
    if _has_lines((label, one.subset) for label, one in found):
        parts.append("lines join the means over seeds")
    if len({(label, one.subset) for label, one in found}) < len(found):
        parts.append("whiskers reach from the lowest to the highest seed")
    if parts and "lines" in parts[0] and any(_is_resnet(one.family) for _, one in found):
        parts.append("ResNets are dashed")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}. " if text else ""


def learning_figure(results: Results, axis: str = "examples") -> Drawing | None:
    """Figure 8: the metric during training, by examples seen or by exaFLOPs."""
    curves = [
        (label, one, results.collection.curves[one.directory].get(results.metric))
        for label, members in results.series.items()
        for one in members
        if one.directory in results.collection.curves
    ]
    shown = [(label, one, series) for label, one, series in curves if series is not None and len(series.steps) > 1]
    shown = [row for row in shown if axis == "examples" or row[1].exaflops]
    if not shown:
        return None
    labels = list(dict.fromkeys(label for label, _, _ in shown)) if axis == "examples" else [""]
    all_labels, labels = labels, labels[:_MOST_PANELS]
    if axis == "examples":
        shown = [row for row in shown if row[0] in labels]
    figure, panels = new_figure(0.95 + 1.75 * len(labels) if axis == "examples" else 3.5, len(labels))
    chosen, sizes = colours(results), sorted({one.subset for _, one, _ in shown})
    factor, flops = compute_unit([one.exaflops or 1.0 for _, one, _ in shown])
    for label, one, series in shown:
        per_step = one.examples_seen / max(1, one.step)
        x = series.steps * per_step
        if axis != "examples":
            x = factor * np.array([one.exaflops_at(float(seen)) or 0.0 for seen in x])
        keep = (x > 0) & np.isfinite(series.values)
        place = labels.index(label) if axis == "examples" else 0
        rank = (sizes.index(one.subset) + 1) / len(sizes)
        panels[place].plot(
            x[keep],
            series.values[keep] * results.scale,
            color=chosen[label][0],
            linewidth=0.6 + 1.3 * rank,
            label=label,
            alpha=0.4 + 0.6 * rank,
        )
    unit = "examples seen, repeats counted" if axis == "examples" else f"training compute so far ({flops})"
    for place, axes in enumerate(panels):
        axes.set_xscale("log")
        plain_log_axis(axes.xaxis)
        if axis == "examples":
            axes.set_title(f"{labels[place]}: {_ladder(shown, labels[place])}", loc="left", fontsize=SMALL, pad=4)
        value_axis(axes, results.rule)
        short_name = "%" if results.rule.is_fraction else "value"
        axes.set_ylabel(metric_name(results.metric, results.rule) if len(panels) == 1 else short_name)
    panels[-1].set_xlabel(f"{unit}, log scale")
    if axis == "examples":
        figure.subplots_adjust(top=1 - 0.3 / figure.get_figheight())
    if axis != "examples":
        _unique_legend(figure, panels[0])
    caption = (
        f"{metric_name(results.metric, results.rule)} while training, {counted(len(shown), 'run')}, each a line"
        + ("; thicker lines are larger subsets" if len(sizes) > 1 else "")
        + (f"; the first {len(labels)} of {len(all_labels)} series" if len(labels) < len(all_labels) else "")
        + ". Examples are step x global batch of the log"
        + ("." if axis == "examples" else "; FLOPs are 6 x multiply-adds x examples.")
    )
    name = "learning_by_examples" if axis == "examples" else "learning_by_flops"
    return Drawing(name, f"Learning curves by {'examples' if axis == 'examples' else 'FLOPs'}", caption, figure)


def _ladder(shown: Sequence[tuple[str, Observation, Any]], label: str) -> str:
    sizes = sorted({one.subset for name, one, _ in shown if name == label})
    if len(sizes) == 1:
        return f"subset {format_count(sizes[0])}"
    return f"subsets {', '.join(format_count(size) for size in sizes)}, thin to thick"


def _unique_legend(figure: Any, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    seen: set[str] = set()
    for handle, label in zip(handles, labels, strict=True):
        if label in seen:
            handle.set_label("_")
        seen.add(label)
    legend(figure, axes)


def coverage_figure(results: Results) -> Drawing:
    """Figure 9: how many seeds of each cell are there, and what became of the others."""
    cells = coverage(results)
    rows = list(dict.fromkeys(label for label, _ in cells))
    sizes = sorted({size for _, size in cells})
    longest = max(len(label) for label in rows)
    figure, (axes,) = new_figure(0.85 + 0.42 * len(rows), left=min(1.9, 0.25 + 0.085 * longest), bottom=0.5)
    axes.grid(visible=False)
    figure.subplots_adjust(top=0.97)
    for (row, label), (column, size) in itertools.product(enumerate(rows), enumerate(sizes)):
        done, failed, unfinished, missing = cells.get((label, size), (0, 0, 0, 0))
        total = done + failed + unfinished + missing
        colour = COLOURS[2] if total and done == total else COLOURS[4] if done else COLOURS[1] if failed else GRID
        box: dict[str, Any] = {
            "facecolor": colour,
            "alpha": 0.35 if total else 0.2,
            "edgecolor": SURFACE,
            "linewidth": 2,
        }
        axes.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, **box)
        notes = [f"{done}/{total}"] if total else ["-"]
        notes += [f"{count} {word}" for count, word in ((failed, "failed"), (unfinished, "open")) if count]
        axes.text(column, row, "\n".join(notes), ha="center", va="center", fontsize=7.5, color=INK, linespacing=1.1)
    axes.set_xticks(range(len(sizes)), [format_count(size) for size in sizes])
    axes.set_yticks(range(len(rows)), [drawable(row) for row in rows], color=TEXT, parse_math=False)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(_EXAMPLES)
    caption = (
        "Runs that count, of those that the logs know or that the other cells lead one to expect (every seed of the "
        "study in every cell)."
    )
    failed, unfinished, missing = (sum(cell[k] for cell in cells.values()) for k in (1, 2, 3))
    words = ["open: running, stopped or killed"] if unfinished else []
    words += ["failed: ended in failure or diverged"] if failed else []
    words += ["the rest are missing" if words else "those that are not there are missing"] if missing else []
    if words:
        caption += f" {'; '.join(words).capitalize()}."
    if failed or unfinished:
        caption += " The table of excluded runs has the reasons."
    return Drawing("coverage", "Coverage", caption, figure)


def coverage(results: Results) -> dict[tuple[str, int], tuple[int, int, int, int]]:
    """{(series, subset): (done, failed, unfinished, missing)}."""
    labels = {members[0].family + "\0" + members[0].model: label for label, members in results.series.items()}
    done: dict[tuple[str, int], set[int]] = {}
    failed: dict[tuple[str, int], set[int]] = {}
    unfinished: dict[tuple[str, int], set[int]] = {}
    for label, members in results.series.items():
        for one in members:
            done.setdefault((label, one.subset), set()).add(one.seed)
    for other in results.collection.excluded:
        info = other.info
        if info is None or other.reason.startswith(("duplicate", "of another study")):
            continue
        key = (labels.get((info.family or info.model) + "\0" + info.model, info.family or info.model), info.subset)
        into = failed if other.reason.startswith(("failed", "diverged")) else unfinished
        into.setdefault(key, set()).add(info.seed)
    everywhere = {*done, *failed, *unfinished}
    seeds = set().union(*done.values(), *failed.values(), *unfinished.values())
    cells = {}
    for label in dict.fromkeys(label for label, _ in everywhere):
        for size in sorted({size for _, size in everywhere}):
            key = (label, size)
            ok = done.get(key, set())
            bad = failed.get(key, set()) - ok
            rest = unfinished.get(key, set()) - ok - bad
            cells[key] = (len(ok), len(bad), len(rest), len(seeds - ok - bad - rest))
    order = [*results.series, *sorted({label for label, _ in cells} - set(results.series))]
    return {key: cells[key] for key in sorted(cells, key=lambda key: (order.index(key[0]), key[1]))}
