"""Points to fit from a plain table: a CSV or TSV file with a header, its rows filtered and grouped."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import redact
from vit_dist.core.text import read_text


@dataclass(frozen=True)
class TablePoints:
    """The points of one group: x, y, and the run of each where a column names it."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


def read_points(
    url: str,
    x: str,
    y: str,
    *,
    group: str | None = None,
    run: str | None = None,
    where: Mapping[str, str] | None = None,
) -> dict[str, TablePoints]:
    """Read the points of each group, in the order of the file.

    Args:
        url: a CSV file with a header line, or with tabs.
        x: column of the sizes.
        y: column of the errors. Empty cells are read as NaN.
        group: column that names the group; without one all points are one group, "".
        run: column that names the training run of a point.
        where: columns and the text a row must have there; numbers are equal as numbers.

    Raises:
        ConfigError: no such column, or no row has what `where` asks for.
        DataError: unreadable, not a table, or text where a number should be; with file, line and column.
    """
    shown = redact(url)
    rows = _rows(url, shown)
    header = next(rows)[1]
    wanted = [("--x", x), ("--y", y), ("--group", group), ("--run", run), *(("--where", name) for name in where or {})]
    columns = {name: _column(shown, header, option, name) for option, name in wanted if name is not None}
    groups: dict[str, TablePoints] = {}
    seen: dict[str, dict[str, None]] = {name: {} for name in where or {}}
    for line, row in rows:
        for name in seen:
            seen[name][row[columns[name]]] = None
        if not all(_same(row[columns[name]], text) for name, text in (where or {}).items()):
            continue
        points = groups.setdefault(row[columns[group]] if group else "", TablePoints())
        points.x.append(_number(shown, line, x, row[columns[x]]))
        points.y.append(_number(shown, line, y, row[columns[y]]))
        if run:
            points.runs.append(row[columns[run]])
    if not groups:
        asked = ", ".join(f"{name}={text}" for name, text in (where or {}).items())
        values = "; ".join(f"{name} has {', '.join(list(texts)[:8])}" for name, texts in seen.items() if texts)
        raise ConfigError(f"{shown}: no row has {asked}; {values}" if values else f"{shown}: no rows under its header")
    return groups


def _rows(url: str, shown: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells, the header first; blank lines are skipped."""
    text = read_text(url)
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter="\t" if "\t" in first and "," not in first else ",")
    width = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if width and len(cells) != width:
                raise DataError(
                    f"{shown}, line {reader.line_num}: {len(cells)} cells, and the header has {width}; "
                    "quote cells that hold a comma"
                )
            width = width or len(cells)
            yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{shown}, line {reader.line_num}: not CSV ({error})") from error
    if not width:
        raise DataError(f"{shown}: an empty file; give a CSV file with a header line")


def _column(shown: str, header: Sequence[str], option: str, name: str) -> int:
    if name not in header:
        raise ConfigError(f"{shown} has no column {name!r} ({option}){did_you_mean(name, header)}")
    if header.count(name) > 1:
        raise DataError(f"{shown} has {header.count(name)} columns named {name!r}; give each a name of its own")
    return header.index(name)


def _same(cell: str, text: str) -> bool:
    if cell == text:
        return True
    try:
        return float(cell) == float(text)
    except ValueError:
        return False


def _number(shown: str, line: int, column: str, cell: str) -> float:
    if not cell:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise DataError(
            f"{shown}, line {line}, column {column!r}: {cell!r} is not a number; write plain numbers such as 0.25 or "
            "3e8, or leave the cell empty where there is no value"
        ) from None
