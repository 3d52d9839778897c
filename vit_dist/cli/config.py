"""`vit-dist config`: the resolved recipe, and the hash that names it."""

from __future__ import annotations

import argparse
import sys

from vit_dist.core.places import local_or_name

SUMMARY = "print a resolved recipe and its hash"

_EXAMPLES = """
Prints the whole recipe as YAML, every default filled in, and its identity hash as a comment. Keys that do not change
what is learned (names, URLs, cadences, the engine) are not in the hash: a run is the same run on another cluster.

--explain tells of a key, a section (optim) or a plug-in (model.vit) what it may be, its unit, its default, what it
means, and whether it counts for the identity; of cluster and study files with clusters.KEY and studies.KEY. Without a
KEY: all. With a RECIPE its plug-in files are known too. docs/recipe.md is all of it as a page.

examples:
  vit-dist config demo
  vit-dist config configs/recipes/vit-b16-jft300m.yaml optim.lr=1e-3 data.subset=30M
  vit-dist config demo --hash
  vit-dist config --explain optim
  vit-dist config --explain model.ViT-B/16
  vit-dist config --explain clusters.time_limit
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist config", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe",
        type=local_or_name,
        metavar="RECIPE",
        nargs="?",
        help="a YAML file, or the name of one in configs/recipes",
    )
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides, applied last")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--hash", action="store_true", help="print the hash alone")
    shown.add_argument("--explain", metavar="KEY", nargs="?", const="", help="what keys there are, and what they mean")
    shown.add_argument("--page", action="store_true", help="the same as Markdown: docs/recipe.md")
    args = parser.parse_intermixed_args(argv)

    from vit_dist.config.load import dropped, load_recipe, recipe_hash, recipe_yaml
    from vit_dist.core.errors import ConfigError

    explains = args.page or args.explain is not None
    if args.recipe is None and not explains:
        raise ConfigError("vit-dist config: give a RECIPE, such as demo, or --explain [KEY]; `vit-dist list recipes`")
    recipe = load_recipe(args.recipe, args.overrides) if args.recipe is not None else None
    if explains:
        from vit_dist.cli.explain import explain, page

        sys.stdout.write(page() if args.page else explain(args.explain))
        return 0
    assert recipe is not None

    from vit_dist.config.cadences import unrated_checkpoints
    from vit_dist.core.log import WARNING, log

    for remark in dropped(args.recipe, args.overrides, recipe), unrated_checkpoints(recipe, recipe.data.subset):
        if remark:
            log(remark, WARNING)
    digest = recipe_hash(recipe)
    sys.stdout.write(f"{digest}\n" if args.hash else f"{recipe_yaml(recipe)}# hash: {digest}\n")
    return 0
