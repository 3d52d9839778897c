"""`vit-dist logs`: what a run's ranks have printed, and the error that came first."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vit_dist.core.run import history, names
from vit_dist.core.terminal import clean

_EXAMPLES = """
Shows the last lines of the first rank in the newest attempt. Jobs and runs on this machine leave logs/batch.log (the
supervisor) and logs/attempt-0001/ with rank-0.log, rank-1.log, ... (of a job srun.log too) in the run's directory.

When one rank fails, all others log that they have lost a peer. --first-error looks through the logs of all ranks
of an attempt for the one that failed first and shows that; with it the exit code is 0 where an error was found, 1 where
there is none.

examples:
  vit-dist logs vit-l16                     the last 60 lines of rank 0
  vit-dist logs vit-l16 -f                  lines as they are written, from attempt to attempt, until the run ends
  vit-dist logs vit-l16 --rank 12 -n 0      all of rank 12
  vit-dist logs vit-l16 --attempt 3 --first-error
  vit-dist logs vit-l16 --batch             preflight, ends of attempts, requeues
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import run_parser, the_run

    parser = run_parser("logs", "show what a run's ranks have printed, and the error that came first", _EXAMPLES)
    parser.add_argument("-f", "--follow", action="store_true", help="print lines as they are written")
    parser.add_argument("-n", "--lines", metavar="N", type=int, default=60, help="last lines; 0 for all (default 60)")
    parser.add_argument("--rank", metavar="N", type=int, default=0, help="of which rank (default 0)")
    parser.add_argument("--attempt", metavar="N", type=int, help="of which attempt (default: the newest)")
    parser.add_argument("--first-error", action="store_true", help="the earliest real error among all ranks")
    parser.add_argument("--batch", action="store_true", help="the log of the job's supervisor")
    args = parser.parse_args(argv)

    from vit_dist.core.errors import ConfigError

    if args.lines < 0:
        raise ConfigError(f"--lines={args.lines}: 0 (all) or more")
    if args.first_error and (args.follow or args.batch):
        raise ConfigError("--first-error looks at all logs of an attempt, once; leave --follow and --batch out")
    run = the_run(args)
    if args.first_error:
        return _first_error(run, args.attempt)
    if args.follow:
        return _follow(run, args)
    from launcher.status.logs import tail

    path = _file(run, args)
    for line in tail(path, args.lines):
        _print(line)
    return 0


def _file(run: Path, args: argparse.Namespace) -> Path:
    from launcher.status.logs import attempt_dir, rank_log

    return run / names.LOGS / names.BATCH_LOG if args.batch else rank_log(attempt_dir(run, args.attempt), args.rank)


def _follow(run: Path, args: argparse.Namespace) -> int:
    from launcher.status.logs import follow
    from launcher.status.view import look_at
    from vit_dist.core.errors import VitDistError
    from vit_dist.core.log import log

    waits = False

    def current() -> Path | None:
        nonlocal waits
        try:
            path = _file(run, args)
        except VitDistError as error:
            # Once: it may still begin to write.
            if not waits:
                waits = True
                log(f"  {error}")
            return None
        return path if path.is_file() else None

    def ended() -> bool:
        view, _ = look_at(run)
        return not view.active and view.state != "silent"

    shown: Path | None = None
    for path, line in follow(current, ended, lines=args.lines):
        if path != shown and shown is not None:
            log(f"==> {path}")
        shown = path
        _print(line)
        sys.stdout.flush()
    view, _ = look_at(run)
    log(f"==> the run is {view.state}{f': {view.reason}' if view.reason else ''}")
    return 0


def _first_error(run: Path, attempt: int | None) -> int:
    from launcher.status.logs import attempt_dir, attempts_with_logs, first_error
    from vit_dist.cli.runs.facts import one_line
    from vit_dist.core.log import log

    attempts = history.read(run, forgiving=True).attempts
    # Unless one is named: the newest that ended in trouble, else the newest.
    if attempt is None:
        logged = set(attempts_with_logs(run))
        bad = [e.attempt for e in attempts if not e.open and e.cause not in {"done", "stopped"}]
        attempt = next((number for number in reversed(bad) if number in logged), None)
    directory = attempt_dir(run, attempt)
    number = int(directory.name.removeprefix("attempt-"))
    entry = next((e for e in attempts if e.attempt == number), None)
    if entry is not None:
        ended = "has not ended" if entry.open else f"ended: {entry.cause.replace('_', ' ')}"
        log(f"attempt {number} {ended}{f'; {one_line(entry.detail)}' if entry.detail else ''}")
    batch = run / names.LOGS / names.BATCH_LOG
    # The supervisor's log is of all attempts: only where there is one alone is an error in it surely that one's.
    error = first_error(directory, batch if len(attempts_with_logs(run)) == 1 else None)
    stacks = sorted((run / names.STACKS).glob("*")) if entry is not None and entry.cause == "hung" else []
    if stacks:
        log(f"where every thread stood when it hung: {run / names.STACKS}")
    if error is None:
        log(f"no error in {directory}; the end of the supervisor's log may tell: `vit-dist logs {run} --batch`")
        return 1
    whose = f"rank {error.rank}" if error.rank is not None else "the job"
    log(f"{whose}, {error.file}:{error.line}")
    if error.noise:
        log("only errors about ranks that were gone are there; the first cause is in no log of this attempt")
    for line in error.context:
        _print(line)
    return 0


def _print(line: str) -> None:
    sys.stdout.write(clean(line, colours=True) + "\n")
