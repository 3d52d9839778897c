"""`vit-dist data pack` and `merge`: images become shards, a manifest and indexes. No torch."""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import TYPE_CHECKING

from vit_dist.cli.data.options import (
    count,
    default_workers,
    fraction,
    fraction_or_count,
    out,
    parser,
    positive,
    say,
    size,
)
from vit_dist.cli.plugins import add_plugin, load_plugins
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import destination, join_url, lies_in, redact
from vit_dist.core.places import any_option, local_option, local_or_name
from vit_dist.core.units import counted, format_bytes

if TYPE_CHECKING:
    # numpy and what reads stores take longer than the help of this verb.
    from vit_dist.data.pack.run import PackResult


def main(argv: list[str]) -> int:
    """Pack a source."""
    args = _parser().parse_args(argv)
    if args.quality is not None and args.quality > 100:
        raise ConfigError(f"--quality {args.quality}: JPEG quality goes from 1 to 100")

    args.dest = destination(args.dest, "DEST")
    if lies_in(args.dest, args.source):
        raise ConfigError(
            f"{redact(args.dest)}: lies inside {redact(args.source)}, from which it is packed; choose another directory"
        )

    load_plugins(args.plugin)
    if args.cluster:
        from vit_dist.cli.data.pack_jobs import submit_pack

        return submit_pack(args, argv)
    alone = [name for name in ("parts", "max_parallel", "time", "run_root", "dry_run") if getattr(args, name)]
    if alone:
        raise ConfigError(f"--{alone[0].replace('_', '-')}: means something with --cluster only")
    return _pack_here(args)


def _pack_here(args: argparse.Namespace) -> int:
    from vit_dist.data.labels import read_classes
    from vit_dist.data.pack.choose import open_source
    from vit_dist.data.pack.run import PackOptions, pack
    from vit_dist.data.pack.shards import ImageOptions
    from vit_dist.data.pack.sources import SourceOptions

    reading = SourceOptions(
        kind=args.kind,
        split_name=args.split_name,
        image_field=args.image_field,
        label_field=args.label_field,
        key_field=args.key_field,
        labels=args.labels,
        skip_bad=args.skip_bad,
        classes=read_classes(args.classes) if args.classes else (),
        num_classes=args.num_classes,
    )
    options = PackOptions(
        samples_per_shard=args.samples_per_shard,
        bytes_per_shard=args.bytes_per_shard,
        seed=args.seed,
        val=args.val or None,
        images=ImageOptions(args.resize_shorter, args.resize_longer, args.quality, args.upright),
        name=args.name,
    )
    result = pack(
        lambda scratch: open_source(args.source, scratch, reading),
        args.dest,
        options,
        max_bad=args.max_bad,
        num_workers=args.workers or default_workers(),
        part=args.part,
        work=args.work_dir,
        force=args.force,
        say=say,
    )
    if args.part:
        out(f"part {args.part[0]}/{args.part[1]} is packed; when all are, run: vit-dist data merge {args.dest}\n")
    else:
        _report(result, args.dest)
    return 0


def _parser() -> argparse.ArgumentParser:
    p = parser(
        "pack",
        "Pack labelled images into globally shuffled WebDataset tars, with a manifest and sample indexes.",
        """
SRC is a folder with one directory per class, MNIST's IDX files, a list of paths or URLs with labels (.jsonl,
.csv, .tsv), Parquet with the images inside, WebDataset tars to be packed anew, a set as its makers publish it
(ImageNet, ReaL, CIFAR, Oxford Pets and Flowers, VTAB-1k: docs/data.md), or what a plug-in reads. Images
that cannot be decoded are left out and listed in DEST/bad.jsonl; files under several labels stay, and are listed in
DEST/copies.jsonl. Original bytes are kept unless a size or quality is given. The command may be killed and started
again: it resumes. Packing twice gives the same bytes. docs/data.md says what a label may be. A label that is none
is refused with its file, row or sample, and value.
""",
        "  vit-dist data pack photos/ runs/data/photos\n"
        "  vit-dist data pack photos/ s3://bucket/photos --samples-per-shard 10k --resize-shorter 320\n"
        "  vit-dist data pack photos/ runs/data/photos --val 5%                 # two sets: train and val\n"
        "  vit-dist data pack configs/data/fashion-mnist-mini runs/data/fm/train --split-name train\n"
        "  vit-dist data pack cifar-10-python.tar.gz runs/data/cifar10/train --split-name train\n"
        "  vit-dist data pack ilsvrc2012/ s3://b/inet/val --format imagenet --split-name val --resize-shorter 320\n"
        "  vit-dist data pack list.csv s3://bucket/set --image-field file --label-field species\n"
        "  vit-dist data pack 's3://bucket/old/{00000..00099}.tar' s3://bucket/new --resize-shorter 320\n"
        "  vit-dist data pack photos/ s3://bucket/photos --part 3/16            # one of 16 array tasks, then:\n"
        "  vit-dist data merge s3://bucket/photos\n"
        "  vit-dist data pack s3://in/photos s3://out/photos --cluster dgx-h100 --parts 64   # both, as Slurm jobs",
    )
    p.add_argument("source", type=any_option, metavar="SRC", help="where the images are")
    p.add_argument(
        "dest", type=any_option, metavar="DEST", help="directory or URL (s3://, gs://, ...) that the shards go to"
    )
    _add_source(p)
    _add_written(p)
    _add_max_bad(p)
    p.add_argument("--workers", type=positive, default=None, metavar="N", help="processes (default: one a core)")
    p.add_argument("--part", type=_part, metavar="I/N", help="pack one of N parts; then `vit-dist data merge DEST`")
    p.add_argument(
        "--work-dir", type=local_option, metavar="DIR", help="local scratch folder (default: inside DEST, or /tmp)"
    )
    p.add_argument("--force", action="store_true", help="replace another packing in DEST")
    _add_slurm(p)
    return p


def _add_source(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("what is read")
    group.add_argument(
        "--format",
        "--from",
        dest="kind",
        default="",
        metavar="KIND",
        help="what SRC is: folder, idx, list, parquet, tar, imagenet, imagenet-real, cifar, pets, flowers, vtab, or a "
        "plug-in's (default: it looks)",
    )
    add_plugin(group)
    group.add_argument(
        "--image-field",
        default="",
        metavar="F",
        help="list, Parquet: field of the image; tars: its extension (left.jpg)",
    )
    group.add_argument(
        "--label-field",
        default="",
        metavar="F",
        help="list, Parquet: field of the labels; tars: key in .json; CIFAR-100: fine (default), coarse",
    )
    group.add_argument(
        "--key-field",
        default="",
        metavar="F",
        help="list, Parquet: field of keys, unique in the whole set (default: numbered)",
    )
    group.add_argument(
        "--labels", default="auto", metavar="EXT", help="tars: member with the labels: cls, json, txt, output.cls, ..."
    )
    group.add_argument(
        "--skip-bad", action="store_true", help="tars: leave out samples without an image or a label, and list them"
    )
    group.add_argument(
        "--classes",
        type=local_option,
        metavar="FILE",
        help="names of the classes, one a line: of a folder, list, Parquet, tars, ImageNet, Flowers, VTAB",
    )
    group.add_argument(
        "--num-classes", type=positive, metavar="N", help="list, Parquet, tars, VTAB: size of the label space"
    )
    group.add_argument(
        "--split-name",
        default="",
        metavar="NAME",
        help="which split of a source that holds several: train, val, test, ...; of files also all, together",
    )


def _add_written(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("what is written")
    group.add_argument(
        "--samples-per-shard", type=positive, default=10_000, metavar="N", help="images in a shard (default 10k)"
    )
    group.add_argument("--bytes-per-shard", type=size, metavar="B", help="instead: bytes in a shard, about ('512 MiB')")
    group.add_argument("--seed", type=count, default=0, metavar="N", help="of the shuffle (default 0)")
    group.add_argument(
        "--val",
        type=fraction_or_count,
        metavar="FRACTION|N",
        help="so many go to DEST/val, the rest to DEST/train",
    )
    group.add_argument("--resize-shorter", type=positive, metavar="PX", help="reduce the shorter side to this")
    group.add_argument("--resize-longer", type=positive, metavar="PX", help="reduce the longer side to this")
    group.add_argument(
        "--quality",
        type=positive,
        metavar="Q",
        help="write every image as JPEG of this quality (default: 90 where resized)",
    )
    group.add_argument(
        "--upright", action="store_true", help="turn photos as their EXIF orientation says (default: not turned)"
    )
    group.add_argument("--name", default="", help="of the dataset, in the manifest (default: that of SRC)")


def _add_slurm(p: argparse.ArgumentParser) -> None:
    on_slurm = p.add_argument_group(
        "as Slurm jobs",
        "An array of parts, and a job that merges them once all are packed. Given again, the same command submits what "
        "is missing.",
    )
    on_slurm.add_argument(
        "--cluster", type=local_or_name, metavar="NAME", help="a YAML file, or the name of one in configs/clusters"
    )
    on_slurm.add_argument(
        "--parts", type=positive, metavar="N", help="into how many jobs the packing is cut (default 16)"
    )
    on_slurm.add_argument("--max-parallel", type=positive, metavar="N", help="parts at a time (default: no limit)")
    on_slurm.add_argument("--time", metavar="SPAN", help="time limit of a part (default: the cluster's)")
    on_slurm.add_argument(
        "--run-root",
        type=local_option,
        metavar="DIR",
        help="for scripts and logs (default: the cluster's run_root, or runs)",
    )
    on_slurm.add_argument("--dry-run", action="store_true", help="print the scripts; needs no Slurm")


def _add_max_bad(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--max-bad",
        type=fraction,
        default=Fraction(1, 100),
        metavar="FRACTION",
        help="unreadable images accepted (default 1%%)",
    )


def merge_main(argv: list[str]) -> int:
    """Join parts."""
    p = parser(
        "merge",
        "Write the manifest of what `vit-dist data pack --part I/N` packed, once all parts are there.",
        "",
        "  vit-dist data merge s3://bucket/photos",
    )
    p.add_argument("dest", type=any_option, metavar="DEST", help="the parts' common destination")
    _add_max_bad(p)
    args = p.parse_args(argv)
    args.dest = destination(args.dest, "DEST")

    from vit_dist.data.pack.run import merge

    _report(merge(args.dest, max_bad=args.max_bad), args.dest)
    return 0


def _report(result: PackResult, dest: str) -> None:
    from vit_dist.data.pack.dest import BAD_LIST

    if result.already_there:
        say("already packed from the same source with the same options; nothing to do")
    if result.num_bad:
        say(f"left out {counted(result.num_bad, 'unreadable image')}; see {redact(dest)}/{BAD_LIST}")
    if result.num_turned and result.upright:
        say(f"turned {counted(result.num_turned, 'image')} upright, as their EXIF orientation says")
    elif result.num_turned:
        what = counted(result.num_turned, "image is stored on its side", "images are stored on their side")
        say(f"{what} or mirrored, as EXIF orientation says, and trained on as stored; --upright turns such images")
    _report_copies(result, dest)
    for url, manifest in result.manifests:
        out(
            f"{redact(url)}: {counted(manifest.num_samples, 'example')} of {counted(manifest.num_classes, 'class')} in "
            f"{counted(len(manifest.shards), 'shard')}, {format_bytes(int(manifest.sizes.sum()))}, "
            f"fingerprint {manifest.fingerprint}\n"
        )


def _report_copies(result: PackResult, dest: str) -> None:
    """What images were found to share, where they were compared now."""
    from vit_dist.data.pack.copies import COPIES_LIST

    where, copies = redact(dest), result.copies
    if copies is None:
        if not result.already_there:
            say("whether images are there twice, with other labels, was not looked for; `vit-dist data dedup SET` does")
        return
    if copies.mixed:
        say(
            f"{counted(copies.mixed, 'image is', 'images are')} there more than once with different labels, byte for "
            f"byte: {' and '.join(copies.shown)}{', ...' if copies.mixed > 1 else ''}; all of them: "
            f"{where}/{COPIES_LIST}"
        )
    if copies.in_both:
        train, val = (redact(join_url(dest, name)) for name in ("train", "val"))
        say(
            f"{counted(copies.in_both, 'image of val is', 'images of val are')} in train too, byte for byte, so that "
            f"values on val flatter; `vit-dist data dedup {train} --against {val} --out {train}/dedup.json` makes a "
            f"training set without what is in val"
        )


def _part(text: str) -> tuple[int, int]:
    number, slash, total = text.partition("/")
    if not (slash and number.isdigit() and total.isdigit() and 0 <= int(number) <= int(total) and int(total) > 0):
        raise argparse.ArgumentTypeError(f"expected a part such as 3/16, got {text!r}")
    # 0/16 ... 15/16 and 1/16 ... 16/16 are both every part once: 16/16 is 0/16.
    return int(number), int(total)
