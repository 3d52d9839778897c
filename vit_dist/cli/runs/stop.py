"""`vit-dist stop`: let a run save and end, and not be queued again."""

from __future__ import annotations

_EXAMPLES = """
Clean: all ranks end after the same step, a checkpoint is written, and the job ends as completed. Nothing is lost;
`vit-dist resume` starts from there. A run that still waits in the queue is taken out of it.

  stop      saves, then ends           `cancel`     ends at once: steps since the last checkpoint are lost

examples:
  vit-dist stop vit-l16
  vit-dist stop 123456 --no-wait
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import run_parser, the_run

    parser = run_parser("stop", "let a run save and end", _EXAMPLES)
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=1800.0, help="longest wait (default 1800)")
    parser.add_argument("--no-wait", action="store_true", help="only ask")
    args = parser.parse_args(argv)

    from launcher.status.actions import stop
    from vit_dist.core.log import log

    run = the_run(args)
    view = stop(run, timeout_s=args.timeout, wait=not args.no_wait)
    if args.no_wait and view.active:
        log(f"  {view.name}: asked to save and end")
        return 0
    saved = f", saved up to step {view.saved:,}" if view.saved is not None else ""
    log(f"  {view.name}: {view.state}{saved}{f' ({view.reason})' if view.reason else ''}")
    return 0 if view.state in {"stopped", "done", "cancelled", "lost", "new"} else 1
