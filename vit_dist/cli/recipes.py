"""`vit-dist recipes`: the shipped recipes with model, data, length, GPU-hours, what was reported, and what differs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_dist.cli.verbs import verb_parser
from vit_dist.core.devices import NAMES, Device, find_device, parse_utilisation
from vit_dist.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vit_dist.study.shipped import ShippedRecipe

DEVICE, UTILISATION = "h100", 0.4
"""What hours are counted by unless another is asked for; `study plan` assumes the same part of a peak."""

_EXAMPLES = f"""
Hours are arithmetic, not measured: FLOPs of all training steps (three forward passes an example, 2 a multiply-add) by
a part of a device's peak, {UTILISATION:.0%} of an {DEVICE}'s unless said otherwise. Evaluation, reading and
waiting come on top. Of a fine-tuning they are those of one run; its grid trains one for each rate. Epochs are those of
the source's set; `vit-dist study plan` counts those of yours.

Reported numbers are the source's, of what the source trained; none of them was measured with this project. What of the
source a recipe does not do stands beside it: +N in the table is the number of such differences, and a NAME shows them.

examples:
  vit-dist recipes                              all of them, a line each
  vit-dist recipes vit-b16-imagenet             one in full
  vit-dist recipes 'deit3-*' --device a100 --utilisation 35%
  vit-dist recipes --csv > recipes.csv          every number
  vit-dist recipes --json | jq '.[].differs'
  vit-dist train vit-s16-imagenet-90ep data.train=URL data.val=URL --nproc 8
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    what = "list the shipped recipes with their costs, sources and reported numbers, or show some in full"
    parser = verb_parser("vit-dist recipes", what, _EXAMPLES)
    parser.add_argument("names", metavar="NAME", nargs="*", help="recipes to show in full; * and ? stand for any text")
    parser.add_argument("--device", metavar="NAME", default=DEVICE, help=f"{NAMES} (default {DEVICE})")
    parser.add_argument(
        "--utilisation",
        metavar="FRACTION",
        default=str(UTILISATION),
        help="of its peak, such as 0.4 or 40%% (default 40%%)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs: a record a recipe")
    form.add_argument("--csv", action="store_true", help="for spreadsheets: a line a recipe")
    form.add_argument("--page", action="store_true", help="all as Markdown: docs/recipes.md")
    args = parser.parse_args(argv)

    device, utilisation = find_device(args.device), parse_utilisation(args.utilisation)
    if args.page and args.names:
        raise ConfigError(f"--page is of all recipes; leave {', '.join(args.names)} out")

    from vit_dist.study.shipped import shipped_paths, shipped_recipe

    paths = shipped_paths()
    found = [shipped_recipe(paths[name], device, utilisation) for name in _matching(args.names, list(paths))]
    if args.json:
        sys.stdout.write(json.dumps([record(one) for one in found], indent=1) + "\n")
    elif args.csv:
        from vit_dist.core.tables import csv_text

        records = [_flat(record(one)) for one in found]
        sys.stdout.write(csv_text([list(records[0]), *(list(one.values()) for one in records)]))
    elif args.page:
        from vit_dist.cli.recipe_texts import page

        sys.stdout.write(page(found, device, utilisation))
    elif args.names:
        from vit_dist.cli.recipe_texts import in_full

        sys.stdout.write("\n".join(in_full(one, device, utilisation) for one in found))
    else:
        _list(found, device, utilisation)
    return 0


def _matching(asked: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names that were asked for, in order, each once; all where none was.

    Raises:
        ConfigError: one of them is no recipe's, or nothing matches a pattern.
    """
    from fnmatch import fnmatchcase

    found: list[str] = []
    for text in asked or ["*"]:
        matches = [name for name in known if fnmatchcase(name, text)]
        if not matches:
            hint = did_you_mean(text, known) if not set("*?[") & set(text) else "; `vit-dist recipes` lists them"
            raise ConfigError(f"no shipped recipe is called {text!r}{hint}")
        found += [name for name in matches if name not in found]
    return found


def record(one: ShippedRecipe) -> dict[str, Any]:
    """All that is said of a recipe, as plain data."""
    recipe, about = one.recipe, one.recipe.about
    return {
        "name": one.name,
        "model": recipe.model.name,
        "data": one.trained_on or None,
        "image_size": recipe.data.image_size,
        "horizon": str(recipe.horizon),
        "epochs": one.epochs,
        "examples": one.examples,
        "global_batch": recipe.global_batch,
        "optimizer": recipe.optim.name,
        "lr": recipe.optim.lr,  # type: ignore[attr-defined]
        "weight_decay": getattr(recipe.optim, "weight_decay", None),
        "schedule": recipe.schedule.name,
        "loss": recipe.loss.name,
        "params": one.cost and one.cost.params,
        "macs": one.cost and one.cost.macs,
        "flops": one.flops,
        "device_hours": one.device_hours,
        "reported": [] if about is None else [r.model_dump() for r in about.reported],
        "source": None if about is None else about.source,
        "differs": [] if about is None else list(about.differs),
    }


def _flat(plain: dict[str, Any]) -> dict[str, Any]:
    said = "; ".join(f"{r['value']:g}: {r['metric']} ({r['where']})" for r in plain["reported"])
    return {**plain, "reported": said, "differs": " ".join(plain["differs"])}


def _list(found: Sequence[ShippedRecipe], device: Device, utilisation: float) -> None:
    from vit_dist.cli.recipe_texts import assumed
    from vit_dist.core.tables import columns, to_lines

    heads = ("recipe", "model", "data", "length", f"{device.name}-hours", "reported", "differs", "source")
    rows = [_row(one) for one in found]
    right = (f"{device.name}-hours", "reported", "differs")
    for line in to_lines(columns(rows, heads, right=right)):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(
        f"hours: arithmetic, by {assumed(device, utilisation)}; --device, --utilisation\n"
        "reported: by the source, in %, of what the source trained; `vit-dist recipes NAME` says of what\n"
    )


def _row(one: ShippedRecipe) -> list[str]:
    from vit_dist.cli.recipe_texts import hours, number

    about = one.recipe.about
    reported = number(about.reported[0]) if about is not None and about.reported else ""
    differs = f"+{len(about.differs)}" if about is not None and about.differs else ""
    source = "" if about is None else about.source.partition(";")[0]
    length = str(one.recipe.horizon)
    return [one.name, one.recipe.model.name, one.trained_on, length, hours(one), reported, differs, source]
