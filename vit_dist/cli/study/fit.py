"""`vit-dist study fit`: scaling curves of a plain table, where they cross, and what they forecast."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.places import any_option
from vit_dist.core.tables import make_console, show, table
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from rich.table import Table

    from vit_dist.scaling.fit.curve import CurveFit
    from vit_dist.scaling.tables import TablePoints

_EXAMPLES = """\
examples:
  vit-dist study fit results.csv --x examples --y error
  vit-dist study fit results.csv --x examples --y error --group model --at 300M --target 0.2
  vit-dist study fit report/observations.csv --x subset --y value --accuracy --group family
  vit-dist study fit curves.csv --x "Seen Examples" --y Loss --group Model --where Training=1 --form m4 --json fits.json

y is an error or a loss, lower is better; with --accuracy it is an accuracy between 0 and 1 and 1 - y is fitted. Rows
with one x are seeds of one size. The forms:
  m1    a x^-b                              3 sizes or more
  m2    a x^-b + c                          4
  zhai  a (x + d)^-b + c                    6
  m4    (y - c) / (e0 - y)^alpha = a x^-b   8
auto takes the one that predicts the largest sizes best when it is fitted to the others. Brackets are 95% intervals.
docs/scaling.md says how they are made, and what not to believe.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vit-dist study fit",
        description="Fit scaling curves to a table: error against size, a curve a group, and where the curves cross.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", type=any_option, metavar="TABLE.csv", help="a table with a header line, a path or URL")
    parser.add_argument("--x", required=True, metavar="COLUMN", help="size: examples, FLOPs, parameters, ...")
    parser.add_argument("--y", required=True, metavar="COLUMN", help="error or loss")
    parser.add_argument("--accuracy", action="store_true", help="y is an accuracy between 0 and 1: fit 1 - y")
    parser.add_argument("--group", metavar="COLUMN", help="a curve for each value of this column")
    parser.add_argument("--run", metavar="COLUMN", help="the training run of a row, where runs have several rows")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="only rows that have it")
    parser.add_argument("--form", default="auto", metavar="FORM", help="auto, m1, m2, zhai or m4 (default auto)")
    parser.add_argument(
        "--points",
        default="auto",
        metavar="KIND",
        help="runs: each row a run of its own; curve: rows along training curves, whose neighbours err alike; auto: "
        "curve for 12 sizes or more with one row each (auto)",
    )
    parser.add_argument(
        "--at", action="append", default=[], metavar="X", help="forecast the error at a size, such as 300M"
    )
    parser.add_argument("--target", action="append", default=[], metavar="Y", help="the size needed for an error")
    parser.add_argument(
        "--bootstraps", type=int, default=200, metavar="N", help="resampled fits for intervals (default 200)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of starts and bootstraps (default 0)")
    parser.add_argument("--json", type=any_option, metavar="OUT", help="write everything to this file or URL")
    return parser


def main(argv: list[str]) -> int:
    """See `vit-dist study fit --help`."""
    args = _parser().parse_args(argv)
    where = _where(args.where)
    sizes, targets = [_size("--at", t) for t in args.at], [_target(t, accuracy=args.accuracy) for t in args.target]
    if args.bootstraps < 0:
        raise ConfigError(f"--bootstraps {args.bootstraps}: 0 or more")

    from vit_dist.core.files import write_bytes
    from vit_dist.scaling import FitOptions, crossover, fit_curve, forecast, needed
    from vit_dist.scaling.tables import read_points

    groups = read_points(args.table, args.x, args.y, group=args.group, run=args.run, where=where)
    options = FitOptions(bootstraps=args.bootstraps, seed=args.seed)
    fits = []
    for name, points in groups.items():
        errors = _errors(args.table, args.y, points) if args.accuracy else points.y
        runs = points.runs or None
        fits.append(
            fit_curve(points.x, errors, form=args.form, points=args.points, runs=runs, name=name, options=options)
        )
    crossovers = [crossover(a, b) for a, b in itertools.combinations(fits, 2)]
    forecasts = [forecast(fit, size) for fit in fits for size in sizes]
    needs = [needed(fit, target) for fit in fits for target in targets]
    console = make_console()
    show(console, _table(fits, f"1 - {args.y}" if args.accuracy else args.y, args.x, args.group))
    _print_texts(
        {
            "crossovers": [one.text for one in crossovers],
            "forecasts": [one.text for one in forecasts],
            "needed": [one.text for one in needs],
            "warnings": [f"{fit.name}: {text}" if fit.name else text for fit in fits for text in fit.warnings],
            "how": list(dict.fromkeys(fit.estimator for fit in fits)),
        }
    )
    if args.json:
        content: dict[str, Any] = {
            "table": args.table,
            "x": args.x,
            "y": args.y,
            "accuracy": args.accuracy,
            "where": where,
            "fits": [one.to_json() for one in fits],
            "crossovers": [one.to_json() for one in crossovers],
            "forecasts": [one.to_json() for one in forecasts],
            "needed": [one.to_json() for one in needs],
        }
        write_bytes(args.json, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
        console.print(f"written: {args.json}", markup=False)
    return 0


def _where(words: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        column, sep, value = word.partition("=")
        if not sep or not column:
            raise ConfigError(f"--where {word}: expected COLUMN=VALUE")
        if column in values:
            raise ConfigError(f"--where names the column {column!r} twice")
        values[column] = value
    return values


def _size(option: str, text: str) -> float:
    from vit_dist.core.units import parse_count

    try:
        number = float(text)
    except ValueError:
        try:
            number = float(parse_count(text))
        except ValueError:
            number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{option} {text}: expected a number above 0, such as 300M or 3e8")
    return number


def _target(text: str, *, accuracy: bool) -> float:
    number = _size("--target", text)
    if accuracy and not number < 1:
        raise ConfigError(f"--target {text}: with --accuracy it is an accuracy between 0 and 1")
    return 1 - number if accuracy else number


def _errors(url: str, column: str, points: TablePoints) -> list[float]:
    for value in points.y:
        if value > 1 or value < 0:
            raise DataError(
                f"{url}, column {column!r}: {value:g} is no accuracy between 0 and 1; divide percentages by 100, or "
                "leave --accuracy out where the column holds errors"
            )
    return [1 - value for value in points.y]


def _table(fits: Sequence[CurveFit], y: str, x: str, group: str | None) -> Table:
    from vit_dist.scaling.fit.diagnostics import short

    headings = ("form\nstarts", "points\nrange", "exponent b\n95%", "floor c\n95%", "off by\nheld out")
    caption = (
        "starts: how many found this curve; off by: deviation of log error from the curve; held out: log-RMSE on the "
        "largest sizes, not fitted"
    )
    result = table(f"{y} against {x}", group or "", *headings, align="llr", caption=caption)
    for fit in fits:
        points = str(fit.num_points)
        if fit.num_sizes != fit.num_points:
            points += f" at {counted(fit.num_sizes, 'size')}"
        if not fit.fitted:
            result.add_row(fit.name, fit.form, points, *["-"] * 3)
            continue
        shown = []
        for key in ("b", "c"):
            interval = fit.intervals.get(key)
            value = fit.params.get(key)
            text = "-" if value is None else f"{value:.3f}"
            if interval is not None:
                text += f"\n\\[{interval[0]:.3f}, {interval[1]:.3f}]"
            shown.append(text)
        low, high = fit.x_range
        off = "-" if fit.deviation is None else f"{fit.deviation:.2%}"
        held = "-" if fit.score is None else f"{fit.score:.2%}"
        form = f"{fit.form}\n{fit.starts_agree}/{fit.starts}"
        result.add_row(fit.name, form, f"{points}\n{short(low)}-{short(high)}", *shown, f"{off}\n{held}")
    return result


def _print_texts(parts: dict[str, list[str]]) -> None:
    console = make_console()
    for heading, texts in parts.items():
        if texts:
            console.print(f"{heading}:", markup=False)
            for text in texts:
                console.print(f"  {text}", markup=False)
