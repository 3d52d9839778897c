"""The tables of `vit-dist compare`: 79 columns where throughput is left out, folded where a terminal is narrower.

The table of models is laid out here and not by core/tables.py: a heading stands over two columns, and where there is no
room its columns go on below, since none of them says least.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_dist.core.units import format_count

if TYPE_CHECKING:
    from vit_dist.compare.rows import Match, Row

# What stands over a column, and over it and its left neighbour together.
_COLUMNS = (
    ("", "model"),
    ("", "family"),
    ("", "params"),
    ("", "GMACs"),
    ("train", "GFLOPs"),
    ("", "state"),
    ("", "all"),
    ("activations", "ckpt"),
    ("exa-", "FLOPs"),
    ("device", "hours"),
    ("", "fwd"),
    ("images/s", "train"),
)
_LEFT = 2


def table(rows: Sequence[Row], *, measured: bool, width: int | None) -> str:
    """Models, a line each.

    Args:
        rows: the models.
        measured: show throughput too; a model that was not measured has a '-'.
        width: columns of the terminal; None: no limit.
    """
    cells = [_cells(row) for row in rows]
    shown = len(_COLUMNS) if measured else len(_COLUMNS) - 2
    widths = [max(len(_COLUMNS[i][1]), *(len(line[i]) for line in cells)) for i in range(shown)]
    text = ""
    for columns in _parts(widths, width):
        text += ("\n" if text else "") + _block(cells, columns, widths)
    return text


def legend(rows: Sequence[Row], *, precision: str, tflops: float, mfu: float, width: int | None) -> str:
    """What the columns mean, with what was assumed."""
    sizes = sorted({row.image_size for row in rows})
    pixels = " or ".join(map(str, sizes))
    return textwrap.fill(
        f"state: weights, gradients and AdamW of one device without sharding, {precision}; activations: of an image, "
        f"all kept, or with checkpointing; K, M, G: powers of 1024 bytes. exaFLOPs: of training on "
        f"{format_count(rows[0].examples)} images of {pixels} pixels; device hours: of the same at {tflops:g} TFLOP/s "
        f"x {mfu:g}.",
        min(width or 100, 100) - 1,
    )


def matches_table(matches: Sequence[Match], by: str) -> str:
    """For each model the nearest of each other family."""
    from vit_dist.core.tables import columns, to_lines

    ratio = "time ratio" if by == "throughput" else f"{by} ratio"
    lines = [(m.model, m.family, m.nearest, f"{m.ratio:.2f}") for m in matches]
    shown = columns(lines, ("model", "family", "nearest", ratio), right={ratio})
    return "".join(f"{line}\n" for line in to_lines(shown))


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        row.family,
        f"{_three(row.params / 1e6)}M",
        _three(row.macs / 1e9),
        _three(row.train_flops / 1e9),
        *(_bytes(size) for size in (row.state_bytes, row.activation_bytes, row.checkpointed_bytes)),
        _three(row.exaflops),
        _three(row.device_hours),
        *("-" if speed is None else _three(speed) for speed in (row.forward_images_s, row.train_images_s)),
    ]


def _parts(widths: Sequence[int], limit: int | None) -> list[list[int]]:
    """Columns that stand beside each other, the name in every part."""
    parts, used = [[0]], widths[0]
    for i in range(1, len(widths)):
        # Two columns under one heading stay together.
        pair = i + 1 < len(widths) and len(_COLUMNS[i + 1][0]) > widths[i + 1]
        needed = widths[i] + 2 + (widths[i + 1] + 2 if pair else 0)
        if limit is not None and used + needed > limit and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(i)
        used += widths[i] + 2
    return parts


def _block(cells: Sequence[Sequence[str]], columns: Sequence[int], widths: Sequence[int]) -> str:
    over = ""
    end = 0
    for i in columns:
        end += widths[i] + 2
        over = over.ljust(end - 2 - len(_COLUMNS[i][0])) + _COLUMNS[i][0] if _COLUMNS[i][0] else over
    lines = [[head for _, head in _COLUMNS], *cells]
    return f"{over}\n" * bool(over) + "".join(_line(line, columns, widths) for line in lines)


def _line(line: Sequence[str], columns: Sequence[int], widths: Sequence[int]) -> str:
    aligned = [line[i].ljust(widths[i]) if i < _LEFT else line[i].rjust(widths[i]) for i in columns]
    return "  ".join(aligned).rstrip() + "\n"


def _three(value: float) -> str:
    """Three digits at least: 2,129, 304, 61.5, 4.09, 0.0027."""
    for digits, least in enumerate((99.95, 9.995, 0.9995)):
        if value >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def _bytes(count: int) -> str:
    for unit, size in (("G", 2**30), ("M", 2**20)):
        if count >= 1000 * size / 1024:
            return f"{_three(count / size)}{unit}"
    return f"{_three(count / 2**10)}K"
