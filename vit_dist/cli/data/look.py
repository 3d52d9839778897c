"""`vit-dist data info`, `verify`, `subset` and `dedup`: look at a dataset, and choose from it. No torch."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vit_dist.cli.data.options import count, default_workers, out, parser, positive, say
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.places import any_option
from vit_dist.core.units import counted, format_bytes

_LISTED = 10


def info_main(argv: list[str]) -> int:
    """Print what is in a dataset."""
    p = parser(
        "info",
        "Print what is in a dataset: examples, shards, bytes, classes, resolutions; draw some of its images.",
        "",
        "  vit-dist data info runs/data/pets\n"
        "  vit-dist data info s3://bucket/pets --grid pets.png        # 64 random images\n"
        "  vit-dist data info runs/data/pets --all-classes",
    )
    p.add_argument("manifest", type=any_option, help="URL of a manifest.json, or of the directory that holds it")
    p.add_argument("--grid", type=any_option, metavar="PNG", help="draw random images into this file")
    p.add_argument(
        "--columns", type=positive, default=8, metavar="N", help="pictures in a row, and rows of the grid (default 8)"
    )
    p.add_argument(
        "--sample", type=count, default=400, metavar="N", help="images whose resolution is looked at (default 400)"
    )
    p.add_argument("--seed", type=count, default=0, metavar="N", help="of the random images (default 0)")
    p.add_argument("--all-classes", action="store_true", help="list every class, not only the largest and smallest")
    args = p.parse_args(argv)

    from vit_dist.core.files import write_bytes
    from vit_dist.data.describe import count as count_all
    from vit_dist.data.describe import picture_grid, random_pictures
    from vit_dist.data.manifest import read_manifest

    manifest = read_manifest(args.manifest)
    counts = count_all(manifest)
    sizes = manifest.counts
    low, mean, high = counts.image_bytes
    out(
        f"name         {manifest.name}\n"
        f"fingerprint  {manifest.fingerprint}\n"
        f"examples     {manifest.num_samples:,}\n"
        f"shards       {len(manifest.shards):,} of {int(sizes.min()):,} to {counted(int(sizes.max()), 'example')}, "
        f"{format_bytes(int(manifest.sizes.sum()))} in all\n"
        f"order        {'shuffled' if manifest.shuffled else 'not shuffled: subsets are drawn by hash'}\n"
        f"images       {format_bytes(low)} to {format_bytes(high)}, mean {format_bytes(mean)}\n"
    )
    if manifest.excluded:
        out(f"excluded     {manifest.excluded.get('num_samples')} examples of {manifest.excluded.get('fingerprint')}\n")
    _print_classes(manifest, counts, everything=args.all_classes)
    wanted = max(args.sample, args.columns**2 if args.grid else 0)
    pictures = list(random_pictures(manifest, wanted, args.seed)) if wanted else []
    _print_resolutions(pictures)
    if args.grid:
        write_bytes(args.grid, picture_grid(pictures[: args.columns**2], args.columns, manifest.classes))
        out(f"grid         {args.grid}\n")
    return 0


def _print_classes(manifest: Any, counts: Any, *, everything: bool) -> None:
    per_class = counts.per_class.tolist()[: manifest.num_classes]
    labels = f", {counts.num_labels / manifest.num_samples:.2f} labels an example" if manifest.max_labels > 1 else ""
    out(f"classes      {manifest.num_classes:,}{labels}\n")
    if not per_class:
        return
    order = sorted(range(len(per_class)), key=lambda c: (-per_class[c], c))
    empty = sum(not n for n in per_class)
    if empty:
        out(f"             {counted(empty, 'class has', 'classes have')} no examples\n")
    if not everything and len(order) > 2 * _LISTED:
        out(f"             the {_LISTED} largest and the {_LISTED} smallest:\n")
        order = order[:_LISTED] + order[-_LISTED:]
    for c in order:
        # There may be names of the first classes only.
        name = manifest.classes[c] if c < len(manifest.classes) else ""
        out(f"             {per_class[c]:>12,}  {c} {name}".rstrip() + "\n")


def _print_resolutions(pictures: list[Any]) -> None:
    from statistics import median

    from vit_dist.data.describe import size_of

    headers = [size_of(p.content) for p in pictures]
    sizes = [s for s in headers if s is not None]
    if not sizes:
        return
    formats: dict[str, int] = {}
    for _, _, name in sizes:
        formats[name] = formats.get(name, 0) + 1
    shorter = sorted(min(w, h) for w, h, _ in sizes)
    longer = sorted(max(w, h) for w, h, _ in sizes)
    out(
        f"resolution   of {counted(len(sizes), 'random image')}: shorter side {shorter[0]} to {shorter[-1]}, median "
        f"{median(shorter):.0f}; longer side {longer[0]} to {longer[-1]}, median {median(longer):.0f}\n"
        f"formats      {', '.join(f'{n} {c / len(sizes):.0%}' for n, c in sorted(formats.items()))}\n"
    )
    if len(sizes) < len(headers):
        out(f"unreadable   {len(headers) - len(sizes)} of {counted(len(headers), 'random image')}\n")


def verify_main(argv: list[str]) -> int:
    """Check a dataset."""
    p = parser(
        "verify",
        "Check the tars of a dataset against its manifest and indexes; name every difference.",
        "Reads every byte, in parallel. Exit code 1 where anything is wrong. With --images every image is decoded too: "
        "those that are named are the ones that training would replace by others.",
        "  vit-dist data verify s3://bucket/pets\n"
        "  vit-dist data verify runs/data/pets --fast     # sizes and indexes only\n"
        "  vit-dist data verify s3://bucket/pets --images # decode every image too",
    )
    p.add_argument("manifest", type=any_option, help="URL of a manifest.json, or of the directory that holds it")
    how = p.add_mutually_exclusive_group()
    how.add_argument("--fast", action="store_true", help="compare sizes and read the indexes, not the tars")
    how.add_argument("--images", action="store_true", help="decode every image too")
    p.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    args = p.parse_args(argv)

    from vit_dist.core.progress import Progress
    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.verify import verify

    manifest = read_manifest(args.manifest)
    broken = 0
    with Progress("verifying", len(manifest.shards), "shard") as progress:
        workers = args.workers or default_workers()
        for shard, problems in verify(manifest, fast=args.fast, images=args.images, num_workers=workers):
            broken += bool(problems)
            out("".join(f"{problem}\n" for problem in problems))
            # Of sizes and indexes alone no bytes are read.
            progress.advance(1, 0 if args.fast else int(manifest.sizes[shard]))
    if broken:
        one = broken == 1
        holds = "holds" if one else "hold"
        raise DataError(
            f"{args.manifest}: {broken:,} of {counted(len(manifest.shards), 'shard')} {'is' if one else 'are'} not "
            f"what the manifest says{f', or {holds} bad images' if args.images else ''}"
        )
    checked = "sizes and indexes" if args.fast else f"bytes{', images' if args.images else ''} and indexes"
    out(
        f"{args.manifest}: {checked} of {counted(len(manifest.shards), 'shard')}, "
        f"{counted(manifest.num_samples, 'example')}, are right\n"
    )
    return 0


def subset_main(argv: list[str]) -> int:
    """Print or write a subset."""
    p = parser(
        "subset",
        "Print the keys of a nested subset, or write it as a manifest of its own. No image is copied.",
        """
The subset of 9M lies inside that of 30M, and so on. Recipes need no manifest for it: `data.subset=30k` does the
same. --balanced takes equally many of each class, and is nested too; it needs a manifest (--out).
""",
        "  vit-dist data subset runs/data/pets 1k | head\n"
        "  vit-dist data subset s3://bucket/pets 30k --out s3://bucket/pets-30k/manifest.json\n"
        "  vit-dist data subset runs/data/pets 1000 --balanced --out runs/data/pets-1000.json",
    )
    p.add_argument("manifest", type=any_option, help="URL of a manifest.json, or of the directory that holds it")
    p.add_argument("num", type=positive, metavar="N", help="examples (30k, 1.5M)")
    p.add_argument(
        "--subset-seed", type=count, default=0, metavar="S", help="which nested family of subsets (default 0)"
    )
    p.add_argument("--balanced", action="store_true", help="equally many of each class, give or take one")
    p.add_argument("--out", type=any_option, metavar="MANIFEST", help="write a manifest instead of printing keys")
    args = p.parse_args(argv)

    from vit_dist.data.derive import write_subset
    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.subset import select, select_balanced

    manifest = read_manifest(args.manifest)
    chosen = (select_balanced if args.balanced else select)(manifest, args.num, args.subset_seed)
    if args.out:
        made = write_subset(manifest, chosen, args.out, balanced=args.balanced)
        out(
            f"{args.out}: {counted(made.num_samples, 'example')} in {counted(len(made.shards), 'shard')}, "
            f"fingerprint {made.fingerprint}\n"
        )
        return 0
    for i, shard in enumerate(chosen.shards.tolist()):
        keys = manifest.read_index(shard).keys()
        samples = range(int(chosen.counts[i])) if chosen.chosen is None else chosen.chosen[i].tolist()
        out("".join(f"{keys[s]}\n" for s in samples))
    return 0


def _dedup_parser() -> argparse.ArgumentParser:
    p = parser(
        "dedup",
        "Find training images that are nearly those of evaluation sets, and write a manifest without them; or, given a "
        "set alone, the images that are in it twice.",
        """
Images are compared by a 64-bit perceptual hash; where at most --distance bits differ they count as the same. Plain
ones, of one colour or a gradient, have hashes that say nothing: they count as the same where all their pixels are.
What was left out stands in a list beside the new manifest. The tars stay as they are.
""",
        "  vit-dist data dedup s3://bucket/train --against s3://bucket/val --out s3://bucket/train-dedup.json\n"
        "  vit-dist data dedup s3://bucket/train              # images in it twice, byte for byte; nothing is written\n"
        "  vit-dist data dedup train.json --against a/val.json b/test.json --out train-dedup.json --distance 2",
    )
    p.add_argument("manifest", type=any_option, help="of the training set")
    p.add_argument("--against", type=any_option, nargs="+", metavar="MANIFEST", help="of the evaluation sets")
    p.add_argument("--out", type=any_option, metavar="MANIFEST", help="where the new manifest goes")
    p.add_argument("--distance", type=count, default=4, metavar="BITS", help="bits of 64 that may differ (default 4)")
    p.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    return p


def _report_copies(args: argparse.Namespace) -> int:
    """Print the images that are in a set more than once, a line for each file."""
    from vit_dist.core.files import redact
    from vit_dist.core.progress import Progress
    from vit_dist.data.dedup import copies_within
    from vit_dist.data.manifest import read_manifest

    manifest = read_manifest(args.manifest)
    with Progress(f"reading {manifest.name}", manifest.num_samples, "image") as progress:
        copies = copies_within(manifest, args.workers or default_workers(), progress.advance)
    keys: dict[int, list[str]] = {}
    for group, num_labels in zip(copies.groups, copies.num_labels, strict=True):
        for shard in {shard for shard, _ in group} - keys.keys():
            keys[shard] = manifest.read_index(shard).keys()
        told = f"  ({counted(num_labels, 'different label')})" if num_labels > 1 else ""
        out("  ".join(keys[shard][place] for shard, place in group) + told + "\n")
    mixed = sum(num_labels > 1 for num_labels in copies.num_labels)
    say(
        f"{redact(args.manifest)}: {copies.num_surplus:,} of {counted(manifest.num_samples, 'image is', 'images are')} "
        f"copies of another one in the set, byte for byte: {counted(len(copies.groups), 'file stands', 'files stand')} "
        f"there more than once, {mixed:,} of them with different labels"
    )
    return 0


def dedup_main(argv: list[str]) -> int:
    """Write a manifest without near-duplicates of evaluation sets."""
    args = _dedup_parser().parse_args(argv)

    from vit_dist.core.files import write_bytes
    from vit_dist.core.progress import Progress
    from vit_dist.data.dedup import MAX_DISTANCE, Hashes, Known, hash_all, require_imagehash
    from vit_dist.data.derive import write_exclusion
    from vit_dist.data.manifest import read_manifest

    if args.distance > MAX_DISTANCE:
        raise ConfigError(f"--distance {args.distance}: expected 0 to {MAX_DISTANCE} of the 64 bits")
    if (args.against is None) != (args.out is None):
        raise ConfigError(
            f"{'--out' if args.against is None else '--against'}: give --against and --out together, or neither, to "
            f"see what is in the set twice"
        )
    if args.against is None:
        return _report_copies(args)
    require_imagehash()
    workers = args.workers or default_workers()
    train = read_manifest(args.manifest)
    hashes, keys, unreadable, plain = [], [], 0, 0
    for url in args.against:
        evaluation = read_manifest(url)
        with Progress(f"hashing {evaluation.name}", evaluation.num_samples, "image") as progress:
            for shard, hashed in hash_all(evaluation, workers):
                hashes.append(hashed)
                names = evaluation.read_index(shard).keys()
                keys += [(evaluation.name, name) for name in names]
                unreadable += int((~hashed.readable).sum())
                plain += int(hashed.plain.sum())
                progress.advance(len(hashed.values))
    known = Known(Hashes.join(hashes), args.distance)
    left_out: dict[int, list[int]] = {}
    lines: dict[int, list[str]] = {}
    with Progress(f"hashing {train.name}", train.num_samples, "image") as progress:
        for shard, hashed in hash_all(train, workers):
            names = train.read_index(shard).keys()
            unreadable += int((~hashed.readable).sum())
            plain += int(hashed.plain.sum())
            for row, other, distance in zip(*(found.tolist() for found in known.find(hashed)), strict=True):
                left_out.setdefault(shard, []).append(row)
                match = {
                    "shard": train.shards[shard].url,
                    "key": names[row],
                    "set": keys[other][0],
                    "same_as": keys[other][1],
                    "distance": distance,
                }
                lines.setdefault(shard, []).append(json.dumps(match, ensure_ascii=False))
            progress.advance(len(names))
    made = write_exclusion(train, left_out, args.out, reason="dedup")
    listed = [line for shard in sorted(lines) for line in lines[shard]]
    report = f"{args.out.removesuffix('.json')}.excluded.jsonl"
    write_bytes(report, "".join(f"{line}\n" for line in listed).encode())
    if unreadable:
        say(f"{counted(unreadable, 'image')} could not be decoded; they were compared with nothing and stay")
    if plain:
        say(
            f"{counted(plain, 'image is', 'images are')} plain: hashes say nothing of "
            f"such, and they were compared pixel by pixel"
        )
    out(
        f"{args.out}: {len(listed):,} of {counted(train.num_samples, 'example')} left out ({report}), "
        f"{made.num_samples:,} stay, fingerprint {made.fingerprint}\n"
    )
    return 0
