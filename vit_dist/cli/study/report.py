"""`vit-dist study report`: from event files to tables and figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.study.options import add_runs, split_words, study_parser
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import redact
from vit_dist.core.places import any_option, any_or_override, local_option
from vit_dist.core.run.names import is_plain_name
from vit_dist.core.tables import make_console, show, table
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vit_dist.scaling.observation import Collection
    from vit_dist.study.grid import StudyConfig


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "report",
        "Read the event files of a study's runs; fit curves; write one HTML page with figures and tables beside it.",
        "demo                                               # runs/demo/report/report.html",
        "demo --out /tmp/report --metric fewshot/mini_5shot",
        "s3://bucket/copies/demo --out report               # no study file needed; --logs where it is a path",
        "--logs logs/ --tag-map timm.yaml --out report      # other frameworks' logs too: see docs/study.md",
        word=any_or_override,
    )
    add_runs(parser)
    parser.add_argument(
        "--logs", type=any_option, metavar="URL", help="directory that holds the event files (default DIR/<study>)"
    )
    parser.add_argument(
        "--out", type=local_option, metavar="DIR", help="where the page and its files go (default DIR/<study>/report)"
    )
    parser.add_argument("--metric", metavar="TAG", help="scalar tag to draw (default: the study's, or val/top1)")
    parser.add_argument(
        "--val-set",
        metavar="NAME",
        help="name or fingerprint of the set it was measured on (default: that of most runs)",
    )
    parser.add_argument(
        "--tag-map", type=local_option, metavar="FILE", help="YAML file that says how to read logs of other frameworks"
    )
    parser.add_argument(
        "--tensorboard",
        type=local_option,
        metavar="DIR",
        help="also write the runs for TensorBoard with examples and GFLOPs as step axes",
    )
    parser.add_argument("--no-cache", action="store_true", help="fit and draw again, also where nothing has changed")
    return parser


def main(argv: list[str]) -> int:
    """See `vit-dist study report --help`."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)

    from vit_dist.core.run.log import VAL_TOP1
    from vit_dist.scaling.collect import collect
    from vit_dist.scaling.report.tensorboard import check_directory, export_tensorboard
    from vit_dist.scaling.report.write import check_out, write_report
    from vit_dist.scaling.tagmap import load_tag_map

    # The URL of logs may stand in the place of a study, which has none.
    urls = [word for word in args.words if "://" in word and "=" not in word.partition("://")[0]]
    if urls and (args.logs or len(urls) > 1):
        raise ConfigError(f"{parser.prog}: give the logs once: {', '.join(map(redact, [*urls, args.logs or '']))}")
    args.logs, args.words = (urls or [args.logs])[0], [word for word in args.words if word not in urls]
    name, study = _study(args, parser.prog)
    # Before logs are read, which may take minutes.
    if args.out is not None:
        check_out(args.out)
    if args.tensorboard is not None:
        check_directory(args.tensorboard)
    logs = args.logs or str(args.runs / str(name))
    metric = args.metric or (study.metric if study else VAL_TOP1)
    tag_map = load_tag_map(args.tag_map) if args.tag_map else None
    declared = study.metrics if study else {}
    collection = collect(logs, study=name, metric=metric, tag_map=tag_map, declared=declared, val_set=args.val_set)
    if study is not None:
        collection = _of_the_grid(collection, study)
    out = args.out or _default_out(args.runs, collection.study or "runs")
    files = write_report(collection, out, cached=not args.no_cache)
    console = make_console()
    show(console, _means_table(collection))
    _print_notes(console, collection, study)
    console.print(f"report  {files.html}", markup=False)
    console.print(
        f"        {counted(len(files.figures), 'figure')} as PNG and SVG, such as {files.figures[0]}", markup=False
    )
    console.print(f"        {counted(len(files.tables), 'table')} as CSV, and {files.json.name}", markup=False)
    if args.tensorboard:
        export_tensorboard(collection, args.tensorboard)
        console.print(f"by examples and by GFLOPs: tensorboard --logdir {args.tensorboard}", markup=False)
    return 0


def _default_out(runs: Path, study: str) -> Path:
    # The name comes out of event files that anybody may have written.
    if not is_plain_name(study):
        raise ConfigError(
            f"the study in these logs calls itself {study[:100]!r}, which is no name for a folder; say with --out "
            f"where the report goes"
        )
    return runs / study / "report"


def _study(args: argparse.Namespace, prog: str) -> tuple[str | None, StudyConfig | None]:
    """The name of the study to report, None for the only one in the logs, and its file, where there is one."""
    from vit_dist.study.grid import load_study

    if not args.words and args.logs:
        return None, None
    name, overrides = split_words(args.words, prog)
    try:
        study = load_study(name, overrides)
    except ConfigError:
        # Logs are enough: beside --logs the word may be the study's name in them, with no file of it here.
        if not args.logs and Path(name).is_dir():
            raise ConfigError(
                f"{name}: a directory, which is no study; what its logs say is reported by `{prog} --logs {name}`"
            ) from None
        if not args.logs or overrides or Path(name).suffix:
            raise
        return name, None
    return study.name, study


def _of_the_grid(collection: Collection, study: StudyConfig) -> Collection:
    """The runs that are cells of the study: what else was once trained beside them is no point of its curves."""
    from dataclasses import replace

    from vit_dist.scaling.observation import Excluded
    from vit_dist.study.grid import plan

    cells = {cell.name: cell for cell in plan(study)}
    others = [one for one in collection.observations if one.run not in cells]
    inside = [one for one in collection.observations if one.run in cells]
    reason = "not a cell of the study as its file (and the command line) has it now"
    changed = [one.run for one in inside if one.recipe_hash != cells[one.run].hash]
    remarks = list(collection.remarks)
    if changed:
        shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        remarks.append(f"{shown}: trained by another recipe than the study's file has now")
    return replace(
        collection,
        observations=tuple(inside),
        excluded=(*collection.excluded, *(Excluded(one.run, one.directory, reason) for one in others)),
        remarks=tuple(remarks),
    )


def _print_notes(console: Console, collection: Collection, study: StudyConfig | None) -> None:
    """What was left out, what is odd about the logs, and which cells of the study are not in them."""
    from vit_dist.study.grid import plan

    for one in collection.excluded:
        console.print(f"left out: {one.run} ({one.directory}): {one.reason}", markup=False)
    for remark in collection.remarks:
        console.print(f"note: {remark}", markup=False)
    observed = {one.run for one in collection.observations}
    missing = [cell.name for cell in plan(study) if cell.name not in observed] if study else []
    if missing:
        shown = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
        count = counted(len(missing), "cell of the study is", "cells of the study are")
        console.print(f"note: {count} not in the figure: {shown}", markup=False)


def _means_table(collection: Collection) -> Table:
    from rich.markup import escape

    from vit_dist.scaling.summary import mean_rows, means

    averaged = means(collection.observations)
    families = list(dict.fromkeys(point.series for point in averaged))
    scale, (unit, digits) = collection.rule.scale, (" (%)", 1) if collection.rule.is_fraction else ("", 4)
    better = f"{collection.rule.better} is better"
    title = f"{collection.metric}{unit}, {better}, by pretraining examples: mean ± standard deviation \\[seeds]"
    result = table(title, "examples", *families, align="r")
    for row in mean_rows(averaged, families, scale=scale, digits=digits):
        result.add_row(*map(escape, row))
    return result
