"""`vit-dist status`: how a run stands, or all runs in a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.places import local_or_name

if TYPE_CHECKING:
    from launcher.status.run_view import RunView

_EXAMPLES = """
Without RUN: a table of all runs, active ones first. It comes from the files of the runs; Slurm is asked once, about
their jobs. Without Slurm on the PATH it comes from the files alone, and a note says so.

states:
  waiting starting running ending     a job or a process works on the run, or waits to
  submitted                           its job was handed to Slurm, which cannot be asked from here
  done stopped cancelled              ended; `vit-dist resume` resumes one that was stopped
  failed, given up                    see `vit-dist logs RUN --first-error`
  lost                                it says it runs, but its job or its process is gone
  silent                              the same, as far as can be known from this machine

examples:
  vit-dist status
  vit-dist status vit-l16 --watch         refreshes in place until the run ends or Ctrl-C
  vit-dist status runs/my-study           all runs in a directory
  vit-dist status 123456                  by the number of its job
  vit-dist status --runs /shared/runs --json | jq '.runs[] | select(.state == "failed") | .path'

`useful` is the fraction of all time that went into steps the run still has; `tries` are attempts.
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import RUN_HELP, add_runs

    parser = argparse.ArgumentParser(
        "vit-dist status",
        description="show how a run stands, or all runs in a table",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=local_or_name, metavar="RUN", nargs="?", help=RUN_HELP)
    parser.add_argument("--watch", action="store_true", help="refresh in place; in a pipe: a line at each change")
    parser.add_argument("--every", metavar="SECONDS", type=float, default=3.0, help="with --watch (default 3)")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    add_runs(parser)
    args = parser.parse_args(argv)

    from launcher.status.find import find_run, holds_runs, run_roots
    from vit_dist.core.errors import ConfigError

    if args.watch and args.json:
        raise ConfigError("--watch and --json: --json prints once; ask for one of them")
    if not 0.2 <= args.every <= 86400:
        raise ConfigError(f"--every={args.every:g}: between 0.2 and 86400 seconds are possible")
    roots = run_roots(args.runs)
    if args.run is not None and holds_runs(args.run, roots):
        roots, args.run = [Path(args.run)], None
    path = find_run(args.run, roots) if args.run is not None else None
    if args.watch:
        return _watch(path, roots, args.every)
    if args.json:
        return _json(path, roots)
    return _once(path, roots)


def _views(path: Path | None, roots: list[Path], *, whole: bool = False) -> tuple[list[RunView], str]:
    from launcher.status.find import find_runs
    from launcher.status.view import look, look_at

    if path is None:
        return look(find_runs(roots), whole=whole)
    view, silence = look_at(path)
    return [view], silence


def _json(path: Path | None, roots: list[Path]) -> int:
    from vit_dist.cli.runs.facts import as_json

    views, silence = _views(path, roots, whole=True)
    record = as_json(views[0]) if path is not None else {"runs": [as_json(view) for view in views]}
    sys.stdout.write(json.dumps({**record, "slurm": silence or "ok"}, indent=1) + "\n")
    return 0


def _once(path: Path | None, roots: list[Path]) -> int:
    views, silence = _views(path, roots)
    if sys.stdout.isatty():
        from vit_dist.cli.runs import screen
        from vit_dist.core.tables import make_console

        console = make_console(wrap=True)
        if path is not None:
            console.print(screen.one(views[0], width=console.width))
        else:
            console.print(screen.many(views, _note(views, silence, roots), width=console.width))
        return 0
    sys.stdout.write(_plain_one(views[0]) if path is not None else _plain_many(views, _note(views, silence, roots)))
    return 0


def _watch(path: Path | None, roots: list[Path], every_s: float) -> int:
    if not sys.stdout.isatty():
        return _watch_lines(path, roots, every_s)
    from rich.live import Live

    from vit_dist.cli.runs import screen
    from vit_dist.core.tables import Cleaned, make_console

    console = make_console(wrap=True)
    with Live(console=console, auto_refresh=False, screen=path is None, vertical_overflow="crop") as live:
        while True:
            views, silence = _views(path, roots)
            if path is not None:
                shown = screen.one(views[0], width=console.width, attempts=max(3, console.height - 22))
            else:
                note = _note(views, silence, roots)
                shown = screen.many(views, note, width=console.width, rows=console.height)
            live.update(Cleaned(shown), refresh=True)
            if path is not None and not _may_change(views[0]):
                return 0
            time.sleep(every_s)


def _watch_lines(path: Path | None, roots: list[Path], every_s: float) -> int:
    """A line of each run whenever its state or step has changed."""
    from vit_dist.cli.runs.facts import order

    printed: dict[Path, tuple[object, ...]] = {}
    while True:
        views, _ = _views(path, roots)
        for view in order(views):
            mark = (view.state, view.reason, view.step, view.saved, view.tries)
            if printed.get(view.path) != mark:
                printed[view.path] = mark
                sys.stdout.write(_short(view) + "\n")
        sys.stdout.flush()
        if path is not None and not _may_change(views[0]):
            return 0
        time.sleep(every_s)


def _may_change(view: RunView) -> bool:
    return view.active or view.state == "silent"


def _short(view: RunView) -> str:
    from vit_dist.cli.runs.facts import one_line, progress_line, rate_line

    now = time.time()
    reason = f" ({one_line(view.reason)})" if view.reason else ""
    parts = (f"{one_line(view.name)}: {view.state}{reason}", progress_line(view), rate_line(view, now))
    return f"{time.strftime('%H:%M:%S')}  " + "; ".join(part for part in parts if part)


def _plain_one(view: RunView) -> str:
    from vit_dist.cli.runs.facts import ATTEMPT_COLUMNS, attempt_row, facts, one_line
    from vit_dist.core.tables import columns, to_lines

    now = time.time()
    reason = f": {one_line(view.reason)}" if view.reason else ""
    lines = [f"{one_line(view.name)}  {view.state}{reason}"]
    lines += [f"  {label:<10} {text}" for label, text in facts(view, now)]
    if view.attempts:
        lines += ["", *to_lines(columns([attempt_row(entry, now) for entry in view.attempts], ATTEMPT_COLUMNS))]
    lines += [f"-> {one_line(line)}" for line in view.advice]
    return "\n".join(lines) + "\n"


def _plain_many(views: list[RunView], note: str) -> str:
    from vit_dist.cli.runs.facts import COLUMNS, one_line, order, row, summary
    from vit_dist.core.tables import columns, to_lines

    now = time.time()
    lines = to_lines(columns([row(view, now) for view in order(views)], COLUMNS)) if views else []
    total = [summary(views)] if views else []
    return "\n".join([*lines, *total, *([one_line(note)] if note else [])]) + "\n"


def _note(views: list[RunView], silence: str, roots: list[Path]) -> str:
    from launcher.status.find import no_runs

    if not views:
        return no_runs(roots)
    return f"jobs could not be asked about, so this is what the files say: {silence}" if silence else ""
