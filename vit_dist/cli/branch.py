"""`vit-dist branch`: a new run from weights, optimizer and position of another run's checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_dist.core.places import any_option, local_option

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.data.sets import TrainingSet
    from vit_dist.train.branch_point import BranchPoint
    from vit_dist.train.plan import Plan

SUMMARY = "a new run from weights, optimizer and position of another run's checkpoint"

_EXAMPLES = """
RUN is a directory, a name (or the beginning of one), a job's number, or the path or URL of copies that
checkpoint.remote keeps. STEP is the step of a checkpoint that is there, `latest`, or `best` (by the run's
checkpoint.keep_best). Keys are those of the recipe: what is given differs from the trunk, all else stays.

The branch is a run of its own: its recipe and first checkpoint are written into a new directory, from which train, run,
submit and resume go on as from any checkpoint. The trunk is read, and never changed. Steps and examples count on from
the trunk's, so that curves join in TensorBoard; horizon and warm-up are of the whole, the trunk's part included.

examples:
  vit-dist branch runs/trunk@300 horizon="400 steps" schedule.cooldown="100 steps"   the end of a constant rate
  vit-dist branch demo-934dabdd@latest horizon="60k examples" --nproc 2         go on for longer, and train it here
  vit-dist branch vit-l16@90k optim.lr=1e-4 name=lower-rate                     a lower rate after trouble
  vit-dist branch vit-l16@90k 'optim={name: lion, lr: 1e-4}' branch.optimizer=new      another one, without moments
  vit-dist branch vit-l16@best data.image_size=384 horizon="110k steps"         positions are resampled
  vit-dist branch vit-l16@latest data.train=s3://b/more horizon="100k steps"    a set that has grown
  vit-dist branch vit-l16@best data.train=s3://b/pets data.num_classes=37 branch.head=new horizon="95k steps"
  vit-dist branch s3://bucket/vit-l16@90000 horizon="95k steps" --dry-run       of copies; prints, does nothing

docs/branch.md has which keys a branch may change, and why not the others
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    from vit_dist.cli.runs.options import add_runs

    parser = argparse.ArgumentParser(
        "vit-dist branch", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("point", type=any_option, metavar="RUN@STEP", help="a run, and a step, `latest` or `best`")
    parser.add_argument(
        "overrides", metavar="k=v", nargs="*", help="keys of the recipe in which it differs; name= is one"
    )
    parser.add_argument("--run-dir", type=local_option, metavar="DIR", help="default: runs/NAME-HASH")
    parser.add_argument(
        "--nproc", metavar="N", type=int, help="train it here, on so many ranks, as `vit-dist run` does"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would begin, print its recipe, and do nothing")
    add_runs(parser)
    args = parser.parse_intermixed_args(argv)

    from launcher.status.find import run_roots
    from vit_dist.config.branch_keys import check_changes
    from vit_dist.config.claims import check_run_dir
    from vit_dist.config.load import identity, recipe_hash, recipe_yaml
    from vit_dist.core.run.directory import RunDir
    from vit_dist.core.world import World, starts_ranks
    from vit_dist.data.takedown import load_taken, refuse_forgetting
    from vit_dist.train.branch_point import branch_recipe, find_point
    from vit_dist.train.plan import check_beginning, open_training

    if args.nproc is not None:
        starts_ranks("branch", args.nproc)
    point = find_point(args.point, run_roots(args.runs))
    recipe, sources, left = branch_recipe(point, args.overrides)
    check_changes(point.marker["recipe"], identity(recipe))
    run_dir: Path = args.run_dir or _default_run_dir(recipe)
    data, val, plan = open_training(recipe, World(size=args.nproc or 1), sources)
    changes = check_changes(point.marker["recipe"], {**identity(recipe), "fingerprint": data.fingerprint})
    # What the trunk was told to read no more, its branch does not read either.
    refuse_forgetting(load_taken(point.marker["state"].get("taken_down", ())), recipe.data.takedown)
    check_run_dir(recipe, run_dir, data.fingerprint)
    RunDir(run_dir).check_free()
    check_beginning(recipe, run_dir, data, val)
    _say(point, recipe, data, plan, changes, left)
    if args.dry_run:
        sys.stdout.write(f"# {run_dir}: recipe {recipe_hash(recipe)}; nothing was written\n{recipe_yaml(recipe)}")
        return 0
    return _begin(recipe, data, run_dir, args.nproc)


def _default_run_dir(recipe: Recipe) -> Path:
    from vit_dist.cli.train import default_run_dir

    return default_run_dir(recipe)


def _say(
    point: BranchPoint,
    recipe: Recipe,
    data: TrainingSet,
    plan: Plan,
    changes: Sequence[tuple[str, Any, Any]],
    left: Sequence[str],
) -> None:
    """What the branch comes from, in what it differs, and where it goes on."""
    from vit_dist.config.branch_keys import shown
    from vit_dist.core.files import redact
    from vit_dist.core.log import WARNING, log
    from vit_dist.core.units import counted

    position, batch = int(point.marker["state"]["position"]), recipe.global_batch
    log(f"  {recipe.name}: branches from {redact(point.run)} at step {point.step:,} ({redact(point.checkpoint)})")
    for key, a, b in changes:
        log(f"    {key}: {shown(a)} -> {shown(b)}")
    if not changes:
        log("    nothing that is learned from differs: it is going to be the trunk's own continuation, bit for bit")
    for text in left:
        log(f"    {text}", WARNING)
    of_order = f"epoch {position / data.num_samples:.3f} of {data.num_samples:,} examples" if data.num_samples else ""
    log(
        f"    it goes on at position {position:,} ({of_order}), "
        f"for {counted(plan.total_steps - point.step, 'step')} of {batch:,} to step {plan.total_steps:,}"
    )


def _begin(recipe: Recipe, data: TrainingSet, run_dir: Path, nproc: int | None) -> int:
    from vit_dist.core.files import redact
    from vit_dist.core.log import log
    from vit_dist.core.process import heavy_imports
    from vit_dist.core.run import names
    from vit_dist.core.run.checkpoints import newest_step
    from vit_dist.core.run.directory import RunDir

    with heavy_imports():
        from vit_dist.train.branch import begin

    begun = newest_step(run_dir)
    begin(recipe, data, RunDir(run_dir))
    step = newest_step(run_dir)
    kept = (
        f"its newest checkpoint is of step {step:,}" if step else f"it goes on from {redact(recipe.checkpoint.remote)}"
    )
    log(f"  {run_dir}: {'has begun before' if begun else 'has begun'}; {kept}")
    words = [str(run_dir / names.RECIPE), "--run-dir", str(run_dir), "--nproc", str(nproc or 1)]
    if nproc is not None:
        from vit_dist.cli.run import main as train

        return train(words)
    run = shlex.quote(str(run_dir))
    sys.stdout.write(
        f"run     {run_dir}\n"
        f"train   vit-dist run {shlex.join(words)}\n"
        f"        vit-dist submit {shlex.join(words[:3])} --cluster NAME --nodes N\n"
        f"follow  vit-dist status {run}\n"
    )
    return 0
