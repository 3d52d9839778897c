"""A look -> pictures (PNG, SVG), a table (CSV) beside each, one page with all, and a record of what was looked at."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_dist import __version__
from vit_dist.core.files import write_bytes
from vit_dist.core.folders import refuse_others
from vit_dist.core.tables import csv_text
from vit_dist.core.units import counted
from vit_dist.inspect.figures import MAPPED, draw_look, tiles_of
from vit_dist.inspect.look import Look
from vit_dist.inspect.maps import uniform_distance
from vit_dist.inspect.views import VIEWS
from vit_dist.scaling.report.figure_style import Drawing, style, to_png, to_svg
from vit_dist.scaling.report.html import fill_page, shown_figures

PAGE, RECORD = "inspect.html", "inspect.json"
_TEMPLATE = Path(__file__).parent / "page.html.j2"

Rows = list[Sequence[object]]


def check_out(directory: Path) -> None:
    """Nothing, where a look can be written into a directory: it is new or empty, or holds one.

    Raises:
        ConfigError: something else lies there.
    """
    if not (directory / RECORD).is_file():
        refuse_others(directory, lambda _: False, what="a look into a model", do="give another --out")


def write_look(look: Look, directory: Path, about: Mapping[str, str] | None = None) -> list[Path]:
    """Write all files of a look; those of an earlier one there are replaced, or removed where there is no new one.

    Args:
        look: what was seen.
        directory: made where it is missing.
        about: what else to say of where it comes from, by name.

    Returns:
        The files, the page first.

    Raises:
        ConfigError: the directory holds something else.
        DataError: it cannot be written.
    """
    check_out(directory)
    files = render_look(look, about or {})
    known = {f"{view}.{ending}" for view in VIEWS for ending in ("png", "svg", "csv")}
    for name in sorted(known - files.keys()):
        (directory / name).unlink(missing_ok=True)
    # The record first: a folder that holds it is one of ours, however far it came.
    for name in sorted(files, key=lambda name: (name != RECORD, name == PAGE)):
        write_bytes(str(directory / name), files[name])
    return [directory / name for name in sorted(files, key=lambda name: (name != PAGE, name == RECORD))]


def render_look(look: Look, about: Mapping[str, str]) -> dict[str, bytes]:
    """All files by name."""
    drawings, files = draw_look(look), dict[str, bytes]()
    with style():
        for drawing in drawings:
            files[f"{drawing.name}.png"] = to_png(drawing.figure)
            files[f"{drawing.name}.svg"] = to_svg(drawing.figure)
            files[f"{drawing.name}.csv"] = csv_text(_TABLES[drawing.name](look)).encode()
    said = {**_said(look), **about}
    files[RECORD] = (json.dumps({**said, "views": look.views, "left_out": look.left_out}, indent=1) + "\n").encode()
    files[PAGE] = _page(look, drawings, files, said).encode()
    return files


def _said(look: Look) -> dict[str, str]:
    said = {"model": look.name, "images": f"{look.num_images} of {look.image_size} x {look.image_size} pixels"}
    if look.tokens is not None:
        rows, columns = look.tokens.grid
        before = [name for name, is_there in (("a class token", look.tokens.has_class),) if is_there]
        others = look.tokens.prefix - len(before)
        before += [counted(others, "other token")] if others else []
        said["tokens"] = f"{rows} x {columns} patches" + (f" after {' and '.join(before)}" if before else "")
        said["read by the head"] = look.tokens.reader
    return {**said, "written by": f"vit_dist {__version__}"}


def _page(look: Look, drawings: Sequence[Drawing], files: Mapping[str, bytes], said: Mapping[str, str]) -> str:
    figures = shown_figures(drawings, files)
    return fill_page(
        _TEMPLATE,
        title=f"Inside {look.name}",
        figures=figures,
        heads=_heads(look),
        left_out=[(", ".join(views), why) for views, why in by_reason(look)],
        said=list(said.items()),
    )


def by_reason(look: Look) -> list[tuple[list[str], str]]:
    """The views that are not there, those with one reason together, and the reason."""
    reasons = dict.fromkeys(look.left_out.values())
    return [([view for view, why in look.left_out.items() if why == reason], reason) for reason in reasons]


def _heads(look: Look) -> list[tuple[str, ...]]:
    """Layer, least, mean and most distance of its heads, and the share of attention that stays on patches."""
    if look.attended is None:
        return []
    distance, share = look.attended.distance, look.attended.on_patches
    return [
        (str(i + 1), f"{d.min():.1f}", f"{d.mean():.1f}", f"{d.max():.1f}", f"{100 * s.mean():.0f}%")
        for i, (d, s) in enumerate(zip(distance, share, strict=True))
    ]


def _rollout(look: Look) -> Rows:
    assert look.attended is not None
    rows: Rows = [("image", "label", "row", "column", "share")]
    for i, weights in enumerate(look.attended.rollout):
        label = look.labels[i] if i < len(look.labels) else ""
        rows += [(i + 1, label, *place, value) for place, value in _placed(weights, look.attended.tokens.grid)]
    return rows


def _distance(look: Look) -> Rows:
    seen = look.attended
    assert seen is not None
    rows: Rows = [
        ("layer", "head", "distance_px", "deviation_over_images_px", "share_on_patches", "images", "uniform_px")
    ]
    uniform = uniform_distance(seen.tokens)
    for layer in range(seen.distance.shape[0]):
        for head in range(seen.distance.shape[1]):
            values = (float(table[layer, head]) for table in (seen.distance, seen.spread, seen.on_patches))
            rows.append((layer + 1, head + 1, *values, seen.num_images, uniform))
    return rows


def _layers(look: Look) -> Rows:
    assert look.attended is not None
    rows: Rows = [("image", "layer", "row", "column", "attention")]
    for i, layers in enumerate(look.attended.layers[:MAPPED]):
        for layer, weights in enumerate(layers):
            placed = _placed(weights, look.attended.tokens.grid)
            rows += [(i + 1, layer + 1, *place, value) for place, value in placed]
    return rows


def _positions(look: Look) -> Rows:
    assert look.similarity is not None
    assert look.tokens is not None
    grid = look.tokens.grid
    rows: Rows = [("row", "column", "other_row", "other_column", "cosine")]
    # Those that are drawn: of large grids all pairs would be millions.
    for y, x in itertools.product(*tiles_of(grid)):
        weights = look.similarity[y * grid[1] + x]
        rows += [(y + 1, x + 1, *place, value) for place, value in _placed(weights, grid)]
    return rows


def _filters(look: Look) -> Rows:
    assert look.components is not None
    components, shares, _ = look.components
    rows: Rows = [("component", "share_of_variance", "colour", "row", "column", "value")]
    for i, (component, share) in enumerate(zip(components, shares.tolist(), strict=True)):
        for colour, plane in zip("rgb", component, strict=True):
            placed = _placed(plane, (plane.shape[0], plane.shape[1]))
            rows += [(i + 1, share, colour, *place, value) for place, value in placed]
    return rows


def _field(look: Look) -> Rows:
    """Sizes, and the gradient along the row and the column of the pixel where it is largest."""
    rows: Rows = [("layer", "size_px", "pixel", "along_row", "along_column")]
    for found in look.fields:
        y, x = divmod(int(found.gradient.argmax()), found.gradient.shape[1])
        lines = zip(found.gradient[y].tolist(), found.gradient[:, x].tolist(), strict=True)
        rows += [(found.layer, found.size, i + 1, *values) for i, values in enumerate(lines)]
    return rows


_TABLES = {
    "rollout": _rollout,
    "distance": _distance,
    "layers": _layers,
    "positions": _positions,
    "filters": _filters,
    "field": _field,
}


def _placed(values: Tensor, grid: tuple[int, int]) -> list[tuple[tuple[int, int], Any]]:
    """Values on a grid, each with its row and column, from 1; six digits."""
    flat = values.flatten().tolist()
    return [((i // grid[1] + 1, i % grid[1] + 1), _digits(value)) for i, value in enumerate(flat)]


def _digits(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value
