"""`vit-dist cancel`: end a run's job for good."""

from __future__ import annotations

_EXAMPLES = """
Writes down that the run is to end, so that nothing queues it again, then calls scancel until Slurm says that the job
has ended (an scancel that meets a requeue is lost). Steps since the last checkpoint are lost; `vit-dist stop` saves.
The run's directory stays, and `vit-dist resume` resumes from its newest checkpoint.

examples:
  vit-dist cancel vit-l16
  vit-dist cancel 123456
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import run_parser, the_run

    parser = run_parser("cancel", "end a run's job for good, without a save of its own", _EXAMPLES)
    args = parser.parse_args(argv)

    from launcher.status.actions import cancel
    from vit_dist.core.log import log

    run = the_run(args)
    view = cancel(run)
    saved = f"; saved up to step {view.saved:,}" if view.saved is not None else "; nothing was saved yet"
    log(f"  {view.name}: job {view.job_id} has ended{saved}")
    return 0
