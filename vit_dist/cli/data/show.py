"""`vit-dist data show`: a picture of what a recipe makes of its images."""

from __future__ import annotations

from vit_dist.cli.data.options import count, out, parser, positive
from vit_dist.core.files import redact
from vit_dist.core.places import any_option, local_or_name
from vit_dist.core.units import counted

_DETAILS = """
A row an example: as it is stored, as evaluation views it, and as training will see it, epoch by epoch, with what
was drawn below. With MixUp or CutMix a last picture shows it mixed, as the step that it falls into will. They are the
pixels that training gets: a function of seed, epoch and example alone.
"""
_EXAMPLES = """
  vit-dist data show demo --out views.png
  vit-dist data show demo data.augment.augreg=medium1 --out views.png --images 8
  vit-dist data show vit-b16-imagenet data.train=s3://bucket/photos data.augment.jitter.hue=0.1 --out views.png
"""


def main(argv: list[str]) -> int:
    """Draw examples of a recipe as training sees them."""
    p = parser(
        "show", "Draw some examples of a recipe as training sees them, into a PNG.", _DETAILS, _EXAMPLES.strip("\n")
    )
    p.add_argument("recipe", type=local_or_name, metavar="RECIPE", help="a .yaml file, or the name of one")
    p.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides of the recipe")
    p.add_argument("--out", type=any_option, metavar="PNG", required=True, help="where the picture goes")
    p.add_argument("--images", type=positive, default=4, metavar="N", help="examples, each a row (default 4)")
    p.add_argument("--draws", type=positive, default=6, metavar="N", help="epochs of each (default 6)")
    p.add_argument("--start", type=count, default=0, metavar="P", help="position in the order of the first (default 0)")
    args = p.parse_intermixed_args(argv)

    from vit_dist.config.load import load_recipe, sources_of
    from vit_dist.core.files import write_bytes
    from vit_dist.core.process import heavy_imports
    from vit_dist.data.sets import open_training_set
    from vit_dist.train.plan import read_sets

    recipe = load_recipe(args.recipe, args.overrides)
    data = open_training_set(recipe, read=read_sets(recipe, sources_of(args.recipe, args.overrides, recipe)))
    # What cannot be drawn is refused before torch is imported, which takes seconds.
    with heavy_imports():
        from vit_dist.data.gallery import rows, sheet

    found = rows(data, recipe, start=args.start, images=args.images, draws=args.draws)
    write_bytes(args.out, sheet(found))
    out(
        f"{redact(args.out)}: {counted(len(found), 'example')} of {data.name}, each in {counted(args.draws, 'epoch')}\n"
    )
    return 0
