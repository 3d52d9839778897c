"""ILSVRC2012 as it is published: train's tar of tars, the flat validation set with its ground truth, ReaL. No torch.

ReaL: Beyer et al., "Are we done with ImageNet?" (arXiv:2006.07159), real.json of google-research/reassessed-imagenet:
for each validation image in order a list of labels, counted as models do; the empty ones have no part in its accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import redact
from vit_dist.core.small_files import DamagedError, is_count, parse_json
from vit_dist.core.units import counted
from vit_dist.data.grammar import ClassSpace
from vit_dist.data.pack.directories import is_image
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.published.files import Files, Place, look, members, plain_tar, read, shown
from vit_dist.data.pack.published.synsets import WNID, classes_of, truth_of
from vit_dist.data.pack.sources import Source
from vit_dist.data.splits import split_of_folder

TRAIN, VAL, DEVKIT, REAL = (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    "ILSVRC2012_devkit_t12.tar.gz",
    "real.json",
)
VAL_IMAGE = r"ILSVRC2012_val_\d{8}\.JPEG"
_CLASS_TAR = r"n\d{8}\.tar"
_NUM_CLASSES = 1000


def imagenet_source(url: str, scratch: Path, split: str, classes: tuple[str, ...]) -> Source:
    """Train or the validation set, whichever is there, or is named.

    Args:
        url: of the folder with the archives, or with what was in them; or of one archive.
        scratch: for the devkit.
        split: 'train', 'val', or another name of these; '' where one alone is there.
        classes: WordNet ids in the order of their numbers; (): sorted.

    Raises:
        ConfigError: both are there and none is named, or the one that is named is not.
        DataError: archives or labels that are missing, damaged, or do not fit together.
    """
    files = look(url, scratch, leave_out=WNID.pattern)
    files.archives(DEVKIT)
    alone = {TRAIN: "train", VAL: "validation"}.get(redact(url).rpartition("/")[2], "")
    has_train = files.find(TRAIN) is not None or bool(files.matching(_CLASS_TAR))
    has_val = files.find(VAL) is not None or bool(files.matching(VAL_IMAGE))
    wanted = split_of_folder(split) if split else alone
    if split and wanted not in {"train", "validation"}:
        raise ConfigError(f"--split-name {split!r}: {files.where} holds train and val of ILSVRC2012")
    if not wanted and has_train and has_val:
        raise ConfigError(
            f"{files.where}: holds train and val of ILSVRC2012; choose one with --split-name train or val"
        )
    if not (has_train or has_val):
        raise DataError(f"{files.where}: neither {TRAIN} nor {VAL}, nor their content, is there; fetch one of them")
    wanted = wanted or ("train" if has_train else "validation")
    if not (has_train if wanted == "train" else has_val):
        missing = TRAIN if wanted == "train" else VAL
        raise DataError(f"{files.where}: {missing} is missing; fetch it, or name the folder that holds it")
    return _train(files, classes) if wanted == "train" else _val(files, classes)


def _train(files: Files, given: tuple[str, ...]) -> Source:
    outer = files.find(TRAIN)
    tars: dict[str, Place] = {}
    if outer is not None:
        for member in members(outer.url, where=outer.where):
            if member.is_file:
                tars[member.name.rpartition("/")[2]] = Place(outer.url, member.content, member.size, member.name)
    else:
        tars = files.matching(_CLASS_TAR)
    where = outer.where if outer is not None else files.where
    found = {name.removesuffix(".tar"): place for name, place in sorted(tars.items())}
    strange = [name for name in found if not WNID.fullmatch(name)]
    if strange or not found:
        raise DataError(f"{where}: expected a tar a class, n01440764.tar and others, got {shown(strange) or 'none'}")
    classes = classes_of(files, given) or tuple(found)
    unknown, missing = sorted(found.keys() - set(classes)), [name for name in classes if name not in found]
    if unknown:
        raise DataError(f"{where}: {shown(unknown)} is no class of the list; --classes takes WordNet ids, one a line")
    if missing:
        raise DataError(
            f"{where}: {shown([f'{m}.tar' for m in missing])} is missing, of {counted(len(classes), 'class')}; fetch it"
        )
    numbers = ClassSpace(classes).numbers

    def items() -> Iterator[Item]:
        for wnid, place in found.items():
            count = 0
            size = place.num_bytes if place.offset >= 0 else None
            for member in members(place.url, max(place.offset, 0), size, where=f"{where}: {wnid}.tar"):
                name = member.name.rpartition("/")[2]
                if not member.is_file:
                    continue
                if not is_image(name):
                    source.ignore(f"{wnid}/{name}")
                    continue
                count += 1
                key = safe_key(f"{wnid}/{name.rpartition('.')[0]}")
                told = f"{where}: {wnid}/{name}"
                yield Item(key, place.url, member.content, member.size, (numbers[wnid],), where=told)
            if not count:
                raise DataError(f"{where}: {wnid}.tar has no images; fetch it again")

    source = Source("imagenet", "imagenet-train", "", items, classes, len(classes))
    source.notes.append(_read_as("train of ILSVRC2012", where, classes))
    if len(classes) != _NUM_CLASSES:
        source.notes.append(f"{where}: {counted(len(classes), 'class')}; ILSVRC2012 has {_NUM_CLASSES:,}")
    return source


def _read_as(what: str, where: str, classes: Sequence[str]) -> str:
    order = "in the order of their WordNet ids" if list(classes) == sorted(classes) else "in the order of the list"
    return (
        f"{where}: read as {what}, {counted(len(classes), 'class')} {order}: 0 is {classes[0]}"
        if classes
        else (f"{where}: read as {what}; its classes have no names, since nothing here says them")
    )


def _val_images(files: Files) -> tuple[dict[int, Place], str]:
    """The validation images by their numbers from 1, and where they are."""
    where, tar = files.where, files.find(VAL)
    found = files.matching(VAL_IMAGE)
    if tar is not None and not found:
        inside = Files(tar.where, files.scratch)
        for member in members(plain_tar(tar.url, files.scratch), where=tar.where):
            if member.is_file:
                inside.by_path[member.name] = Place(tar.url, member.content, member.size, member.name)
        found, where = inside.matching(VAL_IMAGE), tar.where
    if not found:
        raise DataError(f"{where}: no images ILSVRC2012_val_00000001.JPEG and so on are in it; fetch {VAL} again")
    return {int(name[15:23]): place for name, place in found.items()}, where


def _check_count(images: dict[int, Place], where: str, total: int, truth: str) -> None:
    """Whether the images are those that the truth speaks of."""
    missing = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, total + 1) if i not in images]
    beyond = sorted(i for i in images if not 0 < i <= total)
    if beyond:
        first = f"ILSVRC2012_val_{beyond[0]:08d}.JPEG"
        raise DataError(
            f"{where}: {counted(len(images), 'image')}, but {truth} has {counted(total, 'label')}: {first} has none; "
            f"are they of one set?"
        )
    if missing:
        raise DataError(
            f"{where}: {counted(len(missing), 'image')} of {total:,} missing: {shown(missing)}; fetch it again"
        )


def _val(files: Files, given: tuple[str, ...]) -> Source:
    truth, classes, place = truth_of(files, given)
    images, where = _val_images(files)
    _check_count(images, where, len(truth), place.where)
    numbers = ClassSpace(classes).numbers

    def items() -> Iterator[Item]:
        for number in sorted(truth):
            yield _item(number, images[number], (numbers[truth[number]],))

    source = Source("imagenet", "imagenet-val", "", items, classes, len(classes))
    source.notes.append(_read_as("the validation set of ILSVRC2012", where, classes))
    return source


def _item(number: int, place: Place, labels: tuple[int, ...]) -> Item:
    key = f"ILSVRC2012_val_{number:08d}"
    return Item(key, place.url, place.offset, place.num_bytes, labels, where=place.where)


def real_source(url: str, scratch: Path, classes: tuple[str, ...]) -> Source:
    """The validation images with ReaL's labels, several an image.

    An image without a label is left out, and counted: no accuracy of ReaL counts it.

    Args:
        url: of the folder with the images, or their archive, and real.json.
        scratch: for the devkit.
        classes: WordNet ids in the order of ReaL's numbers; (): sorted, as far as they are known.

    Raises:
        DataError: files that are missing, damaged, or do not fit together.
    """
    files = look(url, scratch, leave_out=WNID.pattern)
    files.archives(DEVKIT)
    place = files.need(REAL, "of google-research/reassessed-imagenet")
    try:
        labels = parse_json(read(place))
    except DamagedError as error:
        raise DataError(f"{place.where}: {error}; fetch it again") from None
    if not isinstance(labels, list) or not labels:
        raise DataError(f"{place.where}: expected a list with a list of labels for each image")
    named = classes_of(files, classes)
    num_classes = len(named) or _NUM_CLASSES
    for number, one in enumerate(labels, 1):
        if not isinstance(one, list) or not all(is_count(label) for label in one) or len(set(one)) < len(one):
            raise DataError(f"{place.where}: image {number}: {str(one)[:60]} is no list of labels, each once")
        if any(label >= num_classes for label in one):
            raise DataError(
                f"{place.where}: image {number}: label {max(one)} is out of range: there are {num_classes:,} classes, "
                f"from 0"
            )
    images, where = _val_images(files)
    _check_count(images, where, len(labels), place.where)

    def items() -> Iterator[Item]:
        for number, one in enumerate(labels, 1):
            if one:
                yield _item(number, images[number], tuple(one))
            else:
                source.leave_out(f"ILSVRC2012_val_{number:08d}: {REAL} gives it no label")

    source = Source("imagenet-real", "imagenet-real", "", items, named, num_classes)
    source.notes.append(_read_as("the validation set of ILSVRC2012 with ReaL's labels", where, named))
    return source
