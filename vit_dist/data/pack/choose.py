"""Which kind of source SRC is. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import is_remote, local_path, redact
from vit_dist.data.pack.sources import Source, find_idx, folder_source, idx_source, list_directory

KINDS = ("folder", "idx", "list", "parquet", "tar")
_LISTS = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; what does not fit its kind is refused.

    Attributes:
        kind: one of KINDS; '' looks.
        split_name: which part of a folder of IDX files.
        image_field: list, Parquet: the field with the image; tars: the extension of the image member.
        label_field: list, Parquet: the field with the labels; tars: the key in `.json`.
        key_field: list, Parquet: the field with unique keys.
        labels: tars: the member with the labels.
        classes: names of the classes, for sources that do not bring their own.
        num_classes: of the label space, where it is larger than what is seen.
    """

    kind: str = ""
    split_name: str = ""
    image_field: str = ""
    label_field: str = ""
    key_field: str = ""
    labels: str = "auto"
    classes: tuple[str, ...] = ()
    num_classes: int | None = None


_USED = {
    "folder": set[str](),
    "idx": {"split_name"},
    "list": {"image_field", "label_field", "key_field", "classes", "num_classes"},
    "parquet": {"image_field", "label_field", "key_field", "classes", "num_classes"},
    "tar": {"image_field", "label_field", "labels", "classes", "num_classes"},
}


def open_source(url: str, scratch: Path, options: SourceOptions | None = None) -> Source:
    """The source at a path or URL.

    Args:
        url: a folder with a directory per class, a local folder of IDX files, a list (.jsonl, .csv, .tsv), Parquet
            files or a folder of them, tars (a pattern, a folder of them, a wids list).
        scratch: a local folder that is there until the packing ends.
        options: how to read it.

    Raises:
        DataError: missing, or nothing that can be packed.
        ConfigError: an option that does not fit.
    """
    options = options or SourceOptions()
    kind = options.kind or _kind(url)
    if kind not in KINDS:
        raise ConfigError(f"--from {kind!r}: unknown kind of source{did_you_mean(kind, KINDS)}")
    plain = SourceOptions()
    for name in SourceOptions.__dataclass_fields__:
        if name != "kind" and name not in _USED[kind] and getattr(options, name) != getattr(plain, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: {redact(url)} is read as {_NAMES[kind]}, where this option means nothing")
    if kind == "folder":
        return folder_source(url)
    if kind == "idx":
        return idx_source(local_path(url), options.split_name, scratch)
    if kind == "tar":
        from vit_dist.data.labels import LabelRule
        from vit_dist.data.pack.repack import tar_source

        member = "json" if options.label_field else options.labels
        image = options.image_field.lower().lstrip(".")
        return tar_source([url], LabelRule(member, options.label_field, options.classes, image), options.num_classes)
    from vit_dist.data.pack.tables import TableOptions, list_source, parquet_source

    table = TableOptions(
        options.image_field, options.label_field, options.key_field, options.classes, options.num_classes
    )
    return list_source(url, table) if kind == "list" else parquet_source(url, scratch, table)


_NAMES = {
    "folder": "a folder with a directory per class",
    "idx": "a folder of IDX files",
    "list": "a list",
    "parquet": "Parquet files",
    "tar": "WebDataset tars",
}


def _kind(url: str) -> str:
    name = url.rstrip("/").rpartition("/")[2]
    if name.endswith(_LISTS):
        return "list"
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".tar", ".json")) or "{" in name or "*" in name:
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
        for ending, kind in ((".tar", "tar"), (".parquet", "parquet")):
            if any(n.endswith(ending) for n, _ in files):
                return kind
    elif "data" in directories and any(n.endswith(".parquet") for n, _ in list_directory(f"{url.rstrip('/')}/data")[1]):
        # A dataset as it is cloned from a hub.
        return "parquet"
    return "folder"
