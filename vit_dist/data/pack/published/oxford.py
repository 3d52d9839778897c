"""Oxford-IIIT Pets (images and lists) and Oxford Flowers 102 (images and MATLAB's files), as published. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.units import counted
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.published.files import Files, Place, lines, look, matlab, shown, whole_numbers
from vit_dist.data.pack.sources import Source
from vit_dist.data.splits import ALL, split_of_folder

PETS_ARCHIVES = ("images.tar.gz", "annotations.tar.gz")
_PETS_LISTS = {"trainval": "trainval.txt", "test": "test.txt", ALL: "list.txt"}

FLOWERS_ARCHIVE, FLOWERS_LABELS, FLOWERS_SPLITS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
# https://www.robots.ox.ac.uk/~vgg/data/flowers/102/: train and validation have 10 images a class each.
_FLOWERS_SETS = {"train": ("trnid",), "validation": ("valid",), "test": ("tstid",), "trainval": ("trnid", "valid")}
_FLOWERS_SETS[ALL] = ("trnid", "valid", "tstid")
_FLOWER = r"image_\d{5}\.jpg"


def pets_source(url: str, scratch: Path, split: str) -> Source:
    """Pictures of 37 breeds; a class is called as its files are, without their number, and numbered as the lists say.

    Args:
        url: of the folder with images.tar.gz and annotations.tar.gz, or with what they unpack to.
        scratch: for archives.
        split: 'trainval' (or 'train'), 'test', or 'all'.

    Raises:
        ConfigError: no split is named, or no such one.
        DataError: files that are missing, damaged, or do not fit together.
    """
    chosen = "trainval" if split and split_of_folder(split) == "train" else split
    if chosen not in _PETS_LISTS:
        raise ConfigError(_choose("Oxford-IIIT Pets", split, list(_PETS_LISTS)))
    files = look(url, scratch)
    for archive, held in zip(PETS_ARCHIVES, (r".*_\d+\.jpg", r"trainval\.txt"), strict=True):
        if not files.matching(held):
            files.archives(archive)
    place = _list_of_pets(files, _PETS_LISTS[chosen])
    images = files.matching(r".*_\d+\.jpg")
    rows = _pets(place)
    absent = [f"{name}.jpg" for name, _ in rows if f"{name}.jpg" not in images]
    if absent:
        raise DataError(
            f"{files.where}: {counted(len(absent), 'image')} of {place.where} missing: {shown(absent)}; fetch "
            f"{PETS_ARCHIVES[0]} again"
        )
    classes = _breeds(rows, place)

    def items() -> Iterator[Item]:
        for name, label in rows:
            image = images[f"{name}.jpg"]
            yield Item(safe_key(name), image.url, image.offset, image.num_bytes, (label,), where=image.where)

    source = Source("pets", f"oxford-pets-{chosen}", "", items, classes, len(classes))
    source.notes.append(_told(files, "Oxford-IIIT Pets", chosen, len(rows), len(classes)))
    return source


def _list_of_pets(files: Files, name: str) -> Place:
    return files.find(f"annotations/{name}") or files.need(name, f"which is in {PETS_ARCHIVES[1]}")


def _pets(place: Place) -> list[tuple[str, int]]:
    """Names of images and their labels, of lines such as 'Abyssinian_100 1 1 1', whose labels begin at 1."""
    rows: list[tuple[str, int]] = []
    for number, line in enumerate(lines(place), 1):
        if not line or line.startswith("#"):
            continue
        words = line.split()
        if len(words) < 2 or "_" not in words[0]:
            raise DataError(f"{place.where}:{number}: expected 'NAME_7 CLASS SPECIES BREED', got {line[:60]!r}")
        if not words[1].isdecimal() or int(words[1]) < 1:
            raise DataError(f"{place.where}:{number}: label {words[1][:20]!r} is out of range: classes begin at 1")
        rows.append((words[0], int(words[1]) - 1))
    if not rows:
        raise DataError(f"{place.where}: names no images; fetch it again")
    return rows


def _breeds(rows: list[tuple[str, int]], place: Place) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for name, label in rows:
        breed = name.rpartition("_")[0]
        if names.setdefault(label, breed) != breed:
            raise DataError(
                f"{place.where}: class {label + 1} is {names[label]!r} and {breed!r}: labels that are damaged"
            )
    lacking = [str(i + 1) for i in range(max(names) + 1) if i not in names]
    if lacking or len(set(names.values())) != len(names):
        raise DataError(
            f"{place.where}: classes 1 to {max(names) + 1}, but {shown(lacking) or 'one name twice'}: a label is out "
            f"of range, or lines are missing; fetch it again"
        )
    return tuple(names[i] for i in range(len(names)))


def flowers_source(url: str, scratch: Path, split: str, names: tuple[str, ...]) -> Source:
    """Pictures of 102 flowers; their labels begin at 1 in the file, at 0 here. No file of theirs names the classes.

    Args:
        url: of the folder with 102flowers.tgz (or what it unpacks to), imagelabels.mat and setid.mat.
        scratch: for the archive.
        split: 'train', 'val', 'test', 'trainval' (both of these) or 'all'.
        names: of the classes, in the order of their labels.

    Raises:
        ConfigError: no split is named, or no such one.
        DataError: files that are missing, damaged, or do not fit together.
    """
    chosen = split if split in _FLOWERS_SETS else split_of_folder(split) if split else ""
    if chosen not in _FLOWERS_SETS:
        raise ConfigError(_choose("Oxford Flowers 102", split, ["train", "val", "test", "trainval", ALL]))
    files = look(url, scratch)
    labels_in, splits_in = files.need(FLOWERS_LABELS), files.need(FLOWERS_SPLITS)
    labels = whole_numbers(labels_in, "labels", matlab(labels_in, "labels")["labels"])
    wanted = _FLOWERS_SETS[chosen]
    found = matlab(splits_in, *wanted)
    numbers = [number for name in wanted for number in whole_numbers(splits_in, name, found[name])]
    if not files.matching(_FLOWER):
        files.archives(FLOWERS_ARCHIVE)
    images = _flowers(files, labels, labels_in, numbers, splits_in)
    num_classes = len(names) or max(labels)
    for number in numbers:
        if not 1 <= labels[number - 1] <= num_classes:
            raise DataError(
                f"{labels_in.where}: image {number}: label {labels[number - 1]} is out of range: 1 to {num_classes}"
            )

    def items() -> Iterator[Item]:
        for number in numbers:
            place = images[number]
            yield Item(
                f"image_{number:05d}",
                place.url,
                place.offset,
                place.num_bytes,
                (labels[number - 1] - 1,),
                where=place.where,
            )

    told = "val" if chosen == "validation" else chosen
    source = Source("flowers", f"oxford-flowers102-{told}", "", items, names, num_classes)
    source.notes.append(_told(files, "Oxford Flowers 102", told, len(numbers), num_classes))
    return source


def _flowers(
    files: Files, labels: list[int], labels_in: Place, numbers: list[int], splits_in: Place
) -> dict[int, Place]:
    """The images by their numbers from 1, all of which that a split names are there."""
    images = {int(name[6:11]): place for name, place in files.matching(_FLOWER).items()}
    if not images:
        raise DataError(f"{files.where}: {FLOWERS_ARCHIVE} is missing, or has no images image_00001.jpg and so on")
    if len(images) > len(labels):
        raise DataError(
            f"{files.where}: {counted(len(images), 'image')}, but {labels_in.where} has {counted(len(labels), 'label')}"
        )
    beyond = [str(number) for number in numbers if not 1 <= number <= len(labels)]
    if beyond:
        raise DataError(
            f"{splits_in.where}: image {shown(beyond)}, but {labels_in.where} has {counted(len(labels), 'label')}"
        )
    absent = [f"image_{number:05d}.jpg" for number in numbers if number not in images]
    if absent:
        raise DataError(
            f"{files.where}: {counted(len(absent), 'image')} of {splits_in.where} missing: {shown(absent)}; fetch "
            f"{FLOWERS_ARCHIVE} again"
        )
    return images


def _choose(title: str, split: str, known: list[str]) -> str:
    if split:
        return f"--split-name {split!r}: {title} has {', '.join(known)}{did_you_mean(split, known)}"
    return f"{title} holds several sets; choose one with --split-name: {', '.join(known)}"


def _told(files: Files, title: str, split: str, total: int, num_classes: int) -> str:
    images, classes = counted(total, "image"), counted(num_classes, "class")
    return f"{files.where}: read as {title}, {split}: {images} of {classes}"
