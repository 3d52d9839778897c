"""`vit-dist checkpoint`: ask a running run for a checkpoint and wait until it is committed."""

from __future__ import annotations

import sys

_EXAMPLES = """
The run takes notice after the current step, saves, and trains on. Works for jobs and for runs on a machine,
from wherever the run's directory can be written; Slurm is not needed for it.

examples:
  vit-dist checkpoint vit-l16
  vit-dist checkpoint runs/demo-934dabdd --no-wait

prints the checkpoint's directory
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import run_parser, the_run

    parser = run_parser("checkpoint", "ask a running run for a checkpoint, and wait until it is committed", _EXAMPLES)
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=900.0, help="longest wait (default 900)")
    parser.add_argument("--no-wait", action="store_true", help="only ask")
    args = parser.parse_args(argv)

    from launcher.status.actions import ask, checkpoint
    from launcher.status.view import require
    from vit_dist.core.log import log
    from vit_dist.core.run.checkpoints import step_name
    from vit_dist.core.run.names import CHECKPOINTS

    run = the_run(args)
    if args.no_wait:
        require(run, ("running", "starting"), "a checkpoint")
        ask(run, "save")
        log(f"  {run}: asked for a checkpoint")
        return 0
    step = checkpoint(run, timeout_s=args.timeout)
    sys.stdout.write(f"{run / CHECKPOINTS / step_name(step)}\n")
    return 0
