"""`vit-dist inspect`: look inside a trained model: attention, positions, filters, receptive fields."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_dist.cli.models.options import at_least_one, model_config
from vit_dist.cli.plugins import add_plugin, load_plugins
from vit_dist.cli.verbs import verb_parser
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import is_remote, local_path, redact
from vit_dist.core.places import any_option, local_option, local_or_override
from vit_dist.inspect.views import VIEWS, chosen_views

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vit_dist.inspect.look import Look
    from vit_dist.models import ModelConfig
    from vit_dist.models.weights.files import Weights

MOST = 128
"""Images, where nobody asks for a number: as many as the paper's appendix D.7 has."""

_EPILOG = f"""
views
{chr(10).join(f"  {view.name:<10} {view.shows}" for view in VIEWS.values())}

Where images are left out, a run is looked at with its validation set, out of its recipe; of other weights, without
images, `positions` and `filters` are drawn. Of folders and sets {MOST} images are taken, evenly spaced, or as many as
--images says. The folder gets a page with all of it (inspect.html, which needs nothing beside it), and of each view a
PNG, an SVG and a CSV table. A view that a model cannot have is left out, and the page says why; one asked for by
--show is an error then. docs/inspect.md explains each view, and has the commands for the figures of the paper.

examples:
  vit-dist inspect runs/demo/vit-8000-s0                         a run, with its validation set
  vit-dist inspect runs/l16 photos/ --out inside-l16             with images of a folder
  vit-dist inspect s3://bucket/runs/l16 --data s3://bucket/inet/val --images 128
  vit-dist inspect B_16.npz --model ViT-B/16 cat.jpg dog.jpg --show rollout --show layers
  vit-dist inspect google-vit-folder/ --show positions --show filters
  vit-dist inspect convnext.pth --model timm:convnext_tiny photos/ --show field
"""


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "vit-dist inspect",
        "look inside a trained model: what it attends to, what it has learned, how far it sees",
        _EPILOG,
    )
    parser.add_argument(
        "source", type=any_option, metavar="SOURCE", help="a run, a checkpoint, or weights of any known form; a URL too"
    )
    parser.add_argument(
        "words", type=local_or_override, metavar="IMAGE", nargs="*",
        help="images, or folders of them; with --model, its settings too, as k=v",
    )  # fmt: skip
    parser.add_argument("--data", type=any_option, metavar="SET", help="in place of images: a packed set")
    parser.add_argument(
        "--images", type=int, metavar="N", help=f"how many of them (default: {MOST}, or all where they are fewer)"
    )
    parser.add_argument(
        "--show", metavar="VIEW", action="append", default=[], help="this view; may be given again (default: all)"
    )
    parser.add_argument("--out", type=local_option, metavar="DIR", help="a new folder (default inspect-SOURCE)")
    parser.add_argument("--model", metavar="NAME", help="needed where the file does not say its model")
    parser.add_argument("--image-size", metavar="S", type=int, help="positions are resampled to it")
    parser.add_argument("--average", action="store_true", help="of a run with `ema`: the average of its weights")
    parser.add_argument("--device", metavar="NAME", default="", help="cpu or cuda (default: a GPU where there is one)")
    add_plugin(parser)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = _parser().parse_intermixed_args(argv)
    load_plugins(args.plugin)
    at_least_one(args, "images", "image_size")
    config, paths = _model_and_paths(args)
    views = chosen_views(args.show)

    from vit_dist.models.weights.forms import check_says_model

    out = args.out or Path(f"inspect-{_stem(args.source)}")
    _check_before(args.source, args.data, paths, args.images, out, args.show and not any(_needs(v) for v in views))

    if config is None and not is_remote(args.source):
        check_says_model(local_path(args.source))

    from vit_dist.core.process import heavy_imports

    with heavy_imports():
        from vit_dist.inspect.look import look_inside
        from vit_dist.inspect.write import by_reason, write_look
        from vit_dist.train.checkpoint.weights_remote import downloaded

    with downloaded(args.source) as here:
        weights = _weights(here, config, args)
    images, labels, whence = _images(args, paths, weights) if any(map(_needs, views)) else (None, [], "none")
    look = look_inside(
        _model(weights),
        images,
        image_size=weights.image_size,
        views=args.show,
        labels=labels,
        name=weights.config.name,
        device=_device(args.device),
    )
    if not look.views:
        why = "; ".join(f"{', '.join(views)}: {reason}" for views, reason in by_reason(look))
        raise ConfigError(f"{redact(args.source)}: there is nothing to show: {why}")
    which = f"{redact(args.source)}{', their average' if args.average else ''}"
    about = {"weights": which, **_facts(weights), "images from": whence}
    _say(look, write_look(look, out, about))
    return 0


def _model_and_paths(args: argparse.Namespace) -> tuple[ModelConfig | None, list[Path]]:
    settings = [word for word in args.words if "=" in word and not Path(word).exists()]
    paths = [local_path(word) for word in args.words if word not in settings]
    if settings and not args.model:
        raise ConfigError(
            f"{settings[0]}: no such image, and settings (k=v) are those of a model; give --model NAME with them"
        )
    if paths and args.data:
        raise ConfigError(f"--data {redact(args.data)} and {paths[0]}: give images or a set, not both")
    return (model_config(args.model, settings) if args.model else None), paths


def _stem(source: str) -> str:
    """What to call a look at a source: the name of the file, or of the run whose checkpoint it is."""
    from vit_dist.core.run.names import safe_name

    parts = [part for part in source.rstrip("/").split("/") if part not in ("", ".", "..")]
    return safe_name(parts[-1].partition(".")[0] or parts[-1]) if parts else "model"


def _needs(view: str) -> bool:
    return VIEWS[view].needs_images


def _check_before(
    source: str, data: str | None, paths: Sequence[Path], wanted: int | None, out: Path, idle: bool
) -> None:
    """Refuse what can be known to fail before torch is imported, which takes seconds.

    Raises:
        VitDistError: says what.
    """
    from vit_dist.core.folders import check_writable, refuse_others
    from vit_dist.core.run.checkpoints import is_checkpoint
    from vit_dist.models.weights.forms import check_readable

    if idle and (data or paths or wanted):
        raise ConfigError("images are given, but no view that was asked for by --show needs any; leave one out")
    if not (out / "inspect.json").is_file():
        refuse_others(out, lambda _: False, what="a look into a model", do="give another --out")
    check_writable(out, "--out")
    if not is_remote(source) and not is_checkpoint(local_path(source)):
        check_readable(local_path(source))
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such image or folder of images")


def _weights(here: Path, config: ModelConfig | None, args: argparse.Namespace) -> Weights:
    """The weights, with a head of one class in place of theirs, which nothing here looks at."""
    from dataclasses import replace

    from vit_dist.core.run.checkpoints import is_checkpoint
    from vit_dist.models.weights.adapt import fit
    from vit_dist.models.weights.files import LoadOptions, read_weights
    from vit_dist.train.checkpoint.weights import checkpoint_weights

    if not is_checkpoint(here):
        if args.average:
            raise ConfigError(f"--average: {redact(args.source)} is a file of weights; give a run or a checkpoint")
        return read_weights(here, LoadOptions(config=config, num_classes=1, image_size=args.image_size, head="new"))
    if config is not None:
        raise ConfigError(f"{here}: a run or checkpoint of ours says its model; leave --model out")
    weights = checkpoint_weights(here, average=args.average)
    size = args.image_size or weights.image_size
    weights.config.fit(size)
    state = fit(weights.state, weights.config, num_classes=1, image_size=size, source=str(here), head="new")
    return replace(weights, state=state, num_classes=1, image_size=size)


def _model(weights: Weights) -> nn.Module:
    from vit_dist.models.weights.colours import recolour_inputs

    model = weights.config.build(num_classes=weights.num_classes, image_size=weights.image_size)
    model.load_state_dict(weights.state)
    recolour_inputs(model, weights.viewed)
    return model


def _images(
    args: argparse.Namespace, paths: Sequence[Path], weights: Weights
) -> tuple[torch.Tensor | None, list[str], str]:
    """Images, a word for each, and where they come from."""
    from vit_dist.config.schema import DataConfig
    from vit_dist.inspect.images import image_files, read_files, read_set, spaced

    size, crop, upright = weights.image_size, weights.viewed.crop, weights.viewed.upright
    if paths:
        files = image_files(paths)
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        chosen = [files[i] for i in spaced(len(files), args.images, MOST, where)]
        return read_files(chosen, size, crop, upright=upright), [path.stem for path in chosen], where
    url = args.data or _validation_set(weights)
    if url:
        how = DataConfig(num_classes=1, upright=upright)
        images, names = read_set(url, size, crop, wanted=args.images, most=MOST, config=how)
        return images, names, redact(url)
    asked = [view for view in args.show if _needs(view)]
    if asked or args.images:
        raise ConfigError(
            f"{f'--show {asked[0]}' if asked else f'--images {args.images}'}: needs images: name some, or a folder of "
            f"them, or a packed set by --data"
        )
    return None, [], "none"


def _validation_set(weights: Weights) -> str:
    """Of the run whose weights they are; '' where there is none."""
    import yaml

    recipe: Any = yaml.safe_load(weights.facts.get("recipe", "")) or {}
    found = recipe.get("data", {}).get("val", "") if isinstance(recipe, dict) else ""
    return str(found or "")


def _device(name: str) -> str:
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no GPU here; leave it out")
    try:
        return str(torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu")))
    except RuntimeError:
        raise ConfigError(f"--device {name}: no device is called so; give cpu or cuda") from None


def _facts(weights: Weights) -> dict[str, str]:
    return {name: weights.facts[name] for name in ("name", "step", "examples", "recipe_hash") if name in weights.facts}


def _say(look: Look, files: Sequence[Path]) -> None:
    from vit_dist.core.units import counted
    from vit_dist.inspect.write import by_reason

    lines = [f"{look.name}, {counted(look.num_images, 'image')} of {look.image_size} pixels"]
    if look.attended is not None:
        first, last = look.attended.distance[0], look.attended.distance[-1]
        lines.append(
            f"  mean attention distance: {first.min():.1f} to {first.max():.1f} pixels in the first layer, "
            f"{last.min():.1f} to {last.max():.1f} in the last"
        )
    if look.fields:
        sizes = ", ".join(f"{found.layer} {found.size:.3g}" for found in look.fields)
        lines.append(f"  effective receptive field, pixels: {sizes}")
    lines += [f"  without {', '.join(views)}: {why}" for views, why in by_reason(look)]
    lines.append(f"{files[0]}: {', '.join(look.views)}; {len(files) - 2} pictures and tables beside it")
    sys.stdout.write("\n".join(lines) + "\n")
