"""The kinds of source, and which of them SRC is. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import is_remote, local_path, redact
from vit_dist.core.registry import SOURCES
from vit_dist.data.pack.sources import (
    Source,
    SourceConfig,
    SourceOptions,
    find_idx,
    folder_source,
    idx_source,
    list_directory,
)
from vit_dist.data.tars import is_tar_name

if TYPE_CHECKING:
    from vit_dist.data.pack.tables import TableOptions

_LISTS = (".jsonl", ".ndjson", ".csv", ".tsv")


_TABLE = frozenset({"image_field", "label_field", "key_field", "classes", "num_classes"})


@SOURCES.register("folder")
class FolderConfig(SourceConfig):
    """A directory per class."""

    title: ClassVar[str] = "a folder with a directory per class"
    options: ClassVar[frozenset[str]] = frozenset({"classes"})

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:  # noqa: ARG002
        """See SourceConfig."""
        return folder_source(url, options.classes)


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
    options: ClassVar[frozenset[str]] = _TABLE

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:
        """See SourceConfig."""
        from vit_dist.data.pack.tables import parquet_source

        return parquet_source(url, scratch, _table(options))


@SOURCES.register("tar")
class TarConfig(SourceConfig):
    """Somebody's shards, to be packed anew."""

    title: ClassVar[str] = "WebDataset tars"
    options: ClassVar[frozenset[str]] = frozenset(
        {"image_field", "label_field", "labels", "classes", "num_classes", "skip_bad"}
    )

    def open(self, url: str, scratch: Path, options: SourceOptions) -> Source:  # noqa: ARG002
        """See SourceConfig."""
        from vit_dist.data.labels import label_rule
        from vit_dist.data.pack.repack import tar_source

        rule = label_rule(options.labels, options.label_field, options.classes, options.image_field)
        if rule.member == "none":
            raise ConfigError("--labels none: what is packed needs labels; index such tars instead")
        return tar_source([url], rule, options.num_classes, skip_bad=options.skip_bad)


def _table(options: SourceOptions) -> TableOptions:
    from vit_dist.data.pack.tables import TableOptions

    return TableOptions(
        options.image_field, options.label_field, options.key_field, options.classes, options.num_classes
    )


def open_source(url: str, scratch: Path, options: SourceOptions | None = None) -> Source:
    """The source at a path or URL.

    Args:
        url: a folder with a directory per class, a local folder of IDX files, a list (.jsonl, .csv, .tsv), Parquet
            files or a folder of them, tars (a pattern, a folder of them, a wids list), or whatever a plug-in reads.
        scratch: a local folder that is there until the packing ends.
        options: how to read it.

    Raises:
        DataError: missing, or nothing that can be packed.
        ConfigError: an option that does not fit, or several plug-ins that do.
    """
    options = options or SourceOptions()
    kind = options.kind or _recognised(url) or _kind(url)
    try:
        source = _config(kind)
    except ConfigError as error:
        raise ConfigError(f"--from {kind!r}: {error}") from None
    plain = SourceOptions()
    for name in SourceOptions.__dataclass_fields__:
        if name != "kind" and name not in source.options and getattr(options, name) != getattr(plain, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: {redact(url)} is read as {source.title}, where this option means nothing")
    return source.open(url, scratch, options)


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
        raise ConfigError(f"{redact(url)}: {' and '.join(kinds)} both take it for their own; --from says which")
    return kinds[0] if kinds else ""


def _kind(url: str) -> str:
    name = url.rstrip("/").rpartition("/")[2]
    if name.endswith(_LISTS):
        return "list"
    if name.endswith(".parquet"):
        return "parquet"
    if is_tar_name(name) or name.endswith(".json") or "{" in name or "*" in name:
        return "tar"
    if not is_remote(url):
        path = local_path(url)
        if not path.exists():
            raise DataError(f"{redact(url)}: no such file or directory, so nothing can be packed; check the path")
        if path.is_file():
            raise DataError(
                f"{redact(url)}: a file of an unknown kind; expected a folder with a directory per class, a list "
                f"({', '.join(_LISTS)}), Parquet or tars; --from says which"
            )
        if find_idx(path):
            return "idx"
    directories, files = list_directory(url)
    if not directories:
        if any(is_tar_name(n) for n, _ in files):
            return "tar"
        if any(n.endswith(".parquet") for n, _ in files):
            return "parquet"
    elif "data" in directories and any(n.endswith(".parquet") for n, _ in list_directory(f"{url.rstrip('/')}/data")[1]):
        # A dataset as it is cloned from a hub.
        return "parquet"
    return "folder"
