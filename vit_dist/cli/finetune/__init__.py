"""`vit-dist finetune`: pretrained weights to a set of one's own: a grid of rates, the choice, the run, the table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.places import any_or_override, local_option, local_or_name

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.study.finetune import Finetuning

SUMMARY = "fine-tune pretrained weights on another set, at the best of a grid of learning rates"

_EXAMPLES = """
WEIGHTS is a run, a checkpoint, or a file or folder that `vit-dist models import` reads (.npz, .safetensors, timm's,
Hugging Face's), on disk or by URL; where it does not say its model, give model=NAME. `none` begins from the seed: the
same grid from scratch, to compare with. DATA is a set: a manifest, a folder that holds one, or one with train and val
(or test) in it; data.val=URL names another to evaluate on.

The recipe says the rest: finetune (the ViT paper's), finetune-imagenet, -cifar100, -pets, -flowers, -vtab, ..., and
BiT-HyperRule as finetune-bit-small, -medium, -large; see configs/recipes. The head is new and zero, a representation
layer is dropped, positions are resampled in 2-D to data.image_size.

First a run for each rate of finetune.lrs trains on all but a slice of the training set (finetune.held_out) and is
measured on that slice; then the best rate trains on all of it, and is evaluated on the validation set, once. The same
command goes on after a kill. In the end: a table, and RUN-DIR/results.csv. How the rate was chosen stands in the last
run's recipe and log (finetune.chosen). With --cluster the grid is an array of Slurm jobs; a small job behind it chooses
and submits the last run.

examples:
  vit-dist finetune runs/b16 shards/pets --recipe finetune-pets
  vit-dist finetune s3://bucket/B_16.npz s3://bucket/cifar100 --recipe finetune-cifar100 model=ViT-B/16 --nproc 8
  vit-dist finetune runs/h14 shards/imagenet --recipe finetune-imagenet-518 --cluster my-site.yaml --nodes 4
  vit-dist finetune runs/b16 shards/mine optim.lr=0.01        one rate: nothing is chosen
  vit-dist finetune runs/b16 shards/mine --dry-run            the recipe, what will be run, and what is amiss
  vit-dist finetune --resume RUN-DIR                          goes on; or prints the table again
"""


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "vit-dist finetune", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "words",
        type=any_or_override,
        nargs="*",
        metavar="WEIGHTS DATA [k=v ...]",
        help="what to begin from, and the set; k=v are dotted overrides of the recipe, applied last",
    )
    made.add_argument(
        "--recipe",
        type=local_or_name,
        default="finetune",
        metavar="RECIPE",
        help="a YAML file, or the name of one in configs/recipes (default finetune)",
    )
    made.add_argument("--run-dir", type=local_option, metavar="DIR", help="of everything (default runs/NAME-HASH)")
    made.add_argument("--resume", type=local_option, metavar="DIR", help="go on with what was begun in DIR")
    made.add_argument("--dry-run", action="store_true", help="print the recipe and the plan; nothing is written")
    here = made.add_argument_group("on this machine")
    here.add_argument("--nproc", type=int, metavar="N", help="ranks of a run (default 1)")
    here.add_argument("--jobs", type=int, metavar="N", help="runs of the grid at once (default 1)")
    slurm = made.add_argument_group("as Slurm jobs")
    slurm.add_argument(
        "--cluster", type=local_or_name, metavar="NAME", help="a YAML file, or the name of one in configs/clusters"
    )
    slurm.add_argument("--nodes", type=int, metavar="N", help="nodes of a run (default 1)")
    slurm.add_argument("--spares", type=int, metavar="N", help="spare nodes of a run (default 0)")
    slurm.add_argument("--time", metavar="SPAN", help="time limit of a job (default: the cluster's)")
    slurm.add_argument("--max-parallel", type=int, metavar="N", help="runs of the grid at a time (default: no limit)")
    slurm.add_argument("--site", metavar="k=v", action="append", default=[], help="override a key of the cluster")
    # Of the job that goes on behind the grid: what it finds undone has failed, and is not to be submitted again.
    slurm.add_argument("--from-job", action="store_true", help=argparse.SUPPRESS)
    return made


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = parser().parse_intermixed_args(argv)
    _check_options(args)

    from vit_dist.core.log import WARNING, log

    root = _root(args)
    tuning = _of_directory(args) if args.resume else _of_words(args, root)
    for remark in remarks(tuning):
        log(f"  {remark}", WARNING)
    if args.dry_run:
        _show(tuning)
        return 0
    if args.cluster:
        from vit_dist.cli.finetune.jobs import advance

        return advance(tuning, args)
    from vit_dist.cli.finetune.here import advance_here

    return advance_here(tuning, nproc=args.nproc or 1, jobs=args.jobs or 1, argv=argv)


def _check_options(args: argparse.Namespace) -> None:
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.world import starts_ranks

    of_slurm = [n for n in ("nodes", "spares", "time", "max_parallel", "site", "from_job") if getattr(args, n)]
    of_here = [n for n in ("nproc", "jobs") if getattr(args, n) is not None]
    if args.cluster and of_here:
        raise ConfigError(f"--{of_here[0]}: means something without --cluster only; jobs start a process a device")
    if not args.cluster and of_slurm:
        raise ConfigError(f"--{of_slurm[0].replace('_', '-')}: means something with --cluster only")
    for name, least in (("nproc", 1), ("jobs", 1), ("nodes", 1), ("spares", 0), ("max_parallel", 0)):
        number = getattr(args, name)
        if number is not None and number < least:
            raise ConfigError(f"--{name.replace('_', '-')}={number}: {least} or more")
    if args.resume and args.run_dir:
        raise ConfigError("--resume beside --run-dir: give one of them; --resume names the directory of what was begun")
    if not args.cluster:
        starts_ranks("finetune", args.nproc or 1)


def _root(args: argparse.Namespace) -> Path:
    """Where directories of fine-tunings are made."""
    if not args.cluster:
        return Path("runs")
    from launcher.slurm.cluster import load_cluster
    from vit_dist.core.files import local_path

    # Jobs start in directories of their own.
    return local_path(load_cluster(args.cluster, args.site).run_root or "runs").expanduser().absolute()


def _of_directory(args: argparse.Namespace) -> Finetuning:
    from vit_dist.core.errors import ConfigError
    from vit_dist.study.finetune import read_finetuning

    if args.words:
        raise ConfigError(f"--resume: what was begun is known; leave {args.words[0]} out")
    return read_finetuning(args.resume.absolute() if args.cluster else args.resume)


def _of_words(args: argparse.Namespace, root: Path) -> Finetuning:
    from vit_dist.core.errors import ConfigError
    from vit_dist.study.finetune import Finetuning, default_directory

    places = [word for word in args.words if "=" not in word or "://" in word.partition("=")[0]]
    overrides = [word for word in args.words if word not in places]
    if len(places) != 2:
        got = f"{len(places)}: {', '.join(places)}" if places else "neither"
        raise ConfigError(
            f"vit-dist finetune: give WEIGHTS and DATA, got {got}; `vit-dist finetune --help` explains them"
        )
    recipe = finetune_recipe(args.recipe, places[0], places[1], overrides)
    directory = args.run_dir or default_directory(recipe, root)
    return Finetuning(recipe, directory.absolute() if args.cluster else directory)


def finetune_recipe(name: str, weights: str, data: str, overrides: list[str]) -> Recipe:
    """The recipe of a fine-tuning, with its grid.

    Args:
        name: a recipe's file, or its name.
        weights: see `look_at_weights`.
        data: see `data_keys`.
        overrides: dotted, applied last.

    Raises:
        VitDistError: what is there cannot be fine-tuned so.
    """
    from vit_dist.cli.finetune.source import data_keys, look_at_weights
    from vit_dist.config.blame import Sources
    from vit_dist.config.load import find_config, merge, parse_overrides, read_recipe_file, resolve
    from vit_dist.config.schema import dump
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.files import redact

    path, files, given = find_config(name, "recipes"), list[Path](), parse_overrides(overrides)
    raw = read_recipe_file(path, files=files)
    source = look_at_weights(weights)
    if source.model is None and "model" not in given:
        said = f"{redact(weights)}: does not say its model" if source.weights else "none: no weights say which model"
        raise ConfigError(f"{said}; give it: model=ViT-B/16 (`vit-dist models list` has the names)")
    raw = merge(raw, source.for_transfer())
    raw = merge(raw, {"data": data_keys(data, given)})
    lr_alone = any(text.partition("=")[0].strip() == "optim.lr" for text in overrides)
    if lr_alone and "finetune" not in given:
        # Whoever says the rate chooses it.
        raw.pop("finetune", None)
    recipe = resolve(raw, overrides, where=Sources(str(path), overrides, files))
    source.check(dump(recipe.model))
    if recipe.finetune is not None and recipe.finetune.chosen is not None:
        raise ConfigError("finetune.chosen: is written by the command; leave it out")
    return recipe


def remarks(tuning: Finetuning) -> list[str]:
    """What a person should know before hours are spent."""
    from vit_dist.study.slices import hyper_rule, remarks_on_data

    recipe, found = tuning.recipe, list[str]()
    if not recipe.data.val:
        found.append("data.val is empty: the last run is evaluated on nothing; name a set with data.val=URL")
    found += hyper_rule(recipe)
    return [*found, *remarks_on_data(recipe, chooses=tuning.chooses)]


def _show(tuning: Finetuning) -> None:
    from vit_dist.config.load import recipe_yaml
    from vit_dist.core.units import counted
    from vit_dist.study.finetune import FINAL, grid_recipe

    grid = "nothing is chosen"
    if tuning.chooses:
        grid_recipe(tuning.recipe)
        rates = ", ".join(f"{lr:g}" for lr in tuning.rates.lrs)
        grid = (
            f"{counted(len(tuning.rates.lrs), 'run')} of optim.lr {rates}, each on all but {tuning.rates.held_out} of "
            f"the training set; the best {tuning.rates.metric} on that slice is chosen"
        )
    val = tuning.recipe.data.val or "nothing"
    sys.stdout.write(
        f"{recipe_yaml(tuning.recipe)}# directory: {tuning.directory}\n# grid: {grid}\n"
        f"# then: {FINAL}, on all of the training set, {tuning.recipe.horizon}; evaluated on {val} at its end\n"
    )
