"""`vit-dist data index`: a manifest for tars that somebody else wrote. No torch."""

from __future__ import annotations

from vit_dist.cli.data.options import default_workers, out, parser, positive, say
from vit_dist.core.files import redact
from vit_dist.core.places import any_option, local_option
from vit_dist.core.units import counted, format_bytes

_SHOWN = 20


def main(argv: list[str]) -> int:
    """Index tars."""
    p = parser(
        "index",
        "Make the manifest and the sample indexes of WebDataset tars that somebody else wrote.",
        """
Each tar is read once, in parallel; nothing is copied. Run it again and only new or changed tars are read.
Sample counts told by wids, sizes.json, _info.json, img2dataset or wds2idx must agree with the tars.
Without --shuffled the samples count as lying in an order of their own, and subsets are drawn by hash.
docs/data.md says what a label may be. Tars that `vit-dist data pack` wrote keep the names of their classes.
""",
        "  vit-dist data index 's3://bucket/cc12m/{00000..01242}.tar' --out cc12m.json --labels none --shuffled\n"
        "  vit-dist data index /data/imagenet-w21/ --out runs/data/w21.json\n"
        "  vit-dist data index /data/tars/ --out tars.json --labels json --label-field meta.class --classes names.txt\n"
        "  vit-dist data index pairs.tar --out pairs.json --image left.jpg --labels output.cls\n"
        "  vit-dist data index old/wids.json --out new/manifest.json",
    )
    p.add_argument(
        "urls",
        type=any_option,
        nargs="+",
        metavar="URL",
        help="tars, {000..123} or * patterns, directories, a wids list",
    )
    p.add_argument(
        "--out",
        type=any_option,
        required=True,
        metavar="MANIFEST",
        help="where the manifest goes; indexes go beside it",
    )
    p.add_argument(
        "--split-name",
        default="",
        metavar="NAME",
        help="of tars of several splits in a directory: train, test, ..., all",
    )
    p.add_argument("--shuffled", action="store_true", help="the samples are known to lie in random order")
    p.add_argument(
        "--labels",
        default="auto",
        metavar="EXT",
        help="member with the labels: cls, json, txt, output.cls, ... or none",
    )
    p.add_argument(
        "--label-field", default="", metavar="KEY", help="key in .json, dots go deeper (default: labels, then label)"
    )
    p.add_argument("--classes", type=local_option, metavar="FILE", help="names of the classes, one a line")
    p.add_argument(
        "--num-classes", type=positive, metavar="N", help="size of the label space (default: largest label + 1)"
    )
    p.add_argument(
        "--image", default="", metavar="EXT", help="member with the image, where there are several: left.jpg"
    )
    p.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out samples without an image, or with a label that is none, and list them",
    )
    p.add_argument("--name", default="", help="of the dataset")
    p.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    args = p.parse_args(argv)

    from vit_dist.data.indexing import index_tars
    from vit_dist.data.labels import label_rule, read_classes

    classes = read_classes(args.classes) if args.classes else ()
    rule = label_rule(args.labels, args.label_field, classes, args.image)
    result = index_tars(
        args.urls,
        args.out,
        split_name=args.split_name,
        shuffled=args.shuffled,
        rule=rule,
        num_classes=args.num_classes,
        name=args.name,
        leave_out=args.skip_bad,
        num_workers=args.workers or default_workers(),
        say=say,
    )
    for url, key, offset, reason in result.left_out[:_SHOWN]:
        say(f"left out: {redact(url)}: at byte {offset}: sample {key!r} {reason}")
    if len(result.left_out) > _SHOWN:
        say(f"left out: {len(result.left_out) - _SHOWN:,} more")
    if result.ignored:
        say(
            f"{counted(result.ignored, 'member is', 'members are')} no part of a sample "
            "(no extension, hidden, or not a file)"
        )
    manifest = result.manifest
    out(
        f"{redact(args.out)}: {counted(manifest.num_samples, 'example')} of "
        f"{counted(manifest.num_classes, 'class')} in {counted(len(manifest.shards), 'shard')}, "
        f"{format_bytes(int(manifest.sizes.sum()))}, {'shuffled' if manifest.shuffled else 'not shuffled'}, "
        f"fingerprint {manifest.fingerprint}\n"
    )
    return 0
