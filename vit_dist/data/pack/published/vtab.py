"""Lists of images with labels, a text a split, as VTAB-1k's tasks are handed around: train800val200.txt. No torch.

VTAB: Zhai et al. (arXiv:1910.04867). A line is 'images/train800val200/000001.jpg 49': a path from the folder of the
list, and the number of a class from 0. The name of a list is that of its split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import folder_url, url_name
from vit_dist.core.units import counted
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.published.files import lines, look, shown
from vit_dist.data.pack.sources import Source

LISTS = {"train800": 800, "val200": 200, "train800val200": 1000}
"""The splits of VTAB-1k, and how many images each has."""


def vtab_source(url: str, scratch: Path, split: str, names: tuple[str, ...], num_classes: int | None) -> Source:
    """The images of one list.

    Args:
        url: of the folder with the lists and the images.
        scratch: not used: nothing is packed in archives.
        split: name of a list, without '.txt'; of VTAB-1k's, 'train' means train800val200.
        names: of the classes, in the order of their labels.
        num_classes: None: as many as the names, or the labels of all lists together.

    Raises:
        ConfigError: no list is named, or no such one.
        DataError: a line, a label or an image that is missing or wrong.
    """
    files = look(url, scratch)
    known = {place.path.removesuffix(".txt"): place for path, place in files.by_path.items() if _is_list(path)}
    asked = "train800val200" if split == "train" and "train" not in known else split
    if asked not in known:
        have = ", ".join(sorted(known)) or "none"
        if split:
            raise ConfigError(
                f"--split-name {split!r}: no list of this name in {files.where}{did_you_mean(split, known)}"
            )
        raise ConfigError(
            f"{files.where}: holds a list for each of several splits; choose one with --split-name: {have}"
        )
    rows = {name: _rows(place.where, lines(place)) for name, place in known.items()}
    place, chosen = known[asked], rows[asked]
    total = len(names) or num_classes or 1 + max(label for listed in rows.values() for _, label in listed)
    for number, (_, label) in enumerate(chosen, 1):
        if label >= total:
            raise DataError(f"{place.where}:{number}: label {label} is out of range: {counted(total, 'class')}, from 0")
    absent = [path for path, _ in chosen if path not in files.by_path]
    if absent:
        raise DataError(f"{files.where}: {counted(len(absent), 'image')} of {place.where} missing: {shown(absent)}")

    def items() -> Iterator[Item]:
        for path, label in chosen:
            image = files.by_path[path]
            yield Item(safe_key(path.rpartition(".")[0] or path), image.url, -1, image.num_bytes, (label,))

    source = Source("vtab", f"{url_name(folder_url(url)) or 'vtab'}-{asked}", "", items, names, total)
    source.notes.append(
        f"{place.where}: read as a list of VTAB: {counted(len(chosen), 'image')} of {counted(total, 'class')}"
    )
    if LISTS.get(asked, len(chosen)) != len(chosen):
        source.notes.append(f"{place.where}: {counted(len(chosen), 'image')}; VTAB-1k's list has {LISTS[asked]:,}")
    return source


def _is_list(path: str) -> bool:
    return (
        path.endswith(".txt") and "/" not in path and path.removesuffix(".txt") not in {"classes", "README", "readme"}
    )


def _rows(where: str, listed: list[str]) -> list[tuple[str, int]]:
    rows = []
    for number, line in enumerate(listed, 1):
        path, _, label = line.rpartition(" ")
        if not path or not label.isdecimal() or len(label) > 8:
            raise DataError(f"{where}:{number}: expected 'images/.../000001.jpg 49', got {line[:80]!r}")
        rows.append((path.strip().removeprefix("./"), int(label)))
    if not rows:
        raise DataError(f"{where}: names no images")
    return rows
