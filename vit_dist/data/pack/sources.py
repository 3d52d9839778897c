"""Where images come from: what a source is, and the plainest one, a folder with a directory per class. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import folder_url, is_remote, local_path, redact
from vit_dist.core.registry import Plugin
from vit_dist.data.grammar import ClassSpace, check_classes, class_name
from vit_dist.data.members import IMAGE_EXTENSIONS
from vit_dist.data.pack.directories import is_image, list_directory
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.splits import choose_folder, split_of_folder


@dataclass
class Source:
    """Labelled images, listed in an order that is always the same.

    Attributes:
        kind: 'folder', 'idx', 'list', 'parquet', 'tar', or the name of a plug-in's kind.
        name: of the dataset, unless another one is given.
        base: what the items' URLs are relative to.
        items: lists them.
        classes: names of the classes, or ().
        num_classes: None where it is the largest label + 1.
        pixels: where the items' bytes are raw pixels instead of an image file: (rows, columns) of grey ones, (3, rows,
            columns) of planes of red, green and blue.
        image_member: where items are samples of a tar: the extension of the image, '' for the only one; else None.
        ignored: names of files that are no images, at most 5, and how many there are.
        hidden: files and directories whose names begin with a dot, at most 5, and how many there are.
        outside: names of images that lie in no class directory, at most 5, and how many there are.
        left_out: samples without an image or a label, at most 5, each with the reason, and how many there are.
        notes: what was taken, for people.
        wanted: given how many images there are, which of them this packing will read; a source that must copy images
            before they can be drawn in random order copies these only. None: all.
    """

    kind: str
    name: str
    base: str
    items: Callable[[], Iterator[Item]]
    classes: tuple[str, ...] = ()
    num_classes: int | None = None
    pixels: tuple[int, ...] | None = None
    image_member: str | None = None
    ignored: list[str] = field(default_factory=list)
    num_ignored: int = 0
    hidden: list[str] = field(default_factory=list)
    num_hidden: int = 0
    outside: list[str] = field(default_factory=list)
    num_outside: int = 0
    left_out: list[str] = field(default_factory=list)
    num_left_out: int = 0
    notes: list[str] = field(default_factory=list)
    wanted: Callable[[int], NDArray[np.bool_]] | None = None

    def ignore(self, name: str) -> None:
        """Count a file that is no image, or an image that lies outside of every class."""
        if is_image(name):
            self.num_outside += 1
            self.outside += [name] if len(self.outside) < 5 else []
            return
        self.num_ignored += 1
        if len(self.ignored) < 5:
            self.ignored.append(name)

    def hide(self, name: str) -> None:
        """Count a file or a directory whose name begins with a dot."""
        self.num_hidden += 1
        self.hidden += [name] if len(self.hidden) < 5 else []

    def leave_out(self, sample: str) -> None:
        """Count a sample without an image or a label."""
        self.num_left_out += 1
        if len(self.left_out) < 5:
            self.left_out.append(sample)


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; what does not fit its kind is refused.

    Attributes:
        kind: a name of SOURCES; '' looks.
        split_name: which split of a source that holds several.
        image_field: list, Parquet: the field with the image; tars: the extension of the image member.
        label_field: list, Parquet: the field with the labels; tars: the key in `.json`.
        key_field: list, Parquet: the field with unique keys.
        labels: tars: the member with the labels.
        skip_bad: tars: leave out samples without an image or a label, instead of refusing their tar.
        classes: names of the classes, for sources that do not bring their own.
        num_classes: of the label space, where it is larger than what is seen.
    """

    kind: str = ""
    split_name: str = ""
    image_field: str = ""
    label_field: str = ""
    key_field: str = ""
    labels: str = "auto"
    skip_bad: bool = False
    classes: tuple[str, ...] = ()
    num_classes: int | None = None


class SourceConfig(Plugin):
    """Base of every kind of source: a form that labelled images come in."""

    title: ClassVar[str]
    """For people: 'is read as TITLE'."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Fields of SourceOptions that mean something here; others are refused where they are given."""

    def recognises(self, url: str) -> bool:  # noqa: ARG002
        """Whether a path or URL is a source of this kind. Asked of plug-ins, before the built-in kinds are tried."""
        return False

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """The source.

        Args:
            url: a path or URL.
            scratch: a local folder that is there until the packing ends; made by whoever writes there.
            options: how to read it.

        Raises:
            DataError: missing, or nothing that can be packed.
        """
        raise NotImplementedError


def folder_source(url: str, classes: tuple[str, ...] = (), split_name: str = "", *, as_it_is: bool = False) -> Source:
    """Images in one directory per class, at any depth below it; classes are numbered in the order of their names.

    A key is the path without its extension, relative to the folder; with it where two images would have the same.

    Args:
        url: of the folder.
        classes: names in the order of their numbers, of which the directories may be some; (): the directories'.
        split_name: where a class holds a directory for each split: which of them; '' refuses to mix them.
        as_it_is: mix them.

    Raises:
        DataError: missing, empty, or not of this shape; a directory that is none of the classes, or is one as another
            is; a class without images (when it is listed).
        ConfigError: classes that hold several splits, or not the one that is named (when it is listed).
    """
    url = folder_url(url)
    unseen: list[str] = []
    directories, files = list_directory(url, unseen.append)
    where = redact(url)
    if not directories and not files:
        raise DataError(f"{where}: the folder is empty; expected a directory per class with images in it")
    if not directories:
        hint = "images lie in it directly" if any(is_image(name) for name, _ in files) else "it holds files only"
        raise DataError(
            f"{where}: no class directories: {hint}; put each class into a directory of its own, "
            f"or give a list (.csv, .jsonl)"
        )

    for name in directories:
        if not _is_text(name):
            raise DataError(f"{where}: the class directory {name!r} has a name that is not UTF-8; rename it")
    names = classes or check_classes(directories, where)
    numbers = ClassSpace(names).numbers
    for name in check_classes(directories, where):
        if name not in numbers:
            raise DataError(f"{where}: the directory {name!r} is no class of --classes{did_you_mean(name, names)}")

    def items() -> Iterator[Item]:
        above = () if is_remote(url) else (os.path.realpath(local_path(url)),)
        for name, _ in files:
            source.ignore(name)
        for name in unseen:
            source.hide(name)
        for name in directories:
            count, label = 0, numbers[class_name(name)]
            held = _listed(source, url, name)
            if not as_it_is:
                held = _of_one_split(f"{url}/{name}", *held, split_name)
            for item in _walk(source, url, name, label, above, held):
                count += 1
                yield item
            if not count and _holds_files(f"{url}/{name}"):
                raise DataError(
                    f"{where}/{name}: the class {name!r} has no images; add some, or remove the directory "
                    f"(images end in {', '.join(sorted(IMAGE_EXTENSIONS))})"
                )
            if not count:
                source.notes.append(
                    f"{where}/{name} is empty: the class {name!r} keeps its number {label}, and no image has it; "
                    f"remove the directory where it is no class"
                )

    source = Source("folder", url.rpartition("/")[2] or "images", url, items, names, len(names))
    if len(names) == 1:
        source.notes.append(
            f"{where} holds one class alone, {names[0]!r}: all images get the same label; expected is a directory "
            f"per class"
        )
    return source


def _holds_files(url: str) -> bool:
    """Whether there is any file below a directory, hidden ones aside."""
    directories, files = list_directory(url)
    return bool(files) or any(_holds_files(f"{url}/{name}") for name in directories)


def _of_one_split(
    where: str, directories: list[str], files: list[tuple[str, int]], split_name: str
) -> tuple[list[str], list[tuple[str, int]]]:
    """What a class's directory holds; where it holds a directory for each split, of these the one that is named."""
    splits = [name for name in directories if split_of_folder(name)]
    kinds = {split_of_folder(name) for name in splits}
    # cat/{train,test,masks}: two of them leave no doubt, one alone only where nothing lies beside it.
    in_splits = len(kinds) > 1 or (bool(split_name) and bool(splits) and len(splits) == len(directories))
    if in_splits and not any(is_image(name) for name, _ in files):
        return [choose_folder(where, splits, split_name)], files
    if split_name:
        raise ConfigError(f"--split-name {split_name!r}: {redact(where)} does not hold a directory for each split")
    return directories, files


def _listed(source: Source, root: str, folder: str) -> tuple[list[str], list[tuple[str, int]]]:
    return list_directory(f"{root}/{folder}", lambda name: source.hide(f"{folder}/{name}"))


def _walk(
    source: Source,
    root: str,
    folder: str,
    label: int,
    above: tuple[str, ...],
    held: tuple[list[str], list[tuple[str, int]]] | None = None,
) -> Iterator[Item]:
    url = f"{root}/{folder}"
    if not is_remote(url):
        real = os.path.realpath(local_path(url))
        if real in above:
            raise DataError(f"{url}: a link leads back to a folder above it; remove the link")
        above = (*above, real)
    directories, files = held or _listed(source, root, folder)
    stems: dict[str, int] = {}
    names = {name for name, _ in files}
    for name, _ in files:
        if is_image(name):
            stem = name.rpartition(".")[0]
            stems[stem] = stems.get(stem, 0) + 1
    for name, num_bytes in files:
        if not is_image(name):
            source.ignore(f"{folder}/{name}")
            continue
        stem = name.rpartition(".")[0]
        path = f"{folder}/{name}"
        # `a.jpg` is 'a', unless there is `a.png` too; `a.png.jpg` is not 'a.png' where that is a name itself.
        key = safe_key(f"{folder}/{stem}" if stems[stem] == 1 and stem not in names else path)
        meta = {"path": path} if "~" in key else None
        yield Item(key, path, -1, num_bytes, (label,), meta=meta)
    for name in directories:
        yield from _walk(source, root, f"{folder}/{name}", label, above)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
