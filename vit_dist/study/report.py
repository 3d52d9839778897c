"""Observations -> CSV tables and figures in a directory. The same logs give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from vit_dist.core.errors import DataError
from vit_dist.core.files import write_bytes
from vit_dist.study.collect import Collection, Excluded, Observation
from vit_dist.study.figures import curve, save
from vit_dist.study.summary import Mean, is_share, means


@dataclass(frozen=True)
class ReportFiles:
    """What a report wrote."""

    png: Path
    svg: Path
    observations: Path
    means: Path
    excluded: Path


def write_report(collection: Collection, directory: Path) -> ReportFiles:
    """Draw the figure and write the tables into `directory`.

    Raises:
        DataError: no run can be used; the reasons are given.
    """
    if not collection.observations:
        raise DataError(_nothing(collection))
    stem = "accuracy_by_examples" if is_share(collection.metric) else "metric_by_examples"
    files = ReportFiles(
        directory / f"{stem}.png",
        directory / f"{stem}.svg",
        directory / "observations.csv",
        directory / "means.csv",
        directory / "excluded.csv",
    )
    averaged = means(collection.observations)
    figure = curve(collection, averaged)
    save(figure, files.png)
    save(figure, files.svg)
    names = [f.name for f in fields(Observation) if f.compare]
    write_bytes(str(files.observations), table(names, collection.observations))
    write_bytes(str(files.means), table([f.name for f in fields(Mean)], averaged))
    write_bytes(str(files.excluded), table([f.name for f in fields(Excluded)], collection.excluded))
    return files


def table(names: Sequence[str], rows: Iterable[object]) -> bytes:
    """CSV of the named attributes of each row. Floats keep every digit; None is empty; tuples are joined by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in names])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _nothing(collection: Collection) -> str:
    of = f" of study {collection.study!r}" if collection.study else ""
    reasons: dict[str, int] = {}
    for one in collection.excluded:
        reasons[one.reason] = reasons.get(one.reason, 0) + 1
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:5])
    return f"{collection.url}: no finished run{of} with {collection.metric}: {why}"
