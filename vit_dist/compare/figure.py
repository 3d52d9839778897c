"""Models as points: the training cost of an image against parameters, and against throughput where it was measured."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_dist.compare.rows import Row
from vit_dist.core.errors import DataError
from vit_dist.core.files import write_bytes
from vit_dist.scaling.report.figure_style import literal, plain_log_axis

COLOURS = {"vit": "#0072B2", "bit": "#7F7F7F", "hybrid": "#D55E00"}
MARKERS = {"vit": "o", "bit": "s", "hybrid": "D"}
ENDINGS = (".png", ".svg", ".pdf")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw and write a picture; its ending says the kind (.png, .svg, .pdf).

    Raises:
        DataError: it cannot be written, or the ending is of no picture.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    measured = [row for row in rows if row.train_images_s]
    panels = 2 if measured else 1
    figure, axes = plt.subplots(1, panels, figsize=(6.2 * panels, 4.6), squeeze=False, layout="constrained")
    for axis, shown, label in (
        (axes[0][0], rows, "parameters"),
        *([(axes[0][1], measured, "training images / s on this device")] if measured else []),
    ):
        for family in dict.fromkeys(row.family for row in shown):
            of_family = [row for row in shown if row.family == family]
            xs = [row.params if label == "parameters" else (row.train_images_s or 0.0) for row in of_family]
            ys = [row.train_flops / 1e9 for row in of_family]
            colour = COLOURS.get(family, "#009E73")
            axis.scatter(xs, ys, label=family, color=colour, marker=MARKERS.get(family, "^"), s=36, zorder=3)
            for row, x, y in zip(of_family, xs, ys, strict=True):
                # ViTs lie beside hybrids of their own size: their names go to the other side.
                place, side = ((-6, -3), "right") if family == "vit" else ((6, -3), "left")
                style: Any = {"textcoords": "offset points", "fontsize": 7, "color": colour, "ha": side}
                axis.annotate(row.model, (x, y), place, **style)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="training GFLOPs an image")
        axis.grid(alpha=0.25, which="both", linewidth=0.5)
        axis.margins(x=0.15)
        plain_log_axis(axis.yaxis)
        plain_log_axis(axis.xaxis)
    axes[0][0].legend(frameon=False)
    literal(figure)
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=160, format=path.suffix.removeprefix(".") or None)
    except ValueError as error:
        raise DataError(f"{path}: the figure cannot be drawn: {error}") from None
    finally:
        plt.close(figure)
    write_bytes(str(path), picture.getvalue())
