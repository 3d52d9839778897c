"""`vit-dist data bench`: what this machine and this store deliver of a dataset, and what a recipe needs."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from vit_dist.cli.data.options import out, parser, positive, say
from vit_dist.core.devices import NAMES, find_device
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import redact
from vit_dist.core.places import any_option, local_option, local_or_name

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe

_DETAILS = """
Measures each stage of the way from the tars to a batch as training goes it: reading ranges at random places, sample
indexes, decoding in one thread, and the whole stream with 1, 2, 4, ... decode threads up to the CPUs that this process
may use. Then says what the devices need, how many CPU cores one of them wants, and what is too slow.

What a device needs is measured by a run (--run: images a second while it had data), or computed for the recipe's model
from its FLOPs, the peak of --device and --mfu: an assumption, and said to be one.

Of tars on this machine the page cache is emptied where they are read in the first stage, and it is told how much of
them it held: a stream over a set that it holds reads memory, as training does from the second epoch on. Nothing is
written. Run it on the machine that trains, with the CPUs that a rank has there.
"""
_EXAMPLES = """
  vit-dist data bench s3://bucket/photos --recipe vit-b16-imagenet --device h100
  vit-dist data bench shards/train --recipe my.yaml data.image_size=384 --mfu 0.3
  vit-dist data bench s3://bucket/photos --run runs/photos        # what its devices took
  vit-dist data bench shards/train data.augment=none --seconds 60 --json
"""
_LEAST_S, _MOST_S = 1.0, 3600.0


def main(argv: list[str]) -> int:
    """Measure, and print a table."""
    args = _parser().parse_intermixed_args(argv)
    _check(args)

    from vit_dist.cli.data.bench_need import MODEL_UNKNOWN, computed, measured
    from vit_dist.data.manifest import read_manifest

    recipe = _recipe(args)
    # What is wrong with these is told before anything is measured.
    need = measured(args.run) if args.run is not None else None
    if need is None and args.recipe is not None:
        need = computed(recipe, args.device or _device_here(), args.mfu)
        if need is None:
            say(f"  {MODEL_UNKNOWN.format(recipe.model.name)}")
    manifest = read_manifest(args.manifest)

    from vit_dist.data.bench import bench

    devices = args.devices or _num_devices()
    figures = bench(
        manifest, recipe.data, seconds=args.seconds, tell=lambda stage: say(f"  measuring: {stage}"), seed=args.seed
    )

    from vit_dist.cli.data.bench_table import facts, table, verdict

    if args.json:
        out(json.dumps(facts(figures, need, devices), indent=1) + "\n")
        return 0
    out(table(f"{manifest.name} ({redact(args.manifest)})", figures, recipe.data))
    out(verdict(figures, need, devices))
    return 0


def _parser() -> argparse.ArgumentParser:
    p = parser(
        "bench",
        "Measure what this machine and this store deliver of a dataset, and say whether that feeds a recipe's devices.",
        _DETAILS,
        _EXAMPLES.strip("\n"),
    )
    p.add_argument("manifest", type=any_option, help="URL of a manifest.json, or of the directory that holds it")
    p.add_argument(
        "overrides", metavar="k=v", nargs="*", help="dotted overrides of the recipe, such as data.image_size=384"
    )
    p.add_argument(
        "--recipe",
        type=local_or_name,
        metavar="RECIPE",
        help="a .yaml file, or the name of one: image size, augmentation, model; its sets are not read",
    )
    p.add_argument("--run", type=local_option, metavar="RUN", help="the directory of a run that trained the same model")
    p.add_argument(
        "--device", metavar="NAME", help=f"that the recipe trains on: {NAMES} (default: the one here, else h100)"
    )
    p.add_argument(
        "--mfu", metavar="M", type=float, help="fraction of its peak that is reached (default: 0.4; of a ResNet 0.11)"
    )
    p.add_argument(
        "--devices", metavar="N", type=positive, help="that this machine feeds (default: those here, at least 1)"
    )
    p.add_argument("--seconds", metavar="S", type=float, default=20.0, help="that it takes in all, about (default 20)")
    p.add_argument("--seed", metavar="N", type=int, help="of the places that are read (default: others each time)")
    p.add_argument("--json", action="store_true", help="every number, for programs")
    return p


def _check(args: argparse.Namespace) -> None:
    if not _LEAST_S <= args.seconds <= _MOST_S:
        raise ConfigError(f"--seconds {args.seconds:g}: between {_LEAST_S:g} and {_MOST_S:g} are possible")
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu {args.mfu:g}: expected a fraction above 0 and up to 1, such as 0.4")
    if args.device is not None:
        find_device(args.device)
    if args.device is not None and args.run is not None:
        raise ConfigError(
            f"--device {args.device} beside --run: what the run's devices took is measured; leave one out"
        )
    if args.device is not None and args.recipe is None:
        raise ConfigError(f"--device {args.device}: what it needs depends on the model; give --recipe")
    for text in args.overrides:
        if text.partition("=")[0] in {"data", "data.train", "data.mixture"}:
            raise ConfigError(f"{text}: the set is the one that stands first, {redact(args.manifest)}; leave it out")


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe; without one, the defaults of every recipe's data section."""
    from vit_dist.config.load import load_recipe, resolve

    if args.recipe is not None:
        return load_recipe(args.recipe, args.overrides)
    # A model that takes images of any size: nothing else of it counts.
    plain: dict[str, Any] = {
        "horizon": "1 epoch",
        "global_batch": 256,
        "model": "R50x1",
        "data": {"num_classes": 1},
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant", "warmup": "0 steps"},
    }
    return resolve(plain, args.overrides, where="data bench")


def _device_here() -> str:
    """The name of the GPU that is here, if it is known; else h100."""
    import torch

    from vit_dist.core.devices import device_of

    here = device_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return here.name if here is not None else "h100"


def _num_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
