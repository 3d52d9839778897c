"""Samples of existing WebDataset tars, to be packed anew: shuffled, in other shards, resized. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vit_dist.core.files import redact, url_name
from vit_dist.data.classes import names_beside
from vit_dist.data.labels import LabelRule
from vit_dist.data.members import image_of, is_image, part_of_sample
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.sources import Source
from vit_dist.data.scan import scan_tar
from vit_dist.data.tarheader import TarFormatError, walk
from vit_dist.data.tars import find_tars


def tar_source(
    urls: Sequence[str], rule: LabelRule, num_classes: int | None, split_name: str = "", *, skip_bad: bool = False
) -> Source:
    """The samples of tars. Keys are the tar's name and the old key, since old keys may repeat from tar to tar.

    The label is written as `.cls`, or into `.json` where there are several; other members are kept (`split_sample`).

    Raises:
        DataError: a tar is missing or damaged; a sample has no image or no label, unless such are skipped.
    """
    if rule.classes:
        rule = replace(rule, num_classes=num_classes)
    tars = find_tars(urls, split_name)
    stems = [url_name(tar.url).removesuffix(".tar") for tar in tars]
    if len(set(stems)) != len(stems):
        stems = [f"{i:05d}-{stem}" for i, stem in enumerate(stems)]

    def items() -> Iterator[Item]:
        for stem, tar in zip(stems, tars, strict=True):
            scan = scan_tar(tar.url, rule, leave_out=skip_bad)
            for key, _, reason in scan.left_out:
                source.leave_out(f"{redact(tar.url)}: sample {key!r} {reason}")
            index = scan.index
            for i, key in enumerate(index.keys()):
                begin, end = int(index.offsets[i]), int(index.offsets[i + 1])
                labels, weights = index.sample_labels(i)
                soft = tuple(float(w) for w in weights) if any(w != 1 for w in weights) else None
                yield Item(
                    safe_key(f"{stem}/{key}"),
                    tar.url,
                    begin,
                    end - begin,
                    tuple(labels.tolist()),
                    soft,
                    where=f"{redact(tar.url)}: sample {key!r}",
                )

    name = url_name(urls[0]).removesuffix(".tar")
    classes = names_beside((tar.url for tar in tars), urls, rule)
    num_classes = num_classes or len(rule.classes) or None
    source = Source("tar", name, "", items, classes, num_classes, image_member=rule.image)
    return source


def split_sample(content: bytes, image_member: str) -> tuple[bytes, dict[str, bytes]]:
    """The image of a sample and its other members by extension, but for `.cls`, which is written anew.

    What is packed has one plain image: another one, say `png`, is kept as `other.png`. A member with an empty extension
    (`a.`) cannot be written by webdataset and is left out.

    Args:
        content: the sample's part of its tar; members that are no part of a sample may lie in it, and behind it samples
            that are skipped.
        image_member: the extension of the image; '' where there is only one.

    Raises:
        ValueError: this is no sample with one image; the tar was changed after it was listed.
    """
    key, members = None, {}
    try:
        for member in walk(lambda begin, end: content[begin:end], 0, len(content)):
            split = part_of_sample(member)
            if split is not None:
                key = key or split[0]
                if split[0] != key:
                    break
                members[split[1]] = content[member.content : member.content + member.size]
    except TarFormatError as error:
        raise ValueError(f"no tar header at byte {error.offset} of the sample; the tar was changed") from None
    image = members.pop(image_of(members, image_member))
    others: dict[str, bytes] = {}
    for extension, other in members.items():
        name = f"other.{extension}" if is_image(extension, "") else extension
        while name != extension and name in members:
            name = f"other.{name}"
        if name not in {"", "cls"}:
            others[name] = other
    return image, others
