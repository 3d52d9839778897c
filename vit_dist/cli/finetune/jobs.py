"""`vit-dist finetune --cluster`: an array for the grid, a job that goes on behind it, one for the last run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.finetune.here import check_before
from vit_dist.cli.finetune.result import show_result
from vit_dist.core.errors import RunError
from vit_dist.core.run import history
from vit_dist.core.tables import make_console
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.slurm.cluster import Cluster
    from vit_dist.study.finetune import Finetuning
    from vit_dist.study.grid import Cell


def advance(tuning: Finetuning, args: argparse.Namespace) -> int:
    """Submit what can be submitted now, and the job that goes on behind it; print the table where all is done.

    Args:
        tuning: what is to be done; its directory is absolute.
        args: of `vit-dist finetune`, parsed.

    Raises:
        ConfigError: Slurm refuses a job, or what was asked for cannot be.
        RunError: a run has failed, or Slurm does not answer.
    """
    from launcher.slurm.cluster import load_cluster
    from launcher.submit.finetune import go_on_after
    from vit_dist.study.finetune import choose, edge_of_grid, left, words_of

    cluster, console = load_cluster(args.cluster, args.site), make_console()
    check_before(tuning, (args.nodes or 1) * cluster.tasks)
    tuning.prepare()
    if left(tuning.cells, tuning.grid_directory):
        jobs = _grid(tuning, args, cluster)
        what = "chooses and submits the last run"
    else:
        chosen = choose(tuning)
        if chosen is not None:
            console.print(f"chosen: {words_of(chosen)}", markup=False)
            if edge := edge_of_grid(chosen):
                console.print(f"  {edge}", markup=False)
        final = tuning.final(chosen)
        if not left([final], tuning.directory):
            show_result(tuning, chosen, console)
            return 0
        jobs = _last(tuning, final, args, cluster)
        what = "writes the table"
    after = go_on_after(jobs, tuning.directory, cluster, _words(args))
    console.print(
        f"job {', '.join(jobs)} in the queue; behind it job {after} {what}\n"
        f"run     {tuning.directory}\n"
        f"follow  vit-dist status {tuning.directory}\n"
        f"again   vit-dist finetune --resume {tuning.directory} --cluster {args.cluster}\n"
        f"        tries again what has failed",
        markup=False,
    )
    return 0


def _grid(tuning: Finetuning, args: argparse.Namespace, cluster: Cluster) -> list[str]:
    """Submit what is left of the grid and not in the queue; the jobs to wait for."""
    from launcher.submit.run import parse_time
    from launcher.submit.study import StudyJobs, held_jobs, submit, todo

    jobs = StudyJobs(
        cluster=cluster,
        directory=tuning.grid_directory,
        cells=tuple(_unsettled(tuning)),
        nodes=args.nodes or 1,
        spares=args.spares or 0,
        time_limit=parse_time(args.time) if args.time else "",
        throttle=args.max_parallel or 0,
    )
    now = todo(jobs)
    if now.train and args.from_job:
        raise _failed([(cell, tuning.grid_directory / cell.name) for cell in now.train], tuning)
    if now.train:
        submit(jobs, now)
    return held_jobs(tuning.grid_directory)


def _unsettled(tuning: Finetuning) -> Sequence[Cell]:
    from vit_dist.study.finetune import left

    return left(tuning.cells, tuning.grid_directory)


def _last(tuning: Finetuning, final: Cell, args: argparse.Namespace, cluster: Cluster) -> list[str]:
    """Submit the last run, unless it is in the queue; its job."""
    from launcher.slurm import commands as slurm
    from launcher.submit.run import SubmitRequest, parse_time, submit
    from vit_dist.config.load import find_config

    run_dir = tuning.directory / final.name
    before = history.read(run_dir).job_id
    known = slurm.job(before) if before else None
    if known is not None and not known.ended and known.state:
        return [before]
    if before and args.from_job:
        raise _failed([(final, run_dir)], tuning)
    request = SubmitRequest(
        recipe=final.recipe,
        cluster=cluster,
        nodes=args.nodes or 1,
        spares=args.spares or 0,
        time_limit=parse_time(args.time) if args.time else "",
        run_dir=run_dir,
        cluster_file=find_config(args.cluster, "clusters").absolute(),
    )
    return [submit(request).job]


def _failed(runs: Sequence[tuple[Cell, Path]], tuning: Finetuning) -> RunError:
    from vit_dist.study.local import cell_state

    lines = []
    for cell, run_dir in runs:
        state = cell_state(run_dir)
        lines.append(f"  {cell.name}: {state.state}{f': {state.reason}' if state.reason else ''}")
    return RunError(
        f"{counted(len(runs), 'run')} of {tuning.directory} did not end well, and nothing is chosen without "
        f"{'it' if len(runs) == 1 else 'them'}:\n"
        + "\n".join(lines)
        + "\nonce the cause is mended, give the same command "
        "again: what is done stays done"
    )


def _words(args: argparse.Namespace) -> list[str]:
    """Options that the jobs behind this one are given too."""
    named = (
        ("--nodes", args.nodes),
        ("--spares", args.spares),
        ("--time", args.time),
        ("--max-parallel", args.max_parallel),
    )
    return [word for option, value in named if value for word in (option, str(value))]
