"""The page of a report: which figures it has, what its tables say, and the template they go into."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_dist import __version__
from vit_dist.core.units import format_count, format_flops
from vit_dist.scaling.compute import total_exaflops
from vit_dist.scaling.fit.diagnostics import whereabouts
from vit_dist.scaling.observation import Observation
from vit_dist.scaling.report import figures, figures_branches, figures_compute, figures_fit
from vit_dist.scaling.report.figure_style import Drawing, short, style
from vit_dist.scaling.report.html import fill_page, shown_figures
from vit_dist.scaling.results import Results
from vit_dist.scaling.summary import mean_rows

_TEMPLATE = Path(__file__).parent / "report.html.j2"


@dataclass(frozen=True)
class Table:
    """A table of the page. `numbers` are the columns set to the right; `csv` the file with all digits."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int]
    csv: str
    note: str = ""


def draw_all(results: Results) -> list[Drawing]:
    """Every figure whose data is there, in the order of the page."""
    with style():
        drawings: list[Drawing | None] = [
            figures.examples_figure(results),
            figures.paper_data_figure(results),
            figures_branches.horizons_figure(results),
            *figures.few_shot_figures(results),
            figures_fit.fit_figure(results),
            figures_fit.residual_figure(results),
            figures_fit.crossover_figure(results),
            figures_compute.compute_figure(results),
            figures_compute.paper_compute_figure(results),
            figures_compute.iso_figure(results),
            figures.learning_figure(results),
            figures.learning_figure(results, "flops"),
            figures.coverage_figure(results),
        ]
    return [drawing for drawing in drawings if drawing is not None]


def page(results: Results, drawings: Sequence[Drawing], files: Mapping[str, bytes]) -> str:
    """The HTML page; needs nothing beside it."""
    shown = shown_figures(drawings, files)
    return fill_page(
        _TEMPLATE,
        title=results.collection.study or "runs",
        metric=figures.metric_name(results.metric, results.rule),
        summary=_summary(results),
        warnings=_warnings(results),
        figures=shown,
        tables=_tables(results),
        provenance=_provenance(results, files),
    )


def _summary(results: Results) -> list[str]:
    """What there is to say in a few sentences: which way is better, means at the ends, crossovers, forecasts."""
    sentences = [
        f"{_capital_first(figures.metric_name(results.metric, results.rule))}: {results.rule.better} is better."
    ]
    for label in results.series:
        points = [point for point in results.means if point.series == label]
        first, last = points[0], points[-1]
        text = f"{label}: {_value(results, first.mean)} with {format_count(first.subset)} examples"
        if len(points) > 1:
            text += f", {_value(results, last.mean)} with {format_count(last.subset)}"
        sentences.append(text + ".")
    sentences += [f"{_capital(cross.text)}." for cross, _, _ in results.crossovers]
    return sentences


def _capital_first(text: str) -> str:
    """For a sentence that begins with words; a tag, such as val/loss, is what it is called."""
    return text if "/" in text.split(" ")[0] else text[:1].upper() + text[1:]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("no ") else text


def _warnings(results: Results) -> list[str]:
    warnings = [f"{fit.name}: {warning}." for fit in results.fits.values() for warning in fit.warnings]
    without = [fit.name for fit in results.fits.values() if fit.fitted and fit.name not in results.curves]
    if without:
        warnings.append(f"{', '.join(without)}: so no curve is drawn, and no crossing or forecast read off one.")
    if not results.fits:
        warnings.append(
            f"{results.metric} has no highest value that an error could be counted from: nothing was fitted."
        )
    return warnings + [f"{remark}." for remark in results.collection.remarks]


def _value(results: Results, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 100:.1f}%" if results.rule.is_fraction else f"{value:.4g}"


def _number(value: float | None) -> str:
    return "-" if value is None else short(value)


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None and high is None else f"{_number(low)} to {_number(high)}"


def _tables(results: Results) -> list[Table]:
    tables = [_means(results)]
    if results.fits:
        tables.append(_fits(results))
    if results.crossovers:
        tables.append(_crossovers(results))
    if results.forecasts:
        tables.append(_forecasts(results))
    if any(one.exaflops for one in results.collection.observations):
        tables.append(_compute(results))
    tables.append(_runs(results))
    if results.collection.excluded:
        rows = [(e.run, e.reason, e.directory) for e in results.collection.excluded]
        tables.append(Table("Excluded runs", ("run", "why", "directory"), rows, frozenset(), "excluded.csv"))
    return tables


def _means(results: Results) -> Table:
    labels = list(results.series)
    rows = mean_rows(results.means, labels, scale=results.scale, digits=2 if results.rule.is_fraction else 4)
    note = "Mean over seeds ± sample standard deviation [number of seeds]."
    head = ("examples", *labels)
    title = f"{figures.metric_name(results.metric, results.rule)} by examples"
    return Table(title, head, rows, frozenset(range(len(head))), "means.csv", note)


def _fits(results: Results) -> Table:
    rows = []
    held_out = {one.fit.name: one for one in results.held_out}
    for fit in results.fits.values():
        params = [
            f"{name} = {_number(value)}"
            + (f" [{_interval(*interval)}]" if (interval := fit.intervals.get(name)) else "")
            for name, value in fit.params.items()
        ]
        one = held_out.get(fit.name)
        ahead = "-" if one is None else f"{one.predicted:.4f} for {one.measured:.4f} at {format_count(one.size)}"
        rows.append(
            (
                fit.name,
                f"{fit.form}: {fit.formula}" if fit.fitted else "none",
                ", ".join(params) or "-",
                f"{fit.num_sizes} / {fit.num_points}",
                "-" if fit.score is None else f"{100 * fit.score:.2g}%",
                f"{fit.starts_agree} of {fit.starts}",
                ahead,
            )
        )
    head = ("series", "form", "parameters [95%]", "sizes / runs", "held-out log-RMSE", "starts agree", "largest size")
    note = (
        "Error against pretraining examples. Held-out log-RMSE and the last column: a fit without the largest sizes, "
        "judged on them. Estimator: " + " ".join(sorted({fit.estimator + "." for fit in results.fits.values()}))
    )
    return Table("Fits", head, rows, frozenset({3, 4, 5}), "fits.csv", note)


def _crossovers(results: Results) -> Table:
    rows = [
        (
            f"{c.winner} over {c.loser}",
            "no crossing in range" if c.x is None else _number(c.x),
            "-" if c.x is None else _interval(c.low, c.high),
            "-" if c.x is None else whereabouts(c.inside, c.interval_inside),
            "-" if c.share is None else f"{c.share:.0%}",
            ", ".join(c.per_form),
            f"{_number(c.range[0])} to {_number(c.range[1])}",
        )
        for c, _, _ in results.crossovers
    ]
    head = ("who overtakes", "at", "95% interval", "where", "draws that cross", "forms", "range looked at")
    note = (
        "Where the crossing or its interval lies beyond the data, the interval spans all plausible forms. '-' at an "
        "end: open."
    )
    return Table("Crossovers", head, rows, frozenset({1, 2, 4}), "crossovers.csv", note)


def _forecasts(results: Results) -> Table:
    needs = {need.name: need for need in results.needs}
    rows = []
    for one in results.forecasts:
        need = needs[one.name]
        rows.append(
            (
                one.name,
                format_count(round(one.x)),
                "-" if one.error is None else f"{one.error:.4f}",
                "-" if one.low is None or one.high is None else f"{one.low:.4f} to {one.high:.4f}",
                f"{need.target:.4f}",
                _number(need.x) if need.x is not None else "never",
                _interval(need.low, need.high),
                whereabouts(need.inside, need.interval_inside),
            )
        )
    head = ("series", "at examples", "error", "95% interval", "target error", "needs", "95% interval", "where")
    note = (
        "Left: error at ten times the largest size, extrapolated. Right: examples until the best error of any run here."
    )
    return Table("Forecasts", head, rows, frozenset(range(1, 7)), "fits.csv", note)


def _compute(results: Results) -> Table:
    rows = []
    for label, members in results.series.items():
        total = total_exaflops(members)
        macs, values = members[0].macs, [one.value for one in members]
        best = values[results.rule.best(values) or 0]
        rows.append(
            (
                label,
                f"{members[0].num_params:,}",
                "-" if macs is None else f"{macs / 1e9:.4g}",
                str(len(members)),
                format_flops(total * 1e18) if total else "-",
                _value(results, best),
                members[0].macs_method or "-",
            )
        )
    head = ("series", "parameters", "GMAC an image", "runs", "compute, all runs", "best run", "counted by")
    note = "FLOPs of training = 6 x multiply-adds x examples seen; compute.csv has those of each run."
    if any(one.lineage for members in results.series.values() for one in members):
        note += (
            " Of a branch they are those of its trunk and its own, each at its own model and image size; in the "
            "compute of all runs a trunk counts once."
        )
    return Table("Compute", head, rows, frozenset({1, 2, 3, 4, 5}), "compute.csv", note)


def _runs(results: Results) -> Table:
    rows = [
        (
            one.run,
            label,
            f"{one.subset:,}",
            str(one.seed),
            _value(results, one.value),
            f"{_value(results, one.best)} at {one.best_step:,}",
            f"{one.step:,}",
            f"{one.examples_seen:,}",
            one.engine or "-",
        )
        for label, members in results.series.items()
        for one in members
    ]
    head = ("run", "series", "examples", "seed", "last", "best, at step", "steps", "examples seen", "engine")
    return Table("Runs", head, rows, frozenset({2, 3, 4, 5, 6, 7}), "observations.csv")


def _measured_on(one: Observation) -> str:
    return f"{one.measured_on} {one.measured_on_fingerprint}".strip() or "(not said)"


def _provenance(results: Results, files: Mapping[str, bytes]) -> list[tuple[str, str]]:
    runs = results.collection.observations
    return [
        ("study", results.collection.study or "(none named)"),
        ("metric", results.metric),
        ("data", "; ".join(sorted({f"{one.dataset} {one.dataset_fingerprint[:16]}".strip() for one in runs}))),
        ("measured on", "; ".join(sorted({_measured_on(one) for one in runs}))),
        ("runs", f"{len(runs)} counted, {len(results.collection.excluded)} excluded"),
        ("recipes", f"{len({one.recipe_hash for one in runs})} different"),
        ("written by", "vit_dist " + ", ".join(sorted({one.code_version or "(other framework)" for one in runs}))),
        ("report by", f"vit_dist {__version__}, from TensorBoard event files alone"),
        ("observations.csv", f"sha256 {hashlib.sha256(files['observations.csv']).hexdigest()[:16]}"),
    ]
