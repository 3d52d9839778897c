"""`vit-dist models list` and `show`: what models there are, the settings of one, what each costs."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING

from vit_dist.cli.models.options import at_least_one, model_config, usual_size
from vit_dist.cli.plugins import add_plugin, load_plugins, warn_of_broken
from vit_dist.cli.verbs import verb_parser
from vit_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from vit_dist.models import ModelConfig
    from vit_dist.models.costs import Cost

_HEADS = ("model", "family", "parameters", "GMACs", "pixels", "note")
_LIST_EXAMPLES = """
Multiply-adds are those of one forward pass of one image. Any other model of timm goes by `timm:NAME`.

examples:
  vit-dist models list
  vit-dist models list hybrid --image-size 384
  vit-dist models list --num-classes 18291        with the head of JFT-300M
  vit-dist models list --plugin my_models.py      and those of a plug-in
"""
_SHOW_EXAMPLES = """
examples:
  vit-dist models show ViT-L/16
  vit-dist models show ViT-B/16 pool=map position_embedding=sincos --image-size 384
  vit-dist models show timm:convnext_tiny --tensors
  vit-dist models show vit patch_size=8 width=256 depth=6 num_heads=4     a ViT by its numbers
"""


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", metavar="S", type=int, help="default 224, and 28 for -demo and -test")
    parser.add_argument("--num-classes", metavar="K", type=int, default=1000, help="outputs of the head (default 1000)")


def _giga(macs: int) -> str:
    return f"{macs / 1e9:,.2f}" if macs >= 1e8 else f"{macs / 1e9:.4f}"


def list_main(argv: list[str]) -> int:
    """Print every model with its cost."""
    parser = verb_parser("vit-dist models list", "every model by name: parameters and multiply-adds", _LIST_EXAMPLES)
    parser.add_argument("only", metavar="PART", nargs="?", default="", help="only names and families that contain this")
    _add_shape(parser)
    add_plugin(parser)
    args = parser.parse_args(argv)
    load_plugins(args.plugin)
    at_least_one(args, "image_size", "num_classes")

    from vit_dist.core.registry import MODELS
    from vit_dist.core.tables import columns, to_lines
    from vit_dist.models.costs import model_cost

    rows = list[tuple[str, str, str, str, str, str]]()
    for name in MODELS.names():
        config = _by_name(name)
        if config is None:
            continue
        if args.only.lower() not in f"{name} {config.family}".lower():
            continue
        size = args.image_size or usual_size(config)
        if size % config.stride:
            rows.append((name, config.family, "-", "-", "-", f"{config.stride} does not divide {size}"))
            continue
        cost = model_cost(config, num_classes=args.num_classes, image_size=size)
        if cost is not None:
            rows.append((name, config.family, f"{cost.params:,}", _giga(cost.macs), str(size), ""))
        # Of a plug-in: torch would have to build it.
        else:
            rows.append((name, config.family, "-", "-", str(size), "`models show` counts"))
    if not rows:
        raise ConfigError(f"no model has {args.only!r} in its name or family; `vit-dist models list` names them all")
    table = columns(rows, _HEADS, right={"parameters", "GMACs", "pixels"})
    sys.stdout.write("\n".join(to_lines(table)) + "\n")
    warn_of_broken()
    return 0


def _by_name(name: str) -> ModelConfig | None:
    """A model that its name describes whole; None for families by themselves, which want their shape."""
    try:
        return model_config(name)
    except ConfigError:
        return None


def show_main(argv: list[str]) -> int:
    """Print the settings, the cost and the tensors of a model."""
    parser = verb_parser("vit-dist models show", "the settings of one model, and its tensors", _SHOW_EXAMPLES)
    parser.add_argument("name", metavar="NAME", help="a name of `vit-dist models list`, or timm:NAME")
    parser.add_argument("settings", metavar="k=v", nargs="*", help="settings over those of the name")
    _add_shape(parser)
    parser.add_argument("--tensors", action="store_true", help="list every tensor with its shape (imports torch)")
    add_plugin(parser)
    args = parser.parse_intermixed_args(argv)
    load_plugins(args.plugin)
    at_least_one(args, "image_size", "num_classes")

    import yaml

    from vit_dist.config.sections import meaning_of
    from vit_dist.models.costs import model_cost

    config = model_config(args.name, args.settings)
    size = args.image_size or usual_size(config)
    config.fit(size)
    cost = _cost(config, args.num_classes, size)
    described = {key: value for key, value in config.model_dump(mode="json").items() if value is not None}
    fields = [(name, meaning_of(type(config), name)) for name in type(config).model_fields if name != "name"]
    explained = "\n".join(
        textwrap.fill(f"{n}: {text}", 100, initial_indent="# ", subsequent_indent="#   ") for n, text in fields if text
    )
    trained = model_cost(config, num_classes=args.num_classes, image_size=size, training=True) or cost
    kept = "" if trained.macs == cost.macs else f", {_giga(trained.macs)} in training, where patches are left out"
    sys.stdout.write(
        f"{yaml.safe_dump(described, sort_keys=False)}\n{explained}\n\n"
        f"{cost.params:,} parameters with {args.num_classes:,} classes; {_giga(cost.macs)} GMACs for one "
        f"{size}x{size} image{kept}\n"
    )
    if args.tensors:
        from vit_dist.models.weights.adapt import shapes_of

        for name, shape in shapes_of(config, args.num_classes, size).items():
            sys.stdout.write(f"{name:<48} {'x'.join(map(str, shape)) or 'a number'}\n")
    return 0


def _cost(config: ModelConfig, num_classes: int, image_size: int) -> Cost:
    """By arithmetic; a model of timm is built without weights and counted."""
    from vit_dist.models.costs import model_cost

    cost = model_cost(config, num_classes=num_classes, image_size=image_size)
    if cost is not None:
        return cost
    from vit_dist.models._macs import count_cost

    return count_cost(config, num_classes, image_size)
