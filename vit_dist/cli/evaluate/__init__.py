"""`vit-dist evaluate`: evaluators on a checkpoint of a run, or on weights of any form; here, or as Slurm jobs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.errors import DataError
from vit_dist.core.places import local_option, local_or_name, local_or_override
from vit_dist.core.run import names
from vit_dist.core.units import counted
from vit_dist.core.urls import is_remote, redact

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.core.world import World

SUMMARY = "evaluate a trained run (its newest checkpoint, or one that is named) into its own log; or a file of weights"

_EXAMPLES = """
examples:
  vit-dist evaluate runs/demo/vit-2000-s0                       # the evaluators of its recipe, once more
  vit-dist evaluate runs/l16 --nproc 8 \\
      --evaluator '{name: fewshot, set: inet, train: s3://b/inet/train, test: s3://b/inet/val, shots: [1, 5, 10]}'
  vit-dist evaluate runs/l16 --evaluator knn --evaluator linear               # on the run's own sets
  vit-dist evaluate runs/l16 data.val=s3://b/other/manifest.json --out l16.json     # another set: tags of its own
  vit-dist evaluate runs/l16/checkpoints/step-0000010000
  vit-dist evaluate runs/l16 --cluster dgx-h100                 # a Slurm job; --after JOB waits for another
  vit-dist evaluate --list runs.txt --cluster dgx-h100 --max-parallel 8       # an array, an element a run
  vit-dist evaluate B_16.npz --model ViT-B/16 model.representation=true --nproc 8 \\
      --evaluator '{name: knn, set: pets, train: s3://b/pets/train, test: s3://b/pets/test}' --out pets.json
  vit-dist evaluate B_16.npz --model ViT-B/16 --evaluator '{...}' --cluster dgx-h100 --out pets.json   # as a Slurm job
  vit-dist evaluate google-vit-folder/ --evaluator classification data.val=s3://b/inet/val    # Hugging Face's; timm's
  vit-dist evaluate ViT-B/16 --seed 1 --evaluator '{name: knn, ...}'          # fresh weights: what is chance?
  srun vit-dist evaluate --list runs.txt --element 3            # the run in line 4 of a list: an array's element

Results go to a new event file in RUN-DIR/tb, at the step of the checkpoint, and into its history. A tag such as
val/top1 is of one set for the whole run, the first that was measured under it: the run's own. What is measured on
another set, or with other settings of an evaluator, is logged as val@NAME-FINGERPRINT/top1, and reports of studies
leave it out. The history and --out name the set beside the values. The same metric of the same set at the same step
is not measured again. Pictures and tables of evaluators lie in RUN-DIR/evaluations/STEP. Weights without a run have no
log: values are printed, and go to --out; pictures and tables to --files. `vit-dist config --explain evaluators` has
every evaluator's keys, docs/transfer.md what each does and how the paper's figures are made again.

Overrides may change where things are and what is evaluated; one that changes what was trained, such as
data.num_classes, is refused.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vit-dist evaluate",
        description=SUMMARY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        type=_run_or_override,
        metavar="RUN-DIR|FILE|MODEL [k=v ...]",
        nargs="*",
        help="a run (its directory or name), one of its checkpoints, a file or folder of weights, or the name of a "
        "model, for fresh weights; and overrides",
    )
    parser.add_argument(
        "--evaluator",
        metavar="NAME|YAML",
        action="append",
        help="in place of the recipe's: a name, or a mapping such as '{name: knn, k: [20]}'; may be repeated",
    )
    parser.add_argument(
        "--list", metavar="FILE", type=local_option, help="in place of RUN-DIR: run directories, a line each"
    )
    parser.add_argument(
        "--element", metavar="I", type=int, help="line of --list, from 0 (default: SLURM_ARRAY_TASK_ID)"
    )
    parser.add_argument("--nproc", metavar="N", type=int, help="ranks to start on this machine (default 1)")
    parser.add_argument("--out", metavar="FILE", type=local_option, help="the result as JSON too")
    weights = parser.add_argument_group("weights without a run")
    weights.add_argument(
        "--model", metavar="NAME", help="where the file does not say it, as an .npz; settings: model.K=V"
    )
    weights.add_argument(
        "--num-classes", metavar="K", type=int, help="of the head (default: the file's; fresh weights: 1000)"
    )
    weights.add_argument(
        "--image-size", metavar="S", type=int, help="pixels; positions are resampled (default: the file's)"
    )
    weights.add_argument("--head", choices=("keep", "new"), default="keep", help="new: for files without a head")
    weights.add_argument("--seed", metavar="N", type=int, help="of a model's fresh weights (default 0)")
    weights.add_argument(
        "--files", metavar="DIR", type=local_option, help="where pictures and tables go (default: nowhere)"
    )
    jobs = parser.add_argument_group("as Slurm jobs")
    jobs.add_argument(
        "--cluster", type=local_or_name, metavar="NAME", help="a YAML file, or the name of one in configs/clusters"
    )
    jobs.add_argument("--nodes", metavar="N", type=int, help="of a job (default 1)")
    jobs.add_argument("--devices", metavar="N", type=int, help="GPUs, or processes, on a node (default: all)")
    jobs.add_argument("--time", metavar="SPAN", help="time limit of a job (default: the cluster's)")
    jobs.add_argument("--after", metavar="JOB", help="start when this job has ended well")
    jobs.add_argument(
        "--max-parallel", metavar="N", type=int, help="with --list: elements at a time (default: no limit)"
    )
    jobs.add_argument("--dry-run", action="store_true", help="print the script; needs no Slurm")
    return parser


def _run_or_override(text: str) -> str:
    """Type of a word of the command line."""
    try:
        remote = "=" not in text.partition("://")[0] and is_remote(text)
    except DataError:
        # Said below.
        remote = False
    if not remote:
        return local_or_override(text)
    if text.rstrip("/").endswith((".npz", ".safetensors", ".pth", ".pt", ".bin", ".ckpt")):
        return text
    url = redact(text.rstrip("/"))
    how = f": `aws s3 sync {url} DIR --exclude 'step-*'`" if text.lower().startswith("s3:") else " all but its step-*"
    raise argparse.ArgumentTypeError(
        f"{url}: a run is evaluated out of its directory, on this machine. Fetch its records{how}; then `vit-dist "
        f"evaluate DIR checkpoint.remote={url}` takes the newest checkpoint from there"
    )


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = _parser().parse_intermixed_args(argv)

    from launcher.status.find import find_begun
    from vit_dist.cli.evaluate.checks import check_before
    from vit_dist.cli.evaluate.weights import check_not_given, evaluate_weights, is_weights
    from vit_dist.config.load import load_recipe
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.world import array_element, world_or_ranks

    runs = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    if args.evaluator:
        given = next((word for word in overrides if word.startswith("evaluators=")), "")
        if given:
            raise ConfigError(f"--evaluator beside {given}: leave one of them out")
        overrides.append(f"evaluators=[{', '.join(args.evaluator)}]")
    if len(runs) != (args.list is None):
        raise ConfigError(
            f"vit-dist evaluate: give one run directory or --list FILE, got {counted(len(runs), 'directory')}"
        )
    if runs and is_weights(runs[0]):
        _check_of_jobs(args)
        return evaluate_weights(args, runs[0], overrides)
    check_not_given(args, runs)
    if args.cluster:
        from vit_dist.cli.evaluate.jobs import submit_evaluation

        return submit_evaluation(args, runs, overrides)
    _check_of_jobs(args)
    element = array_element() if args.element is None else args.element
    run_dir, checkpoint = find_begun(runs[0] if runs else _line(args.list, element))
    # Nothing is saved, and other evaluators may not measure what the run keeps its best checkpoint by.
    recipe = load_recipe(str(run_dir / names.RECIPE), [*overrides, "checkpoint.keep_best="])
    if recipe.measured() == ({}, False):
        raise ConfigError(f"{run_dir}: {_nothing(recipe)}")
    world, ranks = world_or_ranks(args.nproc)
    check_before(recipe, run_dir, checkpoint, args.out, overrides, ranks if world is None else None)
    if world is None:
        from launcher.processes.ranks import run_ranks
        from vit_dist.core.scratch import scratch

        with scratch(run_dir, "evaluate") as folder:
            where = run_dir / names.CHECKPOINTS / checkpoint if checkpoint else run_dir
            words = ["evaluate", str(where), *overrides, *(["--out", str(args.out)] if args.out else [])]
            return run_ranks(words, nproc=ranks, folder=folder)
    return _rank(recipe, run_dir, world, checkpoint, args.out)


def _check_of_jobs(args: argparse.Namespace) -> None:
    """Refuse options of jobs where there are none."""
    from vit_dist.core.errors import ConfigError

    alone = [n for n in ("nodes", "devices", "time", "after", "max_parallel", "dry_run") if getattr(args, n)]
    if alone and not args.cluster:
        raise ConfigError(f"--{alone[0].replace('_', '-')}: means something with --cluster only")


def _rank(recipe: Recipe, run_dir: Path, world: World, checkpoint: str, out: Path | None) -> int:
    from vit_dist.core.exit_codes import PEER_LOST
    from vit_dist.core.log import ERROR, log
    from vit_dist.core.process import ended_by_stop_signals, heavy_imports

    def say(name: str) -> None:
        # Whoever has begun again measures what is not in the history.
        if world.is_main:
            log(f"  {name}: the evaluation of {run_dir} ends, and what it has measured is not kept")

    with ended_by_stop_signals(say):
        with heavy_imports():
            from vit_dist.train.evaluate import evaluate
            from vit_dist.train.failures import PeerLostError

        try:
            evaluate(recipe, run_dir, world, checkpoint=checkpoint, out=out)
        except PeerLostError as error:
            log(f"vit-dist evaluate: rank {world.rank}: {error}", ERROR)
            return PEER_LOST
    return 0


def _nothing(recipe: Recipe) -> str:
    named = ", ".join(evaluator.name for evaluator in recipe.evaluators)
    if not named:
        return "nothing to evaluate: evaluators is empty; give 'evaluators=[classification]', or others"
    return f"nothing to evaluate: data.val is empty, and {named} needs it; name a set with data.val=URL"


def _line(path: Path, element: int | None) -> str:
    from vit_dist.core.errors import ConfigError, DataError
    from vit_dist.core.text import read_text

    if element is None:
        raise ConfigError(f"--list {path}: give --element I, or run it as an element of a job array")
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        raise ConfigError(f"--list {error}") from None
    if not 0 <= element < len(lines):
        raise ConfigError(f"--element {element}: {path} has {counted(len(lines), 'line')}")
    return lines[element]
