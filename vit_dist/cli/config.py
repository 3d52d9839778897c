"""`vit-dist config`: the resolved recipe, and the hash that names it."""

from __future__ import annotations

import argparse
import sys

from vit_dist.core.places import local_or_name

SUMMARY = "print a resolved recipe and its hash"

_EXAMPLES = """
Prints the whole recipe as YAML, every default filled in, and its identity hash as a comment. Keys that do not change
what is learned (names, URLs, cadences, the engine) are not in the hash: a run is the same run on another cluster.

examples:
  vit-dist config demo
  vit-dist config configs/recipes/vit-b16-jft300m.yaml optim.lr=1e-3 data.subset=30M
  vit-dist config demo --hash
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist config", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", type=local_or_name, metavar="RECIPE", help="a YAML file, or the name of one in configs/recipes"
    )
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides, applied last")
    parser.add_argument("--hash", action="store_true", help="print the hash alone")
    args = parser.parse_intermixed_args(argv)

    from vit_dist.config.cadences import unrated_checkpoints
    from vit_dist.config.load import load_recipe, recipe_hash, recipe_yaml
    from vit_dist.core.log import WARNING, log

    recipe = load_recipe(args.recipe, args.overrides)
    remark = unrated_checkpoints(recipe, recipe.data.subset)
    if remark:
        log(remark, WARNING)
    digest = recipe_hash(recipe)
    sys.stdout.write(f"{digest}\n" if args.hash else f"{recipe_yaml(recipe)}# hash: {digest}\n")
    return 0
