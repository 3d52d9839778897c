"""`vit-dist train`: one attempt of a run, as a parent of N ranks or as a rank of somebody else's launcher."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.places import local_option, local_or_name

if TYPE_CHECKING:
    from vit_dist.config.blame import Sources
    from vit_dist.config.schema import Recipe
    from vit_dist.core.world import World
    from vit_dist.data.sets import TrainingSet
    from vit_dist.train.profile import ProfileSteps

SUMMARY = "train a recipe on this machine, or as one rank of a job"

_EXAMPLES = """
Trains until the horizon, or until SIGTERM or Ctrl-C, which save and stop (exit codes 143 and 130; Ctrl-C once more
ends it at once). Started again with the same run directory it resumes from the newest committed checkpoint. Started by
`srun`, torchrun or anything that sets RANK and WORLD_SIZE, each process is one rank; else --nproc ranks are started
here. In a world of one, as a shell on a compute node is (`srun --pty bash`), --nproc starts ranks all the same.

examples:
  vit-dist train demo --nproc 2
  vit-dist train demo model=bit-demo optim.lr=2e-3 --run-dir runs/bit
  vit-dist train demo engine.name=plain
  vit-dist train demo --profile 10:13          a trace of steps 10 to 13 in RUN-DIR/profile, for ui.perfetto.dev
  srun --ntasks-per-node=8 vit-dist train vit-l16-jft300m --run-dir /shared/runs/l16

a run directory holds recipe.yaml, its history, tb/ (TensorBoard event files), logs/ (what was said, and tracebacks of
unexpected errors) and checkpoints/
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist train", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", type=local_or_name, metavar="RECIPE", help="a YAML file, or the name of one in configs/recipes"
    )
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides, applied last")
    parser.add_argument("--run-dir", type=local_option, metavar="DIR", help="default: runs/NAME-HASH")
    parser.add_argument(
        "--nproc", metavar="N", type=int, help="ranks to start on this machine (default 1); also in a world of one rank"
    )
    parser.add_argument(
        "--profile",
        metavar="STEPS",
        default="",
        help="write a trace of rank 0 in these steps (10:13, both included) or so many (4, after the first three)",
    )
    args = parser.parse_intermixed_args(argv)

    from vit_dist.config.load import load_recipe, sources_of
    from vit_dist.core.world import world_or_ranks
    from vit_dist.train.profile import ProfileSteps, profile_options

    world, ranks = world_or_ranks(args.nproc)
    recipe = load_recipe(args.recipe, args.overrides)
    run_dir = args.run_dir or default_run_dir(recipe)
    profile = ProfileSteps.parse(args.profile) if args.profile else None
    if world is None:
        from launcher.processes.ranks import run_local
        from vit_dist.cli.farewell import farewell
        from vit_dist.core.log import launcher_log
        from vit_dist.core.run import names

        check_before(recipe, run_dir, ranks, sources_of(args.recipe, args.overrides, recipe))
        with launcher_log(run_dir / names.LOGS / names.BATCH_LOG):
            code = run_local(recipe, run_dir, nproc=ranks, options=profile_options(args.profile))
            farewell(run_dir, code, ["vit-dist", "train", *argv])
            return code
    return _rank(recipe, run_dir, world, profile)


def default_run_dir(recipe: Recipe) -> Path:
    """runs/NAME-HASH, so that the same recipe resumes where it was."""
    from vit_dist.config.load import recipe_hash
    from vit_dist.core.run.names import run_folder

    return Path("runs") / run_folder(recipe.name, recipe_hash(recipe))


def check_before(recipe: Recipe, run_dir: Path, ranks: int, sources: Sources | None = None) -> TrainingSet:
    """Refuse what cannot be, see `refuse_before`; then say what is about to happen."""
    data = refuse_before(recipe, run_dir, ranks, sources)
    # After all that refuses: a run that is named here is begun.
    announce(recipe, run_dir, ranks)
    return data


def refuse_before(recipe: Recipe, run_dir: Path, ranks: int, sources: Sources | None = None) -> TrainingSet:
    """Refuse what cannot be before anything is started or written.

    Refused are a directory that is not this run's or in use, a batch that ranks do not divide, a set that cannot be
    opened, and what `check_beginning` refuses: `sources` says where the recipe's values come from, to be told with it.
    """
    from vit_dist.config.claims import check_run_dir
    from vit_dist.core.run.directory import RunDir, wait_for_stores
    from vit_dist.core.world import World
    from vit_dist.train.plan import check_beginning, open_training

    check_run_dir(recipe, run_dir)
    RunDir(run_dir).check_free()
    World(size=ranks).rank_batch(recipe.global_batch)
    wait_for_stores(run_dir)
    data, val, _ = open_training(recipe, World(size=ranks), sources)
    check_run_dir(recipe, run_dir, data.fingerprint)
    check_beginning(recipe, run_dir, data, val)
    return data


def announce(recipe: Recipe, run_dir: Path, ranks: int) -> None:
    """Say what is about to happen, before what takes its time: every rank imports torch."""
    from vit_dist.core.files import redact
    from vit_dist.core.log import WARNING, log
    from vit_dist.core.run import names
    from vit_dist.core.run.checkpoints import newest_step

    step = newest_step(run_dir)
    begun = (run_dir / names.RUN).exists()
    remote = redact(recipe.checkpoint.remote)
    new = f"nothing of it here: {remote} is asked" if remote else "a new run"
    lost = f"begun before, no checkpoint here{f': {remote} is asked' if remote else ', nothing saved yet'}"
    state = f"it goes on from step {step:,}" if step else lost if begun else new
    log(f"  {recipe.name}: in {run_dir} ({state}); logs in {run_dir / names.LOGS}")
    measured, others = recipe.measured()
    if not measured and not others:
        why = "data.val is empty" if recipe.evaluators else "evaluators is empty"
        log(f"  nothing will be evaluated: {why}", WARNING)
    log(f"  {'a process imports' if ranks == 1 else f'{ranks} processes import'} PyTorch now, which takes some seconds")


def _rank(recipe: Recipe, run_dir: Path, world: World, profile: ProfileSteps | None) -> int:
    from vit_dist.config.claims import check_run_dir
    from vit_dist.core.exit_codes import PEER_LOST
    from vit_dist.core.log import ERROR, RANK_LOGS_VARIABLE, log, speak_as_rank
    from vit_dist.core.process import STOP_SIGNALS, ended_by_stop_signals, heavy_imports
    from vit_dist.core.run.names import rank_log

    # From here on a stop request kills no rank that could save: there is somebody who listens, or it waits until there
    # is (train/process_group.py, then train/attempt.py).
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    logs = os.environ.get(RANK_LOGS_VARIABLE)
    speak_as_rank(world.rank, Path(logs) / rank_log(world.rank) if logs else None)

    # Whoever started ranks of ours has asked and said it. Every rank asks: one that ended alone would be waited for.
    if not logs:
        check_run_dir(recipe, run_dir)
        if world.is_main:
            announce(recipe, run_dir, world.size)

    def say(name: str) -> None:
        # Where a parent of ours tells of it, one rank is enough.
        if world.is_main or not logs:
            who = f"rank {world.rank} of {world.size}: " if world.size > 1 else ""
            log(f"  {who}{name} while it was being started: it ends, and nothing has begun that could be saved")

    with ended_by_stop_signals(say), heavy_imports():
        from vit_dist.train.attempt import attempt
        from vit_dist.train.failures import PeerLostError

    try:
        attempt(recipe, run_dir, world, profile)
    except PeerLostError as error:
        log(f"vit-dist train: rank {world.rank}: {error}", ERROR)
        return PEER_LOST
    return 0
