"""`vit-dist requeue`: put a run's job back into the queue, away from a node if wanted."""

from __future__ import annotations

_EXAMPLES = """
A running run saves first; then its job goes back into the queue under the same number and resumes from there when it
gets nodes. Slurm lets a requeued job wait about two minutes; --now ends that. For a job that waits already, --exclude
and --now change how. For one that has ended: `vit-dist resume`.

examples:
  vit-dist requeue vit-l16 --exclude n17            a slow node: resume elsewhere
  vit-dist requeue 123456 --exclude n17 --exclude n[20-23] --now
  vit-dist requeue vit-l16 --no-save                it hangs: do not wait for a checkpoint
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import run_parser, the_run

    parser = run_parser("requeue", "put a run's job back into the queue", _EXAMPLES)
    parser.add_argument(
        "--exclude", metavar="NODE", action="append", default=[], help="not there again: n1, n1,n2 or n[1-3]"
    )
    parser.add_argument("--now", action="store_true", help="start as soon as there are nodes")
    parser.add_argument("--no-save", action="store_true", help="do not ask for a checkpoint first")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=900.0, help="for that one (default 900)")
    args = parser.parse_args(argv)

    from launcher.status.actions import requeue
    from vit_dist.core.log import log

    run = the_run(args)
    job = requeue(run, exclude=args.exclude, now=args.now, save_s=None if args.no_save else args.timeout)
    away = f", not on {job.excluded}" if job.excluded else ""
    log(f"  job {job.label}: {job.state.lower()}{away}; `vit-dist status {run} --watch` follows it")
    return 0
