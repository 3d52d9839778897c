"""Samples of existing WebDataset tars, to be packed anew: shuffled, in other shards, resized. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vit_dist.core.files import redact
from vit_dist.data.classes import names_beside
from vit_dist.data.labels import LabelRule
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.sources import Source
from vit_dist.data.scan import scan_tar
from vit_dist.data.tars import find_tars


def tar_source(urls: Sequence[str], rule: LabelRule, num_classes: int | None) -> Source:
    """The samples of tars. Keys are the tar's name and the old key, since old keys may repeat from tar to tar.

    The label is written as `.cls`, or into `.json` where there are several; other members are kept as they are.

    Raises:
        DataError: a tar is missing or damaged, or a sample has no image or no label.
    """
    if rule.classes:
        rule = replace(rule, num_classes=num_classes)
    tars = find_tars(urls)
    stems = [tar.url.rpartition("/")[2].removesuffix(".tar") for tar in tars]
    if len(set(stems)) != len(stems):
        stems = [f"{i:05d}-{stem}" for i, stem in enumerate(stems)]

    def items() -> Iterator[Item]:
        for stem, tar in zip(stems, tars, strict=True):
            index = scan_tar(tar.url, rule).index
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

    name = urls[0].rstrip("/").rpartition("/")[2].removesuffix(".tar")
    classes = names_beside((tar.url for tar in tars), urls, rule)
    num_classes = num_classes or len(rule.classes) or None
    return Source("tar", name, "", items, classes, num_classes, image_member=rule.image)
