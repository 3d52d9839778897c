"""The kinds of source, and which of them SRC is. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import folder_url, is_remote, join_url, local_path, redact, url_name
from vit_dist.core.registry import SOURCES
from vit_dist.data.names import is_directory, named
from vit_dist.data.pack.directories import is_image, list_directory
from vit_dist.data.pack.idx import find_idx, idx_source
from vit_dist.data.pack.published.kinds import recognised
from vit_dist.data.pack.sources import Source, SourceConfig, SourceOptions, folder_source
from vit_dist.data.splits import choose_folder, split_of_folder, splits_among
from vit_dist.data.tars import is_tar_name

if TYPE_CHECKING:
    from vit_dist.data.pack.tables import TableOptions

# Directories side by side, and one below the other, before it is decided what a folder is.
_LOOKED_INTO = 4
_LISTS = (".jsonl", ".ndjson", ".csv", ".tsv")


_TABLE = frozenset({"image_field", "label_field", "key_field", "classes", "num_classes"})


@SOURCES.register("folder")
class FolderConfig(SourceConfig):
    """A directory per class."""

    title: ClassVar[str] = "a folder with a directory per class"
    options: ClassVar[frozenset[str]] = frozenset({"classes", "split_name"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:  # noqa: ARG002
        """See SourceConfig."""
        # Whoever says --format folder and no split takes the directories for classes, whatever they are called.
        as_it_is = bool(options.kind) and not options.split_name
        return folder_source(url, options.classes, options.split_name, as_it_is=as_it_is)


@SOURCES.register("idx")
class IdxConfig(SourceConfig):
    """MNIST's files."""

    title: ClassVar[str] = "a folder of IDX files"
    options: ClassVar[frozenset[str]] = frozenset({"split_name"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        return idx_source(local_path(url), options.split_name, scratch)


@SOURCES.register("list")
class ListConfig(SourceConfig):
    """A file that names images and their labels."""

    title: ClassVar[str] = "a list"
    options: ClassVar[frozenset[str]] = _TABLE

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:  # noqa: ARG002
        """See SourceConfig."""
        from vit_dist.data.pack.tables import list_source

        return list_source(url, _table(options))


@SOURCES.register("parquet")
class ParquetConfig(SourceConfig):
    """Tables with the images inside."""

    title: ClassVar[str] = "Parquet files"
    options: ClassVar[frozenset[str]] = _TABLE | {"split_name"}

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        from vit_dist.data.pack.parquet import parquet_source

        return parquet_source(url, scratch, _table(options))


@SOURCES.register("tar")
class TarConfig(SourceConfig):
    """Somebody's shards, to be packed anew."""

    title: ClassVar[str] = "WebDataset tars"
    options: ClassVar[frozenset[str]] = frozenset(
        {"image_field", "label_field", "labels", "classes", "num_classes", "skip_bad", "split_name"}
    )

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:  # noqa: ARG002
        """See SourceConfig."""
        from vit_dist.data.labels import label_rule
        from vit_dist.data.pack.repack import tar_source

        rule = label_rule(options.labels, options.label_field, options.classes, options.image_field)
        if rule.member == "none":
            raise ConfigError("--labels none: what is packed needs labels; index such tars instead")
        return tar_source([url], rule, options.num_classes, options.split_name, skip_bad=options.skip_bad)


def _table(options: SourceOptions) -> TableOptions:
    from vit_dist.data.pack.tables import TableOptions

    return TableOptions(
        options.image_field,
        options.label_field,
        options.key_field,
        options.classes,
        options.num_classes,
        options.split_name,
    )


def open_source(url: str, scratch: Path, options: SourceOptions | None = None) -> Source:
    """The source at a path or URL.

    Args:
        url: a folder with a directory per class, a local folder of IDX files, a list (.jsonl, .csv, .tsv), Parquet
            files or a folder of them, tars (a pattern, a folder of them, a wids list), a published set
            (`published.kinds`), or whatever a plug-in reads.
        scratch: a local folder that is there until the packing ends.
        options: how to read it.

    Raises:
        DataError: missing, or nothing that can be packed.
        ConfigError: an option that does not fit, several plug-ins that do, or several splits of which none is chosen.
    """
    options = options or SourceOptions()
    if not url.strip():
        raise DataError("SRC is empty (is a variable empty?); name what is to be packed, '.' for this directory")
    given, split = url, ""
    kind = options.kind or _recognised(url) or recognised(url)
    if not kind and len(urls := named(url)) == 1:
        url = urls[0]
    if kind in {"", "folder"} and (not kind or options.split_name) and not _by_name(url):
        url, split = _folder_of_one_split(url, options.split_name)
    if split:
        told, options = options.split_name, replace(options, split_name="")
    kind = kind or _kind(url)
    try:
        source = _config(kind)
    except ConfigError as error:
        raise ConfigError(f"--format {kind!r}: {error}") from None
    plain = SourceOptions()
    for name in SourceOptions.__dataclass_fields__:
        if name != "kind" and name not in source.options and getattr(options, name) != getattr(plain, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: {redact(url)} is read as {source.title}, where this option means nothing")
    opened = source.open(url, scratch, options)
    if split:
        opened.name = f"{url_name(given) or opened.name}-{split_of_folder(split)}"
        if not told:
            opened.notes.append(f"{redact(given)} holds the split {split!r} alone: packed is {redact(url)}")
    return opened


def _config(kind: str) -> SourceConfig:
    cls, defaults = SOURCES.lookup(kind)
    config = cls.model_validate(defaults)
    assert isinstance(config, SourceConfig)
    return config


def _recognised(url: str) -> str:
    """The plug-in's kind that takes a source for its own; '' where none does.

    Raises:
        ConfigError: several do.
    """
    kinds = [kind for kind in SOURCES.from_outside() if _config(kind).recognises(url)]
    if len(kinds) > 1:
        raise ConfigError(f"{redact(url)}: {' and '.join(kinds)} both take it for their own; --format says which")
    return kinds[0] if kinds else ""


def _kind(url: str) -> str:
    kind = _by_name(url)
    if kind:
        return kind
    if not is_remote(url):
        path = local_path(url)
        if not path.exists():
            raise DataError(f"{redact(url)}: no such file or directory, so nothing can be packed; check the path")
        if path.is_file():
            raise DataError(
                f"{redact(url)}: a file of an unknown kind; expected a folder with a directory per class, a list "
                f"({', '.join(_LISTS)}), Parquet or tars; --format says which"
            )
        if find_idx(path):
            return "idx"
    directories, files = list_directory(url)
    if not directories:
        if any(is_tar_name(n) for n, _ in files):
            return "tar"
        if any(n.endswith(".parquet") for n, _ in files):
            return "parquet"
    # A dataset as it is cloned from a hub: data/, or a folder for each configuration.
    elif any(_holds_parquet(join_url(url, name)) for name in directories[:_LOOKED_INTO]):
        return "parquet"
    return "folder"


def _by_name(url: str) -> str:
    """The kind that the name of a file, or what a pattern names, tells; '' for a directory, and where it tells none."""
    if not is_remote(url) and local_path(url).is_dir():
        return ""
    urls = named(url)
    name = url_name(urls[0]).lower()
    if name.endswith(_LISTS):
        return "list"
    if name.endswith(".parquet"):
        return "parquet"
    if len(urls) > 1:
        _refuse_no_tars(url, urls)
    return "tar" if name.endswith((".tar", ".json")) or len(urls) > 1 else ""


def _refuse_no_tars(pattern: str, urls: Sequence[str]) -> None:
    """Refuse a pattern that names images, or directories of them: of several places tars alone are read together."""
    shown = redact(pattern)
    for url in urls[:_LOOKED_INTO]:
        if is_image(url_name(url)):
            raise DataError(
                f"{shown}: a pattern that names images, whose labels it does not tell; give the folder that holds a "
                f"directory per class, or a list (.csv, .jsonl) of images with labels"
            )
        if "." not in url_name(url) and is_directory(url):
            directories, files = list_directory(url)
            if not any(is_tar_name(name) for name, _ in files) and (
                directories or any(is_image(name) for name, _ in files)
            ):
                raise DataError(
                    f"{shown}: a pattern that names directories without tars, such as {redact(url)}; give the folder "
                    f"that holds them: each of its directories is a class"
                )


def _holds_parquet(url: str, depth: int = 2) -> bool:
    """Whether the files that are met first below a directory are Parquet."""
    directories, files = list_directory(url)
    if any(name.endswith(".parquet") for name, _ in files):
        return True
    if depth == 0 or any(is_image(name) for name, _ in files):
        return False
    return any(_holds_parquet(join_url(url, name), depth - 1) for name in directories[:_LOOKED_INTO])


def _folder_of_one_split(url: str, split_name: str) -> tuple[str, str]:
    """The directory of the split that is packed, and its name, where a folder holds a directory for each; else the
    folder itself, and ''.

    Raises:
        ConfigError: it holds several, and none is named; or not the one that is named.
    """
    if not is_remote(url) and not local_path(url).is_dir():
        return url, ""

    def inside(name: str) -> tuple[list[str], bool]:
        directories, files = list_directory(join_url(where, name))
        return directories, any(is_image(name) for name, _ in files)

    where = folder_url(url)
    for _ in range(_LOOKED_INTO):
        directories, files = list_directory(where)
        splits = splits_among(directories, inside)
        if splits:
            split = choose_folder(where, splits, split_name)
            return join_url(where, split), split
        if len(directories) != 1 or any(is_image(name) for name, _ in files):
            break
        # photos/images/{train,val}: one directory alone is no choice of classes.
        where = join_url(where, directories[0])
    return url, ""
