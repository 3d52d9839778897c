"""The figures of a look. Heat maps are viridis, which also people who see fewer colours read by its lightness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_dist.core.units import counted
from vit_dist.inspect.field import WITHIN
from vit_dist.inspect.look import Look
from vit_dist.inspect.maps import Attended, uniform_distance
from vit_dist.scaling.report.figure_style import (
    COLOURS,
    INK,
    PAPER,
    SURFACE,
    TEXT,
    WIDTH,
    Drawing,
    legend,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEAT = "viridis"
_PAIRS = 3
"""Images beside their maps in a row."""
MAPPED, _MOST_LAYERS, _MOST_TILES = 4, 7, 14
_LABEL, _LONGEST = 7.5, 18
_GAP = 0.06
_COVER, _COVERED_BY = 0.9, COLOURS[4]
"""How much of the image its map covers where that is largest, and in which colour: orange on grey, for all eyes."""

_SQUARE = "#fefefe"
"""White, but not the paper's: it stays so on a dark page."""

Pixels = NDArray[np.float64]


def draw_look(look: Look) -> list[Drawing]:
    """A figure for each view that was looked at."""
    with style():
        return [_DRAW[view](look) for view in _DRAW if view in look.views]


def _rollout(look: Look) -> Drawing:
    attended = _there(look)
    maps = [_overlay(image, _on_grid(row, attended)) for image, row in zip(look.images, attended.rollout, strict=False)]
    columns = min(_PAIRS, len(maps))
    rows = -(-len(maps) // columns)
    figure, cells = _cells(rows, 2 * columns, look.labels)
    for i, picture in enumerate(maps):
        plain, covered = cells[2 * i], cells[2 * i + 1]
        plain.imshow(_rgb(look.images[i]), interpolation="nearest")
        covered.imshow(picture, interpolation="nearest")
        _title(plain, look.labels, i)
    return Drawing(
        "rollout",
        "Where the output looks",
        f"Attention rollout (arXiv 2005.00928) through all layers to {attended.tokens.reader}, for "
        f"{counted(len(maps), 'image')}: the more orange, the more of it comes from there. Each map is stretched to "
        f"its own least and most. As Figure 6 of arXiv 2010.11929.",
        figure,
    )


def _distance(look: Look) -> Drawing:
    from matplotlib.ticker import MaxNLocator

    attended = _there(look)
    figure, (axes,) = new_figure(2.9)
    layers, heads = attended.distance.shape
    x = np.arange(1, layers + 1)
    for head in range(heads):
        label = "a head" if head == 0 else None
        axes.plot(x, attended.distance[:, head].numpy(), "o", color=COLOURS[0], markersize=4, alpha=0.75, label=label)
    axes.plot(x, attended.distance.mean(1).numpy(), color=COLOURS[1], linewidth=1.4, label="mean of the heads")
    uniform = uniform_distance(attended.tokens)
    axes.axhline(uniform, color=PAPER, linestyle=(0, (4, 2.5)), linewidth=1.1, label="all patches alike", zorder=1)
    axes.set_ylim(0, max(1.12 * uniform, 1.05 * float(attended.distance.max())))
    axes.set_xlim(0.5, layers + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel("mean attention distance (pixels)")
    legend(figure, axes)
    height, width = attended.tokens.patch
    return Drawing(
        "distance",
        "How far heads look",
        f"Mean distance between a patch and those that it attends to, over {counted(attended.num_images, 'image')} of "
        f"{look.image_size} pixels; a patch is {height:g} x {width:g} pixels. Class token and registers are left out. "
        f"Dashed: a head that attends to all patches alike ({uniform:.3g} pixels). As Figure 7 (right) and appendix "
        f"D.7 of arXiv 2010.11929.",
        figure,
    )


def _layers(look: Look) -> Drawing:
    attended = _there(look)
    depth = attended.layers.shape[1]
    chosen = _spread(depth, _MOST_LAYERS)
    rows = min(MAPPED, len(attended.layers))
    figure, cells = _cells(rows, 1 + len(chosen), [""], above=0.16)
    for i in range(rows):
        line = cells[i * (1 + len(chosen)) :]
        line[0].imshow(_rgb(look.images[i]), interpolation="nearest")
        for axes, layer in zip(line[1:], chosen, strict=False):
            axes.imshow(_on_grid(attended.layers[i, layer], attended), cmap=_HEAT, interpolation="nearest")
            if i == 0:
                axes.set_title(f"{layer + 1}" if layer else "layer 1", fontsize=_LABEL, color=TEXT, pad=3)
    who = "the class token" if attended.tokens.has_class else "the patches (there is no class token), on average,"
    return Drawing(
        "layers",
        "Where each layer looks",
        f"The attention that {who} gives to each patch, mean over the heads, in "
        f"{'each layer' if len(chosen) == depth else f'{len(chosen)} of {depth} layers'}. Each map is stretched to its "
        f"own least (dark blue) and most (yellow).",
        figure,
    )


def _positions(look: Look) -> Drawing:
    assert look.similarity is not None
    assert look.tokens is not None
    rows, columns = look.tokens.grid
    table = look.similarity.reshape(rows, columns, rows, columns).numpy()
    which = tiles_of(look.tokens.grid)
    picture = _tiles([[table[y, x] for x in which[1]] for y in which[0]])
    figure, axes = _square(picture.shape, right=0.95)
    least = float(look.similarity.min())
    drawn = axes.imshow(picture, cmap=_HEAT, vmin=least, vmax=1, interpolation="nearest")
    _number_tiles(axes, which, table.shape[2:])
    _bar(figure, axes, drawn, "cosine similarity")
    all_shown = len(which[0]) == rows and len(which[1]) == columns
    return Drawing(
        "positions",
        "How alike positions are",
        f"Cosine similarity of the position embedding of one patch with those of all, a tile a patch"
        f"{'' if all_shown else f' (of {len(which[0])} of {rows} rows and {len(which[1])} of {columns} columns)'}"
        f"{'; the embeddings of the first layer, others add their own' if look.own_positions else ''}. As Figure 7 "
        f"(centre) of arXiv 2010.11929.",
        figure,
    )


def _filters(look: Look) -> Drawing:
    assert look.components is not None
    components, shares, layer = look.components
    columns = 7
    cells = [_coloured(one) for one in components]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    picture = _tiles(rows, gap=max(1, round(cells[0].shape[0] * _GAP)))
    figure, axes = _square(picture.shape[:2], right=0.1, left=0.1)
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    first = ", ".join(f"{100 * share:.0f}%" for share in shares[:5].tolist())
    return Drawing(
        "filters",
        "What the first filters are made of",
        f"The first {len(components)} principal components of the filters on the pixels ({layer}), row by row; grey is "
        f"zero. The first five explain {first} of their variance, all {len(components)} of them "
        f"{100 * float(shares.sum()):.0f}%. As Figure 7 (left) of arXiv 2010.11929.",
        figure,
    )


def _field(look: Look) -> Drawing:
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    columns = min(3, len(look.fields))
    rows = -(-len(look.fields) // columns)
    figure, cells = _cells(rows, columns, ["x"])
    for axes, found in zip(cells, look.fields, strict=False):
        pixels = found.gradient.numpy()
        axes.imshow(pixels, cmap=_HEAT, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        corner = [(side - 1 - found.size) / 2 for side in reversed(pixels.shape)]
        axes.add_patch(
            Rectangle((corner[0], corner[1]), found.size, found.size, fill=False, edgecolor=_SQUARE, linewidth=1.1)
        )
        axes.set_title(f"{found.layer}: {found.size:.3g} px", fontsize=_LABEL + 0.5, color=INK, pad=3)
    return Drawing(
        "field",
        "What a unit in the middle sees",
        f"How much the unit in the middle of a layer changes with each pixel, mean over images; yellow is most, and "
        f"colours go with the square root. The white square is as large as all the pixels together that have more than "
        f"{100 * WITHIN:.3g}% of the most: the effective receptive field of arXiv 1701.04128.",
        figure,
    )


_DRAW = {
    "rollout": _rollout,
    "distance": _distance,
    "layers": _layers,
    "positions": _positions,
    "filters": _filters,
    "field": _field,
}


def _there(look: Look) -> Attended:
    assert look.attended is not None
    return look.attended


def _on_grid(row: Tensor, attended: Attended) -> Any:
    return row.reshape(attended.tokens.grid).numpy()


def _rgb(image: Tensor) -> Any:
    return image.permute(1, 2, 0).numpy()


def _overlay(image: Tensor, weights: Any) -> Pixels:
    """The image in grey under its map, which is resized to it by straight lines between the patches' centres."""
    from matplotlib.colors import to_rgb

    least, most = float(weights.min()), float(weights.max())
    stretched = torch.from_numpy((weights - least) / max(most - least, 1e-12)).float()
    size = tuple(image.shape[1:])
    cover = (
        _COVER * torch.nn.functional.interpolate(stretched[None, None], size, mode="bilinear")[0, 0, :, :, None].numpy()
    )
    grey = _rgb(image).mean(-1, keepdims=True) / 255
    covered: Pixels = np.clip(cover * np.array(to_rgb(_COVERED_BY)) + (1 - cover) * grey, 0, 1)
    return covered


def _coloured(component: Tensor) -> Any:
    """[3, P, Q] around zero -> [P, Q, 4] around grey."""
    colours = (0.5 + 0.5 * component / component.abs().max().clamp(min=1e-12)).permute(1, 2, 0).numpy()
    return np.concatenate([colours, np.ones_like(colours[..., :1])], axis=2)


def _tiles(rows: Sequence[Sequence[Any]], *, gap: int = 1) -> Any:
    """Pictures of one size side by side; what is between them is not a number: nothing is drawn there."""
    height, width = rows[0][0].shape[:2]
    is_coloured = rows[0][0].ndim == 3
    shape = (len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap)
    # Of colours a fourth says how much of them there is.
    sheet = np.zeros((*shape, 4)) if is_coloured else np.full(shape, np.nan)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet[y * (height + gap) : y * (height + gap) + height, x * (width + gap) : x * (width + gap) + width] = (
                tile
            )
    return sheet


def tiles_of(grid: tuple[int, int]) -> tuple[list[int], list[int]]:
    """The rows and columns of patches that get a tile of their own: all, or evenly spaced ones of a large grid."""
    return _spread(grid[0], _MOST_TILES), _spread(grid[1], _MOST_TILES)


def _spread(count: int, most: int) -> list[int]:
    """All of so many, or `most` of them: the first, the last, and others evenly between."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _cells(rows: int, columns: int, titles: Sequence[str], *, above: float = 0) -> tuple[Figure, list[Axes]]:
    """Square cells that fill the width, row by row, with room for titles above each, or inches `above` all."""
    from matplotlib.figure import Figure

    edge, gap, line = 0.1, 0.06, 0.19 if any(titles) else 0.02
    side = min(1.7, (WIDTH - 2 * edge - (columns - 1) * gap) / columns)
    width = columns * side + (columns - 1) * gap + 2 * edge
    height = rows * (side + line + gap) + 2 * edge + above
    figure = Figure(figsize=(width, height), dpi=200, facecolor=SURFACE)
    cells = []
    for row in range(rows):
        top = height - edge - above - row * (side + line + gap) - line
        for column in range(columns):
            left = edge + column * (side + gap)
            axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
            # Ticks that nobody sees would be made and looked at, which takes most of the time.
            axes.set(xticks=[], yticks=[])
            axes.set_axis_off()
            cells.append(axes)
    return figure, cells


def _square(shape: tuple[int, ...], *, right: float, left: float = 0.45) -> tuple[Figure, Axes]:
    """A figure for one picture of so many rows and columns, with margins in inches."""
    from matplotlib.figure import Figure

    above, below = 0.15, 0.4 if left > 0.2 else 0.15
    side = 3.9 if left > 0.2 else WIDTH - left - right
    tall = side * shape[0] / shape[1]
    width, height = side + left + right, tall + above + below
    figure = Figure(figsize=(width, height), dpi=200, facecolor=SURFACE)
    return figure, figure.add_axes((left / width, below / height, side / width, tall / height))


def _number_tiles(axes: Axes, which: Sequence[Sequence[int]], tile: tuple[int, ...]) -> None:
    """Rows and columns of patches at the edges, from 1."""
    for axis, chosen, size in ((axes.yaxis, which[0], tile[0]), (axes.xaxis, which[1], tile[1])):
        places = [i * (size + 1) + (size - 1) / 2 for i in range(len(chosen))]
        step = math.ceil(len(chosen) / 14)
        axis.set_ticks(places[::step], [str(i + 1) for i in chosen[::step]])
        axis.set_tick_params(length=0)
    axes.set_xlabel("column of patches")
    axes.set_ylabel("row of patches")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bar(figure: Figure, axes: Axes, drawn: Any, label: str) -> None:
    """A scale of colours to the right of a picture."""
    box = axes.get_position()
    width = figure.get_figwidth()
    beside = figure.add_axes((box.x1 + 0.12 / width, box.y0, 0.12 / width, box.height))
    bar = figure.colorbar(drawn, cax=beside)
    bar.outline.set_visible(False)
    beside.tick_params(length=2)
    bar.set_label(label)


def _title(axes: Axes, labels: Sequence[str], i: int) -> None:
    if i < len(labels) and labels[i]:
        text = labels[i]
        shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        axes.set_title(shown, fontsize=_LABEL, color=TEXT, pad=3, loc="left")
