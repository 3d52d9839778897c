"""Which images places name, and which classes they are known to be of. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vit_dist.core.errors import ConfigError, DataError, MissingError
from vit_dist.core.files import exists, folder_url, is_remote, join_url, local_path, redact, url_name
from vit_dist.core.units import counted
from vit_dist.data.classes import Classes, numbers_in
from vit_dist.data.grammar import class_name
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.members import IMAGE_EXTENSIONS
from vit_dist.data.names import is_directory, named
from vit_dist.data.not_a_set import MANIFEST
from vit_dist.data.pack.directories import is_image, list_directory
from vit_dist.data.pack.items import Item
from vit_dist.data.tars import is_tar_name

_SHOWN = 5


@dataclass
class Listed:
    """The images that one place names.

    Attributes:
        where: the place, for people.
        items: the images; the key of each is what it is called in results.
        folders: for each of them, names of the directories that lead to it from the one that was named.
        manifest: whose samples they are; None: files.
        ignored: files that do not end like images.
    """

    where: str
    items: list[Item] = field(default_factory=list)
    folders: list[tuple[str, ...]] = field(default_factory=list)
    manifest: ShardManifest | None = None
    ignored: int = 0


@dataclass(frozen=True)
class Labelled:
    """Images with the classes that they are known to be of, by the model's numbers, and what is to be said of that."""

    items: tuple[Item, ...]
    notes: tuple[str, ...]


def list_images(places: Sequence[str]) -> list[Listed]:
    """The images that files, folders (at any depth), manifests, patterns and URLs name.

    Args:
        places: as a person wrote them.

    Raises:
        DataError: one is missing, holds no image, or is something else.
    """
    found = []
    for place in places:
        if not place.strip():
            raise DataError("a place of images is empty (is a variable empty?); name a file, a folder or a URL")
        found += [_listed(url) for url in named(place)]
    if not any(listed.items for listed in found):
        where = ", ".join(redact(place) for place in places)
        others = sum(listed.ignored for listed in found)
        beside = f" ({counted(others, 'other file')} there)" if others else ""
        raise DataError(f"{where}: no images there{beside}; images end in {', '.join(sorted(IMAGE_EXTENSIONS))}")
    return found


def _listed(url: str) -> Listed:
    where, name = redact(url), url_name(url)
    if name.endswith(".json"):
        return _of_manifest(url)
    if is_tar_name(name):
        raise DataError(
            f"{where}: a tar; `vit-dist data index {where} --out set.json` makes a manifest that is read here"
        )
    if not is_remote(url) and not local_path(url).exists():
        raise MissingError(f"{where}: no such file or folder; check the path")
    if is_directory(url):
        return _of_manifest(url) if exists(join_url(url, MANIFEST)) else _of_folder(url)
    # A file is what its bytes say, whatever it is called: who names it means it.
    return Listed(where, [Item(where, url, -1, -1, ())], [()])


def _of_folder(url: str) -> Listed:
    url = folder_url(url)
    found = Listed(redact(url))

    def walk(folder: str, above: tuple[str, ...]) -> None:
        # Twenty levels: no set has so many, and a link that leads back to above has more.
        if len(above) > 20:
            raise DataError(f"{redact(folder)}: directories lie more than 20 deep; does a link lead back?")
        directories, files = list_directory(folder)
        for name, num_bytes in files:
            if is_image(name):
                path = join_url(folder, name)
                found.items.append(Item(redact(path), path, -1, num_bytes, ()))
                found.folders.append(above)
            else:
                found.ignored += 1
        for name in directories:
            walk(join_url(folder, name), (*above, name))

    walk(url, ())
    return found


def _of_manifest(url: str) -> Listed:
    manifest = read_manifest(url)
    found = Listed(redact(url), manifest=manifest)
    for shard in range(len(manifest.shards)):
        index, tar = manifest.read_index(shard), manifest.shard_url(shard)
        for sample, key in enumerate(index.keys()):
            labels = tuple(index.sample_labels(sample)[0].tolist())
            begin, size = int(index.image_offsets[sample]), int(index.image_bytes[sample])
            found.items.append(Item(key, tar, begin, size, labels, where=f"{redact(tar)}: sample {key!r}"))
            found.folders.append(())
    return found


def with_labels(listed: Iterable[Listed], classes: Classes) -> Labelled:
    """The images with what is known of their classes, by the numbers of a model.

    In a folder, the first directory on the way to an image whose name is that of a class says it; a manifest's labels
    are those of the classes of the same names.

    Args:
        listed: by `list_images`.
        classes: the model's.
    """
    items: list[Item] = []
    notes: list[str] = []
    for one in listed:
        if one.ignored:
            what = counted(one.ignored, "file does not end like an image", "files do not end like images")
            notes.append(f"{one.where}: {what}: left out")
        items += _of_set(one, classes, notes) if one.manifest is not None else _of_files(one, classes, notes)
    return Labelled(tuple(items), tuple(notes))


def _of_set(listed: Listed, classes: Classes, notes: list[str]) -> Iterator[Item]:
    assert listed.manifest is not None
    own = Classes.of(listed.manifest)
    try:
        if not listed.manifest.num_classes:
            raise ConfigError("it has none")
        numbers = numbers_in(own, classes, "its images are predicted without them")
    except ConfigError as error:
        notes.append(f"{listed.where}: its labels are not used: {error}")
        return (replace(item, labels=()) for item in listed.items)
    if numbers is None:
        return iter(listed.items)
    return (replace(item, labels=tuple(numbers[label] for label in item.labels)) for item in listed.items)


def _of_files(listed: Listed, classes: Classes, notes: list[str]) -> list[Item]:
    numbers = {name: number for number, name in classes.names.items()}
    # A name of several classes tells none of them.
    for name, times in Counter(classes.names.values()).items():
        if times > 1:
            del numbers[name]
    items, strange = [], Counter[str]()
    for item, folders in zip(listed.items, listed.folders, strict=True):
        known = [numbers[name] for name in map(class_name, folders) if name in numbers]
        items.append(replace(item, labels=tuple(known[:1])))
        if folders and not known:
            strange[folders[0]] += 1
    if strange and numbers:
        shown = ", ".join(repr(name) for name in list(strange)[:_SHOWN]) + (", ..." if len(strange) > _SHOWN else "")
        some = "count for no accuracy" if any(item.labels for item in items) else "so that no accuracy is known"
        notes.append(
            f"{listed.where}: {counted(sum(strange.values()), 'image')} in directories that are no classes of the "
            f"model ({shown}), {some}; its classes are {_first(classes)}"
        )
    return items


def _first(classes: Classes) -> str:
    names = [repr(name) for name in classes.names.values()]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
