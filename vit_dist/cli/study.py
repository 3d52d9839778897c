"""`vit-dist study`: train a grid of runs on this machine, and read their logs back as curves."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vit_dist.study.collect import Collection
    from vit_dist.study.grid import Cell, StudyConfig
    from vit_dist.study.local import CellState

SUMMARY = "train a grid of runs (family x subset x seed) and draw the curves from their logs"

_EXAMPLES = """\
examples:
  vit-dist study plan demo                             # the cells of configs/studies/demo.yaml
  vit-dist study run demo --nproc 2                    # train them; the same command goes on after a stop
  vit-dist study run my.yaml seeds=[0] optim.lr=1e-3   # other seeds, and another learning rate for every cell
  vit-dist study status demo                           # how far each cell is
  vit-dist study report demo                           # figure and tables under runs/demo/report
  vit-dist study report --logs s3://bucket/tb --out r  # event files are enough, wherever they are
"""


def main(argv: list[str]) -> int:
    """Run one verb of `vit-dist study`; returns the exit code."""
    verbs = {"run": _run, "report": _report, "plan": _plan, "status": _status}
    if not argv or argv[0] in {"-h", "--help"}:
        parser = argparse.ArgumentParser(
            prog="vit-dist study",
            description=SUMMARY[0].upper() + SUMMARY[1:] + ".",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("verb", choices=list(verbs), help="what to do; `vit-dist study VERB --help` says more")
        parser.print_help()
        return 0 if argv else 2
    if argv[0] not in verbs:
        raise ConfigError(f"vit-dist study: unknown verb {argv[0]!r}{did_you_mean(argv[0], verbs)}")
    return verbs[argv[0]](argv[1:])


def _parser(verb: str, description: str, *examples: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"vit-dist study {verb}",
        description=description,
        epilog="examples:\n" + "\n".join(f"  vit-dist study {verb} {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="STUDY [k=v ...]",
        help="a study file, or the name of one in configs/studies; k=v changes a key of the study, or, for any other "
        "key, of the recipe of every cell",
    )
    return parser


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", metavar="DIR", default="runs", help="run directories are DIR/<study>/<cell> (runs)")


def _split(words: Sequence[str], verb: str) -> tuple[str, list[str]]:
    """The study's name and the overrides."""
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        got = f"{len(names)}: {', '.join(names)}" if names else "none"
        raise ConfigError(f"vit-dist study {verb}: give one study, got {got}")
    return names[0], [word for word in words if "=" in word]


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _run(argv: list[str]) -> int:
    parser = _parser(
        "run",
        "Train every cell of a study that is not done, one after another, on this machine.",
        "demo",
        "demo --nproc 2 --runs /scratch/runs",
        "demo seeds=[0] subsets=[500,2000]",
    )
    _add_runs(parser)
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes a run (1)")
    parser.add_argument("--keep-going", action="store_true", help="train the other cells when one fails")
    args = parser.parse_intermixed_args(argv)
    name, overrides = _split(args.words, "run")

    from launcher.local import run_local
    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.local import run_cells

    if args.nproc < 1:
        raise ConfigError(f"--nproc {args.nproc}: at least one process is needed")
    study = load_study(name, overrides)
    cells, console = plan(study), _console()
    directory = Path(args.runs) / study.name
    console.print(f"study {study.name}: {_grid_line(study)}, in {directory}", markup=False)
    run_cells(
        cells,
        directory,
        lambda recipe, run_dir: run_local(recipe, run_dir, nproc=args.nproc),
        lambda line: console.print(line, markup=False),
        again=shlex.join(["vit-dist", "study", "run", *argv]),
        keep_going=args.keep_going,
    )
    options = [] if args.runs == "runs" else ["--runs", args.runs]
    report = shlex.join(["vit-dist", "study", "report", *args.words, *options])
    console.print(f"study {study.name}: all {len(cells)} cells are done; next: {report}", markup=False)
    return 0


def _grid_line(study: StudyConfig) -> str:
    counts = (("family", "families", study.families), ("size", "sizes", study.subsets), ("seed", "seeds", study.seeds))
    return " x ".join(f"{len(values)} {one if len(values) == 1 else many}" for one, many, values in counts)


def _report(argv: list[str]) -> int:
    parser = _parser(
        "report",
        "Read the event files of a study's runs and draw accuracy against number of pretraining examples.",
        "demo",
        "demo --out /tmp/report",
        "--logs s3://bucket/tensorboard/demo --out report   # no study file needed",
    )
    _add_runs(parser)
    parser.add_argument("--logs", metavar="URL", help="directory that holds the event files (DIR/<study>)")
    parser.add_argument("--out", metavar="DIR", help="where figure and tables go (DIR/<study>/report)")
    parser.add_argument("--metric", metavar="TAG", help="scalar tag to draw (the study's, or val/top1)")
    args = parser.parse_intermixed_args(argv)

    from vit_dist.core.runlog import VAL_TOP1
    from vit_dist.study.collect import collect
    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.report import write_report

    study: StudyConfig | None = None
    name: str | None = None
    if args.words or not args.logs:
        name, overrides = _split(args.words, "report")
        try:
            study = load_study(name, overrides)
            name = study.name
        except ConfigError:
            # Logs are enough: beside --logs the word may be the study's name in them, with no file of it here.
            if not args.logs or overrides or Path(name).suffix:
                raise
    logs = args.logs or str(Path(args.runs) / str(name))
    metric = args.metric or (study.metric if study else VAL_TOP1)
    collection = collect(logs, study=name, metric=metric)
    out = Path(args.out) if args.out else Path(args.runs) / (collection.study or "runs") / "report"
    files = write_report(collection, out)
    console = _console()
    console.print(_means_table(collection))
    for one in collection.excluded:
        console.print(f"left out: {one.run} ({one.directory}): {one.reason}", markup=False)
    for remark in collection.remarks:
        console.print(f"note: {remark}", markup=False)
    if study is not None:
        have = {one.run for one in collection.observations}
        missing = [cell.name for cell in plan(study) if cell.name not in have]
        if missing:
            shown = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
            console.print(f"note: {len(missing)} cells of the study are not in the figure: {shown}", markup=False)
    console.print(f"figure  {files.png}\n        {files.svg}", markup=False)
    console.print(f"tables  {files.observations}\n        {files.means}\n        {files.excluded}", markup=False)
    return 0


def _means_table(collection: Collection) -> Table:
    from rich.table import Table

    from vit_dist.study.summary import is_share, means

    averaged = means(collection.observations)
    families = list(dict.fromkeys(point.family for point in averaged))
    percent = is_share(collection.metric)
    scale, unit, digits = (100.0, " (%)", 1) if percent else (1.0, "", 4)
    title = f"{collection.metric}{unit} by pretraining examples: mean ± standard deviation \\[seeds]"
    result = Table(title=title, title_justify="left")
    result.add_column("examples", justify="right")
    for family in families:
        result.add_column(family, justify="right")
    cells = {(point.family, point.subset): point for point in averaged}
    for size in sorted({point.subset for point in averaged}):
        row = [f"{size:,}"]
        for family in families:
            point = cells.get((family, size))
            if point is None:
                row.append("-")
                continue
            spread = f" ± {point.std * scale:.{digits}f}" if point.std is not None else ""
            row.append(f"{point.mean * scale:.{digits}f}{spread} \\[{point.num_seeds}]")
        result.add_row(*row)
    return result


def _plan(argv: list[str]) -> int:
    parser = _parser("plan", "Show the cells of a study, without training.", "demo", "demo seeds=[0,1,2]")
    _add_runs(parser)
    args = parser.parse_intermixed_args(argv)
    name, overrides = _split(args.words, "plan")

    from rich.table import Table

    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.local import cell_state

    study = load_study(name, overrides)
    cells, directory = plan(study), Path(args.runs) / study.name
    result = Table(title=f"study {study.name}: {_grid_line(study)} = {len(cells)} runs", title_justify="left")
    for heading in ("run", "model", "horizon", "recipe", "state"):
        result.add_column(heading, no_wrap=True)
    for cell in cells:
        state = _state_word(cell, cell_state(directory / cell.name))
        result.add_row(cell.name, cell.recipe.model.name, str(cell.recipe.horizon), cell.hash, state)
    _console().print(result)
    return 0


def _status(argv: list[str]) -> int:
    parser = _parser("status", "Show how far each cell of a study is: size by family and seed.", "demo")
    _add_runs(parser)
    args = parser.parse_intermixed_args(argv)
    name, overrides = _split(args.words, "status")

    from rich.table import Table

    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.local import cell_state

    study = load_study(name, overrides)
    directory = Path(args.runs) / study.name
    states = {
        (cell.family, cell.subset, cell.seed): _state_word(cell, cell_state(directory / cell.name))
        for cell in plan(study)
    }
    done = sum(state == "done" for state in states.values())
    result = Table(title=f"study {study.name}: {done} of {len(states)} runs done", title_justify="left")
    result.add_column("examples", justify="right")
    columns = [(family, seed) for family in study.families for seed in study.seeds]
    for family, seed in columns:
        result.add_column(f"{family}\nseed {seed}", no_wrap=True)
    for subset in sorted(study.subsets, key=lambda n: (n is None, n or 0)):
        row = [states[family, subset, seed] for family, seed in columns]
        result.add_row("all" if subset is None else f"{subset:,}", *row)
    _console().print(result)
    return 0


def _state_word(cell: Cell, state: CellState) -> str:
    if state.recipe_hash is not None and state.recipe_hash != cell.hash:
        return "other recipe"
    return "" if state.state == "missing" else state.state
