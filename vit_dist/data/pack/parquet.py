"""Parquet with images inside, as Hugging Face writes it. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import explained, folder_url, join_url, redact, url_name
from vit_dist.core.small_files import parse_json
from vit_dist.data.grammar import ClassSpace, Pairs, read_value
from vit_dist.data.names import is_directory, named
from vit_dist.data.pack.directories import list_directory
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.sources import Source
from vit_dist.data.pack.tables import IMAGE_FIELDS, LABEL_FIELDS, TableOptions, choose_field, naming, seen_classes
from vit_dist.data.ranges import open_file
from vit_dist.data.splits import ALL, choose_urls

_ROWS_AT_ONCE = 64


def parquet_source(url: str, scratch: Path, options: TableOptions) -> Source:
    """Parquet as Hugging Face writes it: a column {bytes, path} or of bytes, a column of labels, anything else kept.

    The images that are packed are copied once, one after another, into a file in the scratch folder, from where they
    are drawn in random order: it needs as much room as they do. Names of classes are taken from the schema's metadata.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: missing, damaged, or without such columns.
    """
    pq = _pyarrow()
    files = _parquet_files(url, options.split)
    where = redact(files[0])
    with _opened(pq, files[0]) as first:
        columns = first.schema_arrow.names
        image = choose_field(where, columns, options.image, IMAGE_FIELDS, "image")
        label = choose_field(where, columns, options.label, LABEL_FIELDS, "label")
        if options.key:
            choose_field(where, columns, options.key, (), "key")
        space = _parquet_classes(pq, files, label, first.schema_arrow, options)
    blob = scratch / "parquet.images"

    def items() -> Iterator[Item]:
        number = end = 0
        wanted = source.wanted(_num_rows(pq, files)) if source.wanted else None
        with blob.open("wb") as out:
            for file in files:
                for place, row in _parquet_rows(pq, file):
                    missing = {image, label} - row.keys()
                    if missing:
                        raise DataError(f"{place}: no column {min(missing)!r}, unlike the first file; mend the file")
                    content, path = _image_of(row[image], f"{place}: {image}")
                    with naming(place):
                        given = space.numbers if options.classes else ()
                        pairs = read_value(_label_of(row[label]), row.get("weights"), given)
                        labels, weights = space.labels(pairs)
                    meta = {k: v for k, v in row.items() if k not in {image, label, "weights"} and _is_plain(v)}
                    key = safe_key(str(meta.pop(options.key))) if options.key else f"{number:09d}"
                    if path:
                        meta["path"] = path
                    yield Item(key, str(blob), end, len(content), labels, weights, meta or None, place)
                    if wanted is None or wanted[number]:
                        out.write(content)
                        end += len(content)
                    number += 1

    name = url_name(url).removesuffix(".parquet") + (f"-{options.split}" if options.split not in {"", ALL} else "")
    num_classes = space.num_classes or len(space.names) or None
    source = Source("parquet", name, "", items, space.names, num_classes)
    return source


def _parquet_classes(pq: Any, files: list[str], label: str, schema: Any, options: TableOptions) -> ClassSpace:
    """The classes of a Parquet source: those given, those that the schema names, or the texts in the column."""
    if options.classes:
        return ClassSpace(options.classes, options.num_classes)
    named = _schema_classes(schema, label)
    if named or not _may_be_text(schema.field(label).type):
        return ClassSpace(named, options.num_classes, indices=True)

    def rows() -> Iterator[Pairs]:
        for file in files:
            for place, row in _parquet_rows(pq, file, [label]):
                with naming(place):
                    yield read_value(_label_of(row.get(label)))

    return seen_classes(rows(), redact(files[0]), options)


def _label_of(value: Any) -> Any:
    """A label as JSON would say it: weights by label are a map in Arrow, or a struct with null where one has none."""
    if isinstance(value, list) and value and all(isinstance(entry, tuple) and len(entry) == 2 for entry in value):
        return dict(value)
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _may_be_text(kind: Any) -> bool:
    """Whether a column of this type of Arrow, or of lists of it, may hold names."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return not str(kind).startswith(("int", "uint", "float", "halffloat", "double", "bool"))


def _num_rows(pq: Any, files: list[str]) -> int:
    """Rows of all files, from their footers."""
    total = 0
    for url in files:
        with _opened(pq, url) as file:
            total += int(file.metadata.num_rows)
    return total


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed; install the extra: pip install 'vit_dist[data]'"
        ) from None
    return pyarrow.parquet


def _parquet_files(url: str, split: str) -> list[str]:
    urls: list[str] = []

    def walk(folder: str) -> None:
        directories, files = list_directory(folder)
        urls.extend(join_url(folder, name) for name, _ in files if name.endswith(".parquet"))
        for name in directories:
            walk(join_url(folder, name))

    for each in named(url):
        if url_name(each).endswith(".parquet") and not is_directory(each):
            urls.append(each)
        else:
            walk(folder_url(each))
    if not urls:
        raise DataError(f"{redact(url)}: no .parquet files in it")
    return choose_urls(url, urls, split) if split or len(urls) > 1 else urls


class _opened:  # noqa: N801 - used as a function
    """A Parquet file open for reading; damage becomes a DataError."""

    def __init__(self, pq: Any, url: str) -> None:
        self._pq, self._url = pq, url

    def __enter__(self) -> Any:
        with explained(self._url, "read"):
            self._file = open_file(self._url)
            try:
                return self._pq.ParquetFile(self._file)
            except Exception as error:
                self._file.close()
                if isinstance(error, OSError) and not type(error).__module__.startswith("pyarrow"):
                    raise
                raise DataError(f"{redact(self._url)}: not a Parquet file, or damaged: {error}") from None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if error is not None and type(error).__module__.startswith("pyarrow"):
            raise DataError(f"{redact(self._url)}: damaged: {error}; copy it again") from None


def _parquet_rows(pq: Any, url: str, columns: list[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with _opened(pq, url) as file:
        try:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    yield f"{redact(url)}: row {number}", row
                    number += 1
        except OSError as error:
            raise DataError(f"{redact(url)}: damaged after row {number}: {error}; copy it again") from None


def _schema_classes(schema: Any, label: str) -> tuple[str, ...]:
    """Names of a ClassLabel column, as the library `datasets` keeps them in the schema's metadata."""
    try:
        described = parse_json((schema.metadata or {})[b"huggingface"])
        feature = described["info"]["features"][label]
        return tuple(map(str, feature.get("names") or feature["feature"]["names"]))
    except (KeyError, ValueError, TypeError, AttributeError):
        return ()


def _image_of(value: Any, place: str) -> tuple[bytes, str]:
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path") or ""
        if isinstance(content, bytes):
            return content, str(path)
        raise DataError(
            f"{place}: no embedded bytes, only {value.get('path')!r}; embed the images, or give a list of paths"
        )
    if isinstance(value, bytes):
        return value, ""
    if value is None:
        # Counted among the unreadable ones.
        return b"", ""
    raise DataError(
        f"{place}: neither bytes nor {{bytes, path}} but {type(value).__name__}; name the column: --image-field"
    )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
