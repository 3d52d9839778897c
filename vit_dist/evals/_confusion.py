"""Which classes are taken for which: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.files import write_bytes
from vit_dist.core.tables import csv_text

_NAMED = 60
"""Classes whose names are written at the axes of a picture; cells of this many get numbers at _NUMBERED and fewer."""
_NUMBERED = 20
_LONGEST = 24


def write_confusion(counts: NDArray[np.int64], classes: Sequence[str], name: str, folder: Path) -> None:
    """Write confusion.csv, .png and .svg.

    Args:
        counts: [K, K]: examples by label (row) and prediction.
        classes: their names, as far as there are any.
        name: of the set.
        folder: where the files go.

    Raises:
        DataError: one cannot be written.
    """
    names = [classes[i] if i < len(classes) and classes[i] else str(i) for i in range(len(counts))]
    rows: list[list[object]] = [["label \\ predicted", *names]]
    rows += [[names[i], *map(int, row)] for i, row in enumerate(counts)]
    write_bytes(str(folder / "confusion.csv"), csv_text(rows).encode())
    for ending, content in _drawn(counts, names, name).items():
        write_bytes(str(folder / f"confusion.{ending}"), content)


def _drawn(counts: NDArray[np.int64], names: Sequence[str], name: str) -> dict[str, bytes]:
    """The picture as PNG and SVG: of each label's examples the share of each prediction."""
    from matplotlib.figure import Figure

    from vit_dist.scaling.report.figure_style import SURFACE, drawable, style, to_png, to_svg

    num = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    correct, examples = int(np.trace(counts)), int(counts.sum())
    with style():
        side = min(12.0, 3.2 + 0.28 * min(num, 32))
        figure = Figure(figsize=(side + 0.9, side), dpi=160, facecolor=SURFACE, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        axes.set_title(f"{name}: {correct:,} of {examples:,} right ({100 * correct / max(1, examples):.1f}%)")
        if num <= _NAMED:
            shown = [one if len(one) <= _LONGEST else f"{one[: _LONGEST - 1]}..." for one in map(drawable, names)]
            size = 8.5 if num <= 32 else 5.5
            axes.set_xticks(range(num), shown, rotation=90, fontsize=size, parse_math=False)
            axes.set_yticks(range(num), shown, fontsize=size, parse_math=False)
        if num <= _NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    dark = shares[row, column] > 0.6
                    axes.text(
                        column,
                        row,
                        f"{count:,}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "#111111",
                    )
        figure.colorbar(image, ax=axes, label="share of the label's examples", fraction=0.046)
    return {"png": to_png(figure), "svg": to_svg(figure)}
