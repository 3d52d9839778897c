"""Images that a table names: lists (.jsonl, .csv, .tsv) of files or URLs, Parquet with the bytes inside. No torch."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import (
    explained,
    folder_url,
    join_url,
    parent_url,
    redact,
    url_name,
)
from vit_dist.core.small_files import parse_json
from vit_dist.core.text import text_file
from vit_dist.data.grammar import ClassSpace, LabelError, Pairs, load_json, read_text, read_value
from vit_dist.data.names import is_directory, named
from vit_dist.data.pack.directories import list_directory
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.sources import Source
from vit_dist.data.ranges import open_file
from vit_dist.data.splits import ALL, choose_urls

IMAGE_FIELDS = ("image", "path", "file", "file_name", "filename", "url", "image_path", "image_url", "img", "jpg", "png")
LABEL_FIELDS = ("labels", "label", "class", "cls", "target", "category", "fine_label")
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class TableOptions:
    """How to read a table.

    Attributes:
        image: field with the image's path, URL or bytes; '' finds it by its name.
        label: field with the labels; '' finds it by its name.
        key: field with keys, which must be unique; '' numbers the samples.
        classes: names that labels may be given by.
        num_classes: of the label space; None: the names, or the largest label + 1.
        split: Parquet: which split, where names of files speak of several.
    """

    image: str = ""
    label: str = ""
    key: str = ""
    classes: tuple[str, ...] = ()
    num_classes: int | None = None
    split: str = ""


def list_source(url: str, options: TableOptions) -> Source:
    """A list, one image a row: a path (relative to the list) or URL, labels, and anything else, kept as `.json`.

    Labels are read by the grammar of data/grammar.py: as text in .csv and .tsv, as values in JSON Lines. Without
    `classes`, names are numbered in their sorted order.

    Raises:
        DataError: a row that cannot be read; it is named.
    """
    table = _Table(url, options)
    space = table.classes()

    def items() -> Iterator[Item]:
        for number, (where, row) in enumerate(table.rows()):
            path, labels, weights, meta = table.read(where, row, space)
            key = safe_key(str(meta.pop(options.key))) if options.key else f"{number:09d}"
            yield Item(key, path, -1, -1, labels, weights, meta or None, f"{where}: {path}")

    name = url_name(url).rpartition(".")[0]
    return Source("list", name, parent_url(url), items, space.names, space.num_classes or len(space.names) or None)


class _Table:
    """The rows of a list, and how their fields are understood."""

    def __init__(self, url: str, options: TableOptions) -> None:
        self.url, self.options = url, options
        self._ending = Path(url_name(url)).suffix.lower()
        self._is_text = self._ending in {".csv", ".tsv"}
        self._given = ClassSpace(options.classes, options.num_classes)
        self._fields: tuple[str, str] | None = None

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows with their places."""
        where = redact(self.url)
        with explained(self.url, "read"), open_file(self.url) as raw:
            try:
                text = text_file(raw)
            except ValueError as error:
                raise DataError(f"{where}: {error}") from None
            try:
                yield from self._csv(text) if self._is_text else self._jsonl(text)
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: is not text in UTF-8 ({error}); save it as UTF-8") from None

    def _jsonl(self, text: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            where = f"{redact(self.url)}:{number}"
            try:
                row = load_json(line)
            except ValueError as error:
                raise DataError(f"{where}: not JSON: {error}; expected an object on each line") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected a JSON object with a path and a label, got {line.strip()[:60]}")
            yield where, row

    def _csv(self, text: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        reader = csv.DictReader(text, delimiter="\t" if self._ending == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                where = f"{redact(self.url)}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{where}: this row has another number of fields than the first one, which names them: "
                        f"{', '.join(reader.fieldnames or [])}"
                    )
                yield where, dict(row)
        except csv.Error as error:
            raise DataError(f"{redact(self.url)}:{reader.line_num}: {error}; mend the row") from None

    def classes(self) -> ClassSpace:
        """The classes; reads the list once where names are not given."""
        if self.options.classes:
            return self._given
        return _seen_classes((self._pairs(where, row) for where, row in self.rows()), redact(self.url), self.options)

    def _pairs(self, where: str, row: dict[str, Any]) -> Pairs:
        label = self.fields(where, row)[1]
        with _naming(where):
            if label in getattr(row, "repeated", ()):
                raise LabelError(f"has the field {label!r} twice; which one is meant?")
            # By the names that are given alone: a name that some row brings must not change how another is read.
            read = read_text if self._is_text else read_value
            return read(row[label], row.get("weights"), self._given.numbers)

    def fields(self, where: str, row: dict[str, Any]) -> tuple[str, str]:
        """Names of the fields with the image and the labels, from the first row."""
        if self._fields is None:
            self._fields = (
                choose_field(where, row, self.options.image, IMAGE_FIELDS, "image"),
                choose_field(where, row, self.options.label, LABEL_FIELDS, "label"),
            )
            if self.options.key:
                choose_field(where, row, self.options.key, (), "key")
        for name in (*self._fields, *([self.options.key] if self.options.key else [])):
            if name not in row or row[name] in (None, ""):
                raise DataError(f"{where}: no {name!r}; every row needs one: mend it, or take it out")
        return self._fields

    def read(
        self, where: str, row: dict[str, Any], space: ClassSpace
    ) -> tuple[str, tuple[int, ...], tuple[float, ...] | None, dict[str, Any]]:
        """Path, labels, weights and the rest of a row."""
        image, label = self.fields(where, row)
        path = row[image]
        if not isinstance(path, str):
            raise DataError(f"{where}: {image!r} is {path!r}, expected a path or a URL")
        pairs = self._pairs(where, row)
        with _naming(where):
            labels, weights = space.labels(pairs)
        meta = {k: v for k, v in row.items() if k not in {image, label, "weights"}}
        return path, labels, weights, {**meta, "path": path}


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """What is wrong with a label, said with its row."""
    try:
        yield
    except LabelError as error:
        raise DataError(f"{where}: this row {error}") from None


def _seen_classes(rows: Iterable[Pairs], where: str, options: TableOptions) -> ClassSpace:
    """The classes of labels that nobody has given names for: those that are texts, in sorted order.

    Raises:
        DataError: some labels are numbers and some are names.
    """
    names: set[str] = set()
    numbers = False
    for pairs in rows:
        for atom, _ in pairs:
            if isinstance(atom, str):
                names.add(atom)
            else:
                numbers = True
    if names and numbers:
        raise DataError(
            f"{where}: some labels are numbers and some are names ({min(names)!r}); give the names of all classes with "
            f"--classes, or mend the list"
        )
    return ClassSpace(tuple(sorted(names)), options.num_classes)


def choose_field(where: str, row: Iterable[str], wanted: str, known: tuple[str, ...], what: str) -> str:
    """The field that is asked for, or the first of the usual names that is there.

    Raises:
        DataError: none of them is there.
    """
    fields = list(row)
    if wanted:
        if wanted not in fields:
            raise DataError(f"{where}: no field {wanted!r} (--{what}-field){did_you_mean(wanted, fields)}")
        return wanted
    lowered = {str(f).lower(): f for f in fields}
    for name in known:
        if name in lowered:
            return lowered[name]
    raise DataError(f"{where}: which field is the {what}? Name it with --{what}-field; there are: {', '.join(fields)}")


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
                    with _naming(place):
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
                with _naming(place):
                    yield read_value(_label_of(row.get(label)))

    return _seen_classes(rows(), redact(files[0]), options)


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
