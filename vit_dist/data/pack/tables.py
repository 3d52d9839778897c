"""Images that a list names (.jsonl, .csv, .tsv), by path or URL; and the fields of any table. No torch."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import DataError, did_you_mean
from vit_dist.core.files import (
    explained,
    parent_url,
    redact,
    url_name,
)
from vit_dist.core.text import text_file
from vit_dist.data.grammar import ClassSpace, LabelError, Pairs, load_json, read_text, read_value
from vit_dist.data.pack.items import Item, safe_key
from vit_dist.data.pack.sources import Source
from vit_dist.data.ranges import open_file

IMAGE_FIELDS = ("image", "path", "file", "file_name", "filename", "url", "image_path", "image_url", "img", "jpg", "png")
LABEL_FIELDS = ("labels", "label", "class", "cls", "target", "category", "fine_label")


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
        return seen_classes((self._pairs(where, row) for where, row in self.rows()), redact(self.url), self.options)

    def _pairs(self, where: str, row: dict[str, Any]) -> Pairs:
        label = self.fields(where, row)[1]
        with naming(where):
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
        with naming(where):
            labels, weights = space.labels(pairs)
        meta = {k: v for k, v in row.items() if k not in {image, label, "weights"}}
        return path, labels, weights, {**meta, "path": path}


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """What is wrong with a label, said with its row."""
    try:
        yield
    except LabelError as error:
        raise DataError(f"{where}: this row {error}") from None


def seen_classes(rows: Iterable[Pairs], where: str, options: TableOptions) -> ClassSpace:
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
