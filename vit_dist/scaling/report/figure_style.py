"""What all figures share: palette, marks, axes, and saving them to the same bytes each time."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_dist.core.metrics import Metric
from vit_dist.core.terminal import clean
from vit_dist.core.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vit_dist.scaling.paper import PaperLine
    from vit_dist.scaling.results import Results

# Okabe and Ito's palette, told apart also by people who see fewer colours; the yellow is left out: too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, TEXT, AXIS, GRID, PAPER, SURFACE = "#111111", "#4d4d4d", "#9a9a9a", "#e7e7e7", "#8c8c8c", "#ffffff"
WIDTH = 5.4
SMALL = 8.5
_LONGEST_TEXT = 400

# On a page, these colours are CSS variables, so that one drawing serves light, dark and print.
_VARIABLES = {
    INK: "--ink",
    TEXT: "--text",
    AXIS: "--axis",
    GRID: "--grid",
    PAPER: "--paper",
    SURFACE: "--surface",
    **{colour: f"--c{i}" for i, colour in enumerate(COLOURS)},
}
# Marks within a decade of a logarithmic axis, by how far apart its ends are at most; the last that fits counts.
_LADDERS: dict[float, tuple[float, ...]] = {
    60: (1, 2, 5),
    12: (1, 1.5, 2, 3, 5, 7),
    2.5: (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
    "svg.hashsalt": "vit_dist",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Drawing:
    """One figure of a report: file name without suffix, title, what it shows and how it was made, and the figure."""

    name: str
    title: str
    caption: str
    figure: Figure


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Our style, whatever matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def new_figure(height: float, rows: int = 1, *, left: float = 0.62, bottom: float = 0.55) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` axes, one below the other; height and margins in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=200, facecolor=SURFACE)
    figure.subplots_adjust(
        left=left / WIDTH, right=1 - 0.16 / WIDTH, bottom=bottom / height, top=1 - 0.16 / height, hspace=0.42
    )
    axes = [figure.add_subplot(rows, 1, i + 1) for i in range(rows)]
    for one in axes:
        one.set_facecolor(SURFACE)
        one.grid(axis="y", color=GRID, linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def colours(results: Results) -> dict[str, tuple[str, str]]:
    """{series: (colour, marker)}: a colour a family, unless each series has one to itself; a marker a series."""
    families = list(dict.fromkeys(members[0].family for members in results.series.values()))
    own = len(results.series) <= len(COLOURS)
    chosen = {}
    for i, (label, members) in enumerate(results.series.items()):
        place = i if own else families.index(members[0].family)
        chosen[label] = (COLOURS[place % len(COLOURS)], MARKERS[i % len(MARKERS)])
    return chosen


def count_axis(axes: Axes, sizes: Sequence[float], label: str, *, reach: float = 1.3) -> None:
    """A logarithmic axis of counts, labelled at the sizes themselves (as far as they do not crowd)."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(sizes) / reach, max(sizes) * reach
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(spread(sorted(set(sizes)), (high / low) ** 0.09)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(round(x))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def plain_log_axis(axis: Any) -> None:
    """Numbers such as 0.02 and 300 instead of powers, for an axis of two decades or less; powers beyond."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    # Asking the axes, not the axis, brings the limits up to date.
    low, high = sorted(axis.axes.get_xlim() if axis.axis_name == "x" else axis.axes.get_ylim())
    if high / low > 3000:
        return
    ratio = high / low
    subs: tuple[float, ...] = (1, 3)
    for limit, ladder in _LADDERS.items():
        subs = ladder if ratio < limit else subs
    if ratio < 1.4:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        axis.set_major_locator(FixedLocator([sub * 10.0**decade for decade in decades for sub in subs]))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())


def error_axis(axes: Axes, errors: Sequence[float]) -> None:
    """A logarithmic y axis for errors; where all are equal it has room about them."""
    low, high = min(errors), max(errors)
    if high / low < _LEAST_SPAN:
        # Before the scale: that of a span of nothing is a warning.
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / _LEAST_SPAN, middle * _LEAST_SPAN)
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)


def value_axis(axes: Axes, rule: Metric) -> None:
    """A linear y axis for values of a metric, but for room for the marks not beyond what it can have, such as 104%."""
    low, high = axes.get_ylim()
    least, most = (None if end is None else end * rule.scale for end in rule.range)
    room = 0.03 * (high - low)
    bottom = low if least is None else max(low, least - room)
    top = high if most is None else min(high, most + room)
    if bottom < top:
        axes.set_ylim(bottom, top)


def short(value: float) -> str:
    """Three digits, no powers where they are not needed: 0.0123, 4.5, 78.4k."""
    for suffix, multiple in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * multiple:
            return f"{value / multiple:.3g}{suffix}"
    return f"{value:.3g}"


def compute_unit(exaflops: Sequence[float]) -> tuple[float, str]:
    """What to multiply exaFLOPs by, so that they read well, and the unit's name."""
    least = min(exaflops)
    for factor, unit in ((1.0, "exaFLOPs"), (1e3, "petaFLOPs"), (1e6, "teraFLOPs")):
        if least * factor >= 0.5:
            return factor, unit
    return 1e9, "gigaFLOPs"


def spread(sizes: Sequence[float], factor: float) -> list[float]:
    """The sizes to label: all, or where they crowd those at least `factor` times the last one labelled."""
    shown: list[float] = []
    for size in sizes:
        if not shown or size >= shown[-1] * factor:
            shown.append(size)
    return shown


def legend(figure: Figure, axes: Axes, *, columns: int = 3, **more: Any) -> None:
    """The names of all lines above the axes, in rows."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    while columns > 1 and _inches_of_legend(labels, columns) > figure.get_figwidth():
        columns -= 1
    rows = -(-len(labels) // columns)
    height = figure.get_figheight()
    top = 1 - (0.14 + 0.19 * rows) / height
    if top < figure.subplotpars.top:
        figure.subplots_adjust(top=top)
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.02, 1 - 0.04 / height),
        ncols=columns,
        handlelength=1.6,
        columnspacing=1.3,
        borderpad=0.1,
        borderaxespad=0.1,
        labelspacing=0.35,
        **more,
    )


def _inches_of_legend(labels: Sequence[str], columns: int) -> float:
    """About how wide a legend is: matplotlib fills it column by column, each as wide as its longest label."""
    size, longer = divmod(len(labels), columns)
    width, begin = 0.0, 0
    for column in range(columns):
        end = begin + size + (column < longer)
        width += 0.4 + 0.064 * max(map(len, labels[begin:end]), default=0)
        begin = end
    return width


def paper_lines(axes: Axes, lines: Sequence[PaperLine]) -> None:
    """The paper's values: dashed, grey, named at their ends, behind ours."""
    ends = sorted(((line.top1[-1], line.x[-1], line.name) for line in lines), reverse=True)
    for line in lines:
        axes.plot(
            line.x, line.top1, color=PAPER, linestyle=(0, (4, 2.5)), linewidth=1.1, marker=".", markersize=4, zorder=1
        )
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.get_size_inches()[1]  # type: ignore[union-attr]
    least = (high - low) * 0.135 / max(height, 0.1)
    placed: list[tuple[float, float]] = []
    for y, x, name in ends:
        # Names stand at their lines' ends, lower where another stands there; above, where other lines continue.
        if x < 0.55 * max(there for _, there, _ in ends):
            axes.annotate(name, (x, y), (-6, 4), textcoords="offset points", color=PAPER, fontsize=7.5, ha="right")
            continue
        near = [there for place, there in placed if 1 / 2 < place / x < 2]
        at = min([y, *(there - least for there in near)])
        placed.append((x, at))
        axes.annotate(name, (x, at), (5, 0), textcoords="offset points", color=PAPER, fontsize=7.5, va="center")


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, without dates or versions in it."""
    return _save(figure, "png", {"Software": None})


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, without dates or versions in it."""
    return _save(figure, "svg", {"Date": None, "Creator": None})


def _save(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    literal(figure)
    with style(), warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes; the table beside the figure has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def literal(figure: Figure) -> None:
    """Let every text of a figure be drawn as it is written: names come from logs, and `$` would make formulas of them.

    Only what the axes themselves write at their ticks may be a formula: powers of ten.
    """
    from matplotlib.text import Text

    ticks = {
        id(text)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for text in (*axis.get_majorticklabels(), *axis.get_minorticklabels(), axis.get_offset_text())
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in ticks:
            text.set_text(drawable(text.get_text()))
            text.set_parse_math(False)


def drawable(text: str) -> str:
    """A text as it may stand in a figure: without control characters, of bounded length."""
    shown = clean(text)
    return shown if len(shown) <= _LONGEST_TEXT else f"{shown[:_LONGEST_TEXT]}..."


def for_page(svg: bytes, name: str, label: str) -> str:
    """An SVG to stand inside a page: ids of its own, colours as variables, scaled to the width it is given."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    # Comments hold the texts that are drawn; whatever stands in those is no element.
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", _variable, text)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    size = re.search(r'viewBox="([^"]+)"', text)
    box = size.group(1) if size else "0 0 400 300"
    quoted = clean(label).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" role="img" aria-label="{quoted}">'
    # Not as a pattern's replacement: a backslash in the label would mean something there.
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def _variable(match: re.Match[str]) -> str:
    name = _VARIABLES.get(match.group().lower())
    return f"var({name})" if name else match.group()


_LEAST_SPAN = 1.15
"""Of an axis of errors: a span of nothing has no ticks, and a tiny one shows noise as if it were a trend."""

Draw = Callable[["Results"], "Drawing | None"]
