"""Collection -> a report: one HTML page, its figures as PNG and SVG, its tables as CSV, everything as JSON.

The same logs give the same bytes on the same installation. What was made once is kept in the cache
(`core/events/cache.py`), by what went into it, so that a second report of unchanged logs takes no time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vit_dist.core.errors import DataError
from vit_dist.core.events.cache import load_entry, store_entry
from vit_dist.core.files import write_bytes
from vit_dist.core.folders import refuse_others
from vit_dist.core.tables import csv_text
from vit_dist.core.units import counted
from vit_dist.scaling.fit.curve import CurveFit
from vit_dist.scaling.observation import Collection, Excluded, Observation
from vit_dist.scaling.results import Results, analyse
from vit_dist.scaling.summary import Mean

HTML = "report.html"
JSON = "report.json"
# What an entry of the cache may be.
_FILE = re.compile(r"[a-z][A-Za-z0-9._+-]{0,150}\.(html|json|png|svg|csv)")
_LARGEST_FILE = 256 << 20
_MOST_FILES = 100
_LIBRARIES = ("numpy", "scipy", "matplotlib", "Jinja2")


@dataclass(frozen=True)
class ReportFiles:
    """What a report wrote: `figures` are PNG files, an SVG stands beside each."""

    html: Path
    json: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file."""
        svg = tuple(path.with_suffix(".svg") for path in self.figures)
        return (self.html, self.json, *self.figures, *svg, *self.tables)


def write_report(collection: Collection, directory: Path, *, cached: bool = True) -> ReportFiles:
    """Write the report into `directory`.

    Args:
        collection: what the logs say.
        directory: made if missing; files of an earlier report there are replaced.
        cached: take what an earlier report of the same logs made.

    Raises:
        ConfigError: the directory holds something else than a report.
        DataError: no run can be used (the reasons are given), or the directory cannot be written.
    """
    check_out(directory)
    if not collection.observations:
        raise DataError(_nothing(collection))
    key = _fingerprint(collection)
    entry = load_entry("reports", key) if cached else None
    files = _unpack(entry) if entry else None
    if files is None:
        files = render(analyse(collection))
        store_entry("reports", key, _pack(files))
    for name, content in files.items():
        write_bytes(str(directory / name), content)
    paths = [directory / name for name in files]
    return ReportFiles(
        directory / HTML,
        directory / JSON,
        tuple(path for path in paths if path.suffix == ".png"),
        tuple(path for path in paths if path.suffix == ".csv"),
    )


def check_out(directory: Path) -> None:
    """Nothing, where a report can be written into a directory: it is new or empty, or holds one.

    Raises:
        ConfigError: something else lies there.
    """
    if not (directory / JSON).is_file():
        refuse_others(directory, lambda _: False, what="a report", do="give another --out")


def render(results: Results) -> dict[str, bytes]:
    """All files of a report, by name."""
    from vit_dist.scaling.report.figure_style import to_png, to_svg
    from vit_dist.scaling.report.page import draw_all, page

    files: dict[str, bytes] = {}
    drawings = draw_all(results)
    for drawing in drawings:
        files[f"{drawing.name}.png"] = to_png(drawing.figure)
        files[f"{drawing.name}.svg"] = to_svg(drawing.figure)
    files |= tables(results)
    files[JSON] = (json.dumps(to_json(results), indent=1, allow_nan=False) + "\n").encode()
    files[HTML] = page(results, drawings, files).encode()
    return files


def tables(results: Results) -> dict[str, bytes]:
    """The CSV tables: runs, means, fits, crossovers, compute, exclusions."""
    collection = results.collection
    names = [f.name for f in fields(Observation) if f.compare]
    compute = [(label, one) for label, members in results.series.items() for one in members]
    frontier = {(p.compute, p.error) for p in results.frontier.points} if results.frontier else set()
    return {
        "observations.csv": table(names, collection.observations),
        "means.csv": table([f.name for f in fields(Mean)], results.means),
        "fits.csv": _csv(
            ["series", "form", "formula", "parameter", "value", "low", "high", "sizes", "points", "score", "estimator"],
            [row for fit in results.fits.values() for row in _fit_rows(fit)],
        ),
        "crossovers.csv": _csv(
            ["winner", "loser", "x", "low", "high", "share_of_bootstraps", "inside_data", "interval_inside_data",
             "range_low", "range_high"],
            [
                (c.winner, c.loser, c.x, c.low, c.high, c.share, c.inside, c.interval_inside, *c.range)
                for c, _, _ in results.crossovers
            ],
        ),
        "compute.csv": _csv(
            ["series", "run", "subset", "num_params", "macs", "examples_seen", "exaflops", "value", "on_frontier"],
            [
                (label, o.run, o.subset, o.num_params, o.macs, o.examples_seen, o.exaflops, o.value,
                 (o.exaflops, results.error(o.value)) in frontier)
                for label, o in compute
            ],
        ),
        "excluded.csv": table([f.name for f in fields(Excluded) if f.compare], collection.excluded),
    }  # fmt: skip


def _fit_rows(fit: CurveFit) -> list[tuple[object, ...]]:
    end = (fit.num_sizes, fit.num_points, fit.score, fit.estimator)
    if not fit.fitted:
        return [(fit.name, fit.form, "", "", None, None, None, *end)]
    rows: list[tuple[object, ...]] = []
    for name, value in fit.params.items():
        low, high = fit.intervals.get(name) or (None, None)
        rows.append((fit.name, fit.form, fit.formula, name, value, low, high, *end))
    return rows


def to_json(results: Results) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    collection = results.collection
    names = [f.name for f in fields(Observation) if f.compare]
    return {
        "study": collection.study,
        "metric": collection.metric,
        "better": collection.rule.better,
        "range": list(collection.rule.range),
        "observations": [
            {**{name: getattr(one, name) for name in names}, "exaflops": one.exaflops}
            for one in collection.observations
        ],
        "means": [dataclasses.asdict(one) for one in results.means],
        "fits": [fit.to_json(draws=False) for fit in results.fits.values()],
        "held_out": [one.to_json() for one in results.held_out],
        "crossovers": [_finite(cross.to_json()) for cross, _, _ in results.crossovers],
        "forecasts": [_finite(one.to_json()) for one in results.forecasts],
        "needed": [_finite(one.to_json()) for one in results.needs],
        "frontier": [vars(point) for point in results.frontier.points] if results.frontier else [],
        "iso_compute": _finite(results.iso.to_json()) if results.iso else None,
        "few_shot": {
            tag: [{"run": one.run, "directory": one.directory, "value": value} for one, value in pairs]
            for tag, pairs in results.few_shot.items()
        },
        "excluded": [{"run": e.run, "directory": e.directory, "reason": e.reason} for e in collection.excluded],
        "remarks": list(collection.remarks),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(names: Sequence[str], rows: Iterable[object]) -> bytes:
    """CSV of the named attributes of each row. Floats keep every digit; None is empty; tuples are joined by spaces."""
    return _csv(names, ([getattr(row, name) for name in names] for row in rows))


def _csv(names: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    return csv_text([names, *rows]).encode()


def _fingerprint(collection: Collection) -> str:
    """What a report depends on: the logs' content, this code, and the libraries that fit and draw."""
    digest = hashlib.sha256()
    # Without the time of day: a set of logs that was copied or read again gives the same report.
    observations = [repr((dataclasses.replace(one, finished=0.0), one.lineage)) for one in collection.observations]
    digest.update(
        json.dumps(
            [collection.study, collection.metric, repr(collection.rule), observations, collection.remarks]
        ).encode()
    )
    digest.update(repr([(one, one.info) for one in collection.excluded]).encode())
    for directory in sorted(collection.curves):
        for tag, series in sorted(collection.curves[directory].items()):
            digest.update(
                f"{directory} {tag}".encode(errors="surrogatepass") + series.steps.tobytes() + series.values.tobytes()
            )
    for path in sorted(Path(__file__).parent.parent.rglob("*")):
        if path.is_file() and path.suffix in {".py", ".j2", ".csv"}:
            digest.update(path.name.encode() + path.read_bytes())
    for library in _LIBRARIES:
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()


def _pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _unpack(content: bytes) -> dict[str, bytes] | None:
    """The files of a report; None where they are none: others may write into a cache too."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            sound = all(_FILE.fullmatch(one.filename) and one.file_size <= _LARGEST_FILE for one in entries)
            if not sound or len(entries) > _MOST_FILES or HTML not in archive.namelist():
                return None
            return {one.filename: archive.read(one) for one in entries}
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, RuntimeError, EOFError):
        return None


def _nothing(collection: Collection) -> str:
    of = f" of study {collection.study!r}" if collection.study else ""
    reasons: dict[str, int] = {}
    for one in collection.excluded:
        reasons[one.reason] = reasons.get(one.reason, 0) + 1
    worst = sorted(reasons.items(), key=lambda item: -item[1])[:5]
    why = "; ".join(f"{counted(count, 'run')}: {reason}" for reason, count in worst)
    return f"{collection.url}: no finished run{of} with {collection.metric}: {why}"
