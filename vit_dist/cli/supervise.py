"""`vit-dist supervise`: the last line of a job script: starts the ranks and decides what follows when they end."""

from __future__ import annotations

import argparse

from vit_dist.core.places import local_option, local_or_name

SUMMARY = "inside a Slurm job: start the ranks of a run, and queue the job again where that helps"

_EXAMPLES = """
`vit-dist submit` writes this line into the job script; nobody types it. It starts the ranks with srun, one process a
device, and when they have ended finds out why: done, stopped, time limit, preempted, a node lost, a rank lost, crashed.
Then it ends the job, starts the ranks again on the job's own nodes, or queues the job again without the bad node. After
--give-up-after attempts in a row that saved nothing new it gives up. `vit-dist status RUN` shows all of it.

examples (in a job script):
  vit-dist supervise --run-dir /shared/runs/l16 --nodes 2 --tasks-per-node 8 \\
      -- srun --nodes=2 --ntasks=16 --kill-on-bad-exit=1 --wait=60 \\
      -- vit-dist train vit-l16-jft300m --run-dir /shared/runs/l16
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist supervise",
        description=SUMMARY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run-dir", type=local_option, metavar="DIR", required=True, help="of the run")
    parser.add_argument(
        "--run-root",
        type=local_option,
        metavar="DIR",
        help="where the list of bad nodes is (default: above the run directory)",
    )
    parser.add_argument(
        "--cluster", type=local_or_name, metavar="FILE", default="", help="of the site, for the test of the nodes"
    )
    parser.add_argument(
        "--nodes", metavar="N", type=int, required=True, help="of an attempt; the job's others are spares"
    )
    parser.add_argument("--tasks-per-node", metavar="N", type=int, required=True, help="ranks on each")
    parser.add_argument(
        "--lead", metavar="SECONDS", type=float, default=300.0, help="end so long before the time limit (default 300)"
    )
    parser.add_argument(
        "--margin", metavar="SECONDS", type=float, default=60.0, help="added to a measured save (default 60)"
    )
    parser.add_argument(
        "--give-up-after", metavar="N", type=int, default=3, help="attempts without progress (default 3)"
    )
    parser.add_argument("--preflight", action="store_true", help="test the nodes first")
    own, srun, rank = _split(argv)
    args = parser.parse_args(own)

    from launcher.slurm.allocation import read_allocation
    from launcher.supervise.job import JobSupervisor
    from launcher.supervise.settings import SupervisorSettings, listening
    from vit_dist.core.errors import ConfigError

    if not srun or not rank:
        raise ConfigError("expected `... -- srun OPTIONS -- COMMAND OF A RANK` at the end; see --help")
    run_dir = args.run_dir
    settings = SupervisorSettings(
        run_dir=run_dir,
        run_root=args.run_root or run_dir.resolve().parent,
        cluster_file=args.cluster,
        nodes=args.nodes,
        tasks_per_node=args.tasks_per_node,
        lead_s=args.lead,
        margin_s=args.margin,
        give_up_after=args.give_up_after,
        preflight=args.preflight,
        srun=tuple(srun),
        rank=tuple(rank),
    )
    with listening() as received:
        return JobSupervisor(settings, read_allocation(), received).run()


def _split(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Own options, srun's words and a rank's words, which stand between `--`."""
    if "--" not in argv:
        return argv, [], []
    first = argv.index("--")
    rest = argv[first + 1 :]
    if "--" not in rest:
        return argv[:first], rest, []
    second = rest.index("--")
    return argv[:first], rest[:second], rest[second + 1 :]
