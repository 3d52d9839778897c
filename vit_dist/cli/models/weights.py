"""`vit-dist models import` and `export`: weights between checkpoints and the published forms."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.models.options import at_least_one, model_config, usual_size
from vit_dist.cli.plugins import add_plugin, load_plugins
from vit_dist.cli.verbs import verb_parser
from vit_dist.core.errors import ConfigError, did_you_mean
from vit_dist.core.files import redact
from vit_dist.core.places import any_option, local_option

if TYPE_CHECKING:
    from vit_dist.models import ModelConfig
    from vit_dist.models.weights.files import Weights

_FORMS = """
forms, by the name's ending
  x.npz                Google's: vision_transformer (ViT, hybrid), big_transfer (BiT); linen names are read too
  x.safetensors        ours: timm's names, with the model, recipe, hash and examples seen in its header
  x.timm.safetensors   a state dict that timm's own model loads, with equal logits; refused where timm has none
  x.pth .pt .bin .ckpt read only, as plain tensors: nothing in them is unpickled or run
  x/                   a folder that Hugging Face's ViTForImageClassification loads; a ViTModel is read with --head new
SOURCE and OUT may be URLs, such as s3://bucket/b16.npz. A file that is there already is replaced, once the new one is
complete.
"""
_IMPORT_EXAMPLES = (
    _FORMS
    + """
examples:
  vit-dist models import B_16.npz b16.safetensors --model ViT-B/16 representation=true
  vit-dist models import B_16.npz b16-384.safetensors --model ViT-B/16 --image-size 384 --num-classes 10 --head new
  vit-dist models import google-vit-folder/ b16.safetensors
"""
)
_EXPORT_EXAMPLES = (
    _FORMS
    + """
examples:
  vit-dist models export runs/demo/vit-8000-s0 vit.safetensors          the newest complete checkpoint of a run
  vit-dist models export runs/b16/checkpoints/step-0000517822 b16.npz
  vit-dist models export s3://bucket/runs/b16 b16.safetensors           the newest copy of a run's checkpoints
  vit-dist models export runs/b16 b16-ema.safetensors --average         what its `ema` keeps, in place of its weights
  vit-dist models export ViT-B/16 fresh.npz --seed 7                    fresh weights
"""
)


def import_main(argv: list[str]) -> int:
    """Entry of `models import`."""
    parser = _parser(
        "import",
        "weights of any known form -> a safetensors file (or another form) that says its model",
        _IMPORT_EXAMPLES,
        source="a file or folder",
        settings="settings of the model, such as representation=true",
    )
    parser.add_argument("--model", metavar="NAME", help="needed where the file does not say its model")
    parser.add_argument("--num-classes", metavar="K", type=int, help="default: as many as the file has")
    parser.add_argument("--classes", metavar="FILE", type=local_option, help="names of the head's classes, one a line")
    parser.add_argument("--image-size", metavar="S", type=int, help="positions are resampled to it")
    parser.add_argument(
        "--head",
        choices=("keep", "new"),
        default="keep",
        help="new: a head of zeros; a representation layer goes too, unless the model has one",
    )
    parser.add_argument(
        "--positions",
        choices=("public", "bicubic"),
        default="public",
        help="how positions are resampled: as the public code does (default), or timm's antialiased bicubic",
    )
    add_plugin(parser)
    args = parser.parse_intermixed_args(argv)
    load_plugins(args.plugin)

    at_least_one(args, "image_size", "num_classes")
    if args.settings and not args.model:
        raise ConfigError(f"{args.settings[0]}: settings are those of a model; give --model NAME")
    from vit_dist.core.files import is_remote, local_path
    from vit_dist.core.run.checkpoints import is_checkpoint
    from vit_dist.data.labels import read_classes
    from vit_dist.models.weights.forms import check_readable, form_to_write

    config = model_config(args.model, args.settings) if args.model else None
    classes = read_classes(args.classes) if args.classes else ()
    # Before torch: its import takes seconds.
    form_to_write(args.out)
    of_ours = ConfigError(f"{redact(args.source)}: a checkpoint or run of ours; `vit-dist models export` reads it")
    if not is_remote(args.source):
        if is_checkpoint(local_path(args.source)):
            raise of_ours
        check_readable(local_path(args.source))

    from vit_dist.models.weights.files import LoadOptions, read_weights
    from vit_dist.train.checkpoint.weights_remote import downloaded

    options = LoadOptions(
        config=config,
        num_classes=args.num_classes,
        image_size=args.image_size,
        head=args.head,
        positions=args.positions,
        classes=classes,
    )
    with downloaded(args.source) as path:
        if is_checkpoint(path):
            raise of_ours
        _write(read_weights(path, options), args.out)
    return 0


def export_main(argv: list[str]) -> int:
    """Entry of `models export`."""
    parser = _parser(
        "export",
        "a checkpoint, a run, a file of weights or a model's fresh weights -> a file or folder",
        _EXPORT_EXAMPLES,
        source="a checkpoint, a run, a file, or a model's name",
        settings="settings of a model given by name",
    )
    parser.add_argument("--average", action="store_true", help="of a run with `ema`: the average of its weights")
    parser.add_argument("--seed", metavar="N", type=int, help="of fresh weights (default 0)")
    parser.add_argument("--num-classes", metavar="K", type=int, help="of fresh weights (default 1000)")
    parser.add_argument("--image-size", metavar="S", type=int, help="of fresh weights (default 224)")
    add_plugin(parser)
    args = parser.parse_intermixed_args(argv)
    load_plugins(args.plugin)
    at_least_one(args, "image_size", "num_classes")
    if args.seed is not None and args.seed < 0:
        raise ConfigError(f"--seed={args.seed}: at least 0 is needed")

    from vit_dist.models.weights.forms import form_to_write

    # Before torch: its import takes seconds.
    form_to_write(args.out)
    config = _config_to_export(args)

    from vit_dist.core.run.checkpoints import is_checkpoint
    from vit_dist.models.weights.files import read_weights
    from vit_dist.train.checkpoint.weights import checkpoint_weights, fresh_weights
    from vit_dist.train.checkpoint.weights_remote import downloaded

    if config is None:
        with downloaded(args.source) as here:
            ours = is_checkpoint(here)
            if args.average and not ours:
                raise ConfigError(f"--average: {redact(args.source)} is a file of weights; give a run or a checkpoint")
            _write(checkpoint_weights(here, average=args.average) if ours else read_weights(here), args.out)
    elif args.average:
        raise ConfigError(f"--average: {args.source} is a model, which was never trained; give a run or a checkpoint")
    else:
        size = args.image_size or usual_size(config)
        _write(fresh_weights(config, args.num_classes or 1000, size, args.seed or 0), args.out)
    return 0


def _config_to_export(args: argparse.Namespace) -> ModelConfig | None:
    """The model whose fresh weights are wanted; None where SOURCE is a place that weights can be read from.

    Raises:
        ConfigError: neither a place nor a model, or options that are none of it.
        CheckpointError: a run without a checkpoint.
        DataError: no file of weights.
    """
    from vit_dist.core.files import is_remote
    from vit_dist.core.run import names
    from vit_dist.core.run.checkpoints import MARKER, committed, is_checkpoint, no_checkpoint
    from vit_dist.models.weights.forms import check_readable

    path = Path(args.source)
    fresh = {"--seed": args.seed, "--num-classes": args.num_classes, "--image-size": args.image_size}
    if path.exists() or is_remote(args.source):
        given = [name for name, value in fresh.items() if value is not None] + args.settings
        if given:
            raise ConfigError(f"{given[0]} is for fresh weights, not for {redact(args.source)}; see `models import`")
        if is_remote(args.source):
            return None
        if not is_checkpoint(path):
            check_readable(path)
        elif not (path / MARKER).is_file() and not committed(path / names.CHECKPOINTS):
            raise no_checkpoint(path, "export")
        return None
    if path.suffix or args.source.count(os.sep) > 1 or args.source.startswith(("/", ".")):
        raise ConfigError(f"{path}: no such checkpoint, run or file")
    _known(args.source)
    return model_config(args.source, args.settings)


def _parser(verb: str, description: str, epilog: str, *, source: str, settings: str) -> argparse.ArgumentParser:
    """The parser of a verb that turns SOURCE into OUT, with the help of its arguments."""
    parser = verb_parser(f"vit-dist models {verb}", description, epilog)
    parser.add_argument("source", type=any_option, metavar="SOURCE", help=source)
    parser.add_argument("out", type=any_option, metavar="OUT", help="what to write; its ending says the form")
    parser.add_argument("settings", metavar="k=v", nargs="*", help=settings)
    return parser


def _write(weights: Weights, out: str) -> None:
    from vit_dist.models.weights.files import write_weights
    from vit_dist.train.checkpoint.weights_remote import uploaded

    with uploaded(out) as here:
        write_weights(weights, here)
    if out.endswith(".timm.safetensors"):
        from vit_dist.core.log import log

        log(f"a state dict does not say all of a model: {redact(out)}.md has four lines that load it into timm's")
    numbers, size = sum(t.numel() for t in weights.state.values()), weights.image_size
    sys.stdout.write(f"{redact(out)}: {weights.config.name}, {numbers:,} numbers, for {size}x{size} images\n")


def _known(name: str) -> None:
    from vit_dist.core.registry import MODELS

    try:
        MODELS.lookup(name)
    except ConfigError:
        raise ConfigError(
            f"{name}: no checkpoint, run or file is there, and no model has this name"
            f"{did_you_mean(name, MODELS.names())}"
        ) from None
