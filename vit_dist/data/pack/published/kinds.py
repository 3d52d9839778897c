"""The kinds of source for published sets, and which of them a folder or a file is. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from vit_dist.core.errors import ConfigError
from vit_dist.core.files import is_web, join_url, redact, url_name
from vit_dist.core.registry import SOURCES
from vit_dist.data.names import is_directory
from vit_dist.data.pack.directories import list_directory
from vit_dist.data.pack.published import cifar, imagenet, oxford, vtab
from vit_dist.data.pack.published.synsets import WNID
from vit_dist.data.pack.sources import Source, SourceConfig, SourceOptions
from vit_dist.data.tars import is_tar_name

_FLOWERS = {oxford.FLOWERS_LABELS, oxford.FLOWERS_SPLITS}
_VTAB = {f"{name}.txt" for name in vtab.LISTS}
_LISTS_OF_PETS = {"trainval.txt", "test.txt"}


@SOURCES.register("imagenet")
class ImageNetConfig(SourceConfig):
    """ILSVRC2012."""

    title: ClassVar[str] = "ILSVRC2012 as it is published"
    options: ClassVar[frozenset[str]] = frozenset({"split_name", "classes"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        return imagenet.imagenet_source(url, scratch, options.split_name, options.classes)


@SOURCES.register("imagenet-real")
class RealConfig(SourceConfig):
    """ReaL."""

    title: ClassVar[str] = "ILSVRC2012's validation set with ReaL's labels"
    options: ClassVar[frozenset[str]] = frozenset({"classes"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        return imagenet.real_source(url, scratch, options.classes)


@SOURCES.register("cifar")
class CifarConfig(SourceConfig):
    """CIFAR-10 and CIFAR-100."""

    title: ClassVar[str] = "CIFAR"
    options: ClassVar[frozenset[str]] = frozenset({"split_name", "label_field"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        return cifar.cifar_source(url, scratch, options.split_name, options.label_field)


@SOURCES.register("pets")
class PetsConfig(SourceConfig):
    """Oxford-IIIT Pets."""

    title: ClassVar[str] = "Oxford-IIIT Pets"
    options: ClassVar[frozenset[str]] = frozenset({"split_name"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        return oxford.pets_source(url, scratch, options.split_name)


@SOURCES.register("flowers")
class FlowersConfig(SourceConfig):
    """Oxford Flowers 102."""

    title: ClassVar[str] = "Oxford Flowers 102"
    options: ClassVar[frozenset[str]] = frozenset({"split_name", "classes"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        return oxford.flowers_source(url, scratch, options.split_name, options.classes)


@SOURCES.register("vtab")
class VtabConfig(SourceConfig):
    """VTAB-1k."""

    title: ClassVar[str] = "lists of VTAB-1k"
    options: ClassVar[frozenset[str]] = frozenset({"split_name", "classes", "num_classes"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        return vtab.vtab_source(url, scratch, options.split_name, options.classes, options.num_classes)


def recognised(url: str) -> str:
    """The kind that a folder or a file is without doubt, by names of files; '' for none. It reads none of them.

    Raises:
        ConfigError: a folder that holds several.
        DataError: it cannot be listed.
    """
    name = url_name(url)
    if is_web(url) or not is_directory(url):
        return _of_file(name)
    directories, listed = list_directory(url)
    files = {file for file, _ in listed}
    found = _of_folder(directories, files)
    if oxford.PETS_ARCHIVES[1] in files or "annotations" in directories:
        below = list_directory(join_url(url, "annotations"))[1] if "annotations" in directories else listed
        inside = {file for file, _ in below}
        found += ["pets"] if inside >= _LISTS_OF_PETS or files >= set(oxford.PETS_ARCHIVES) else []
    if len(found) > 1:
        raise ConfigError(f"{redact(url)}: holds {' and '.join(found)}; --format says which is packed")
    return found[0] if found else ""


def _of_file(name: str) -> str:
    if name in {imagenet.TRAIN, imagenet.VAL}:
        return "imagenet"
    if name == oxford.FLOWERS_ARCHIVE:
        return "flowers"
    return "cifar" if name in {form.archive for form in cifar.FORMS} else ""


def _of_folder(directories: list[str], files: set[str]) -> list[str]:
    """By the names that lie in it; names of directories alone say it for CIFAR only, whose are like no others."""
    found = []
    is_val = any(re.fullmatch(imagenet.VAL_IMAGE, file) for file in files)
    class_tars = [file for file in files if is_tar_name(file)]
    is_train = bool(class_tars) and all(WNID.fullmatch(file[:-4]) for file in class_tars)
    if files & {imagenet.TRAIN, imagenet.VAL} or is_val or is_train:
        found.append("imagenet")
    of_files = any({form.names[0], form.test, *form.train[:1]} <= files for form in cifar.FORMS)
    if of_files or any(form.folder in directories or form.archive in files for form in cifar.FORMS):
        found.append("cifar")
    if files >= _FLOWERS:
        found.append("flowers")
    if files & _VTAB:
        found.append("vtab")
    return found
