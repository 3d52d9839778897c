"""CIFAR-10 and CIFAR-100, as pickles of Python and as binary files, packed in an archive or not. No torch.

A pickle is read as data: nothing of it is run (core/pickles.py). Both forms hold the same pixels in the same order and
are packed to the same bytes. https://www.cs.toronto.edu/~kriz/cifar.html says what is in them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import explained
from vit_dist.core.pickles import ForbiddenError, Meaning, Named, read_pickle
from vit_dist.core.small_files import DamagedError, is_count
from vit_dist.core.units import counted
from vit_dist.data.pack.items import Item
from vit_dist.data.pack.published.files import Files, Place, lines, look, read
from vit_dist.data.pack.sources import Source
from vit_dist.data.splits import split_of_folder

_SHAPE = (3, 32, 32)
_SIZE = math.prod(_SHAPE)
_COARSE = "coarse"


@dataclass(frozen=True)
class Form:
    """One of the four forms.

    Attributes:
        title: for people.
        name: of the dataset.
        folder: that its archive unpacks to.
        archive: its name.
        train: files of the training set.
        test: files of the test set.
        names: file, or files, of the names of the classes.
        keys: of labels in a pickle, as of names in `names`: the fine ones, and the coarse ones where there are any.
    """

    title: str
    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def is_binary(self) -> bool:
        """Records of bytes in place of pickles."""
        return self.test.endswith(".bin")

    def is_in(self, names: Sequence[str]) -> bool:
        """Whether a folder with these names holds it: its folder, its archive, or its files."""
        return self.folder in names or self.archive in names or {self.names[0], self.test} <= set(names)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
FORMS = (
    Form("CIFAR-10 (python)", "cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz",
         _BATCHES, "test_batch", ("batches.meta",), ("labels",)),
    Form("CIFAR-10 (binary)", "cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
         tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", ("batches.meta.txt",), ("labels",)),
    Form("CIFAR-100 (python)", "cifar100", "cifar-100-python", "cifar-100-python.tar.gz",
         ("train",), "test", ("meta",), ("fine_labels", "coarse_labels")),
    Form("CIFAR-100 (binary)", "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz",
         ("train.bin",), "test.bin", ("fine_label_names.txt", "coarse_label_names.txt"),
         ("fine_labels", "coarse_labels")),
)  # fmt: skip


def cifar_source(url: str, scratch: Path, split: str, label_field: str) -> Source:
    """The training or the test set of one form.

    Args:
        url: of an archive, of what it unpacks to, or of the folder that holds either.
        scratch: for pixels that lie in a pickle, or in a compressed archive.
        split: 'train' or 'test'.
        label_field: CIFAR-100: 'fine' (or '') or 'coarse'.

    Raises:
        ConfigError: no split is named, or no such one; several forms of different sets.
        DataError: files that are missing or damaged.
    """
    files = look(url, scratch)
    form = _form(files, url)
    kind = split_of_folder(split) if split else ""
    if kind not in {"train", "test"}:
        hint = f"{did_you_mean(split, ('train', 'test'))}" if split else ""
        raise ConfigError(
            f"--split-name {split!r}: {form.title} has train and test{hint}; choose one"
            if split
            else f"{files.where}: {form.title} has two sets; choose one with --split-name train or --split-name test"
        )
    if label_field not in {"", "fine", *([_COARSE] if len(form.keys) > 1 else [])}:
        known = "fine and coarse" if len(form.keys) > 1 else "one kind of labels alone"
        raise ConfigError(f"--label-field {label_field!r}: {form.title} has {known}")
    which = int(label_field == _COARSE)
    if not (files.find(f"{form.folder}/{form.test}") or form.test in files.by_path):
        files.archives(form.archive)
    parts = form.train if kind == "train" else (form.test,)
    places = [_part(files, form, part) for part in parts]
    classes = _names(files, form, which)
    batches = [
        _binary(p, form, classes, which) if form.is_binary else _pickled(p, form, classes, which, scratch)
        for p in places
    ]

    def items() -> Iterator[Item]:
        number = 0
        for place, begin, step, labels, others in batches:
            for i, label in enumerate(labels):
                where = f"{place.where}: image {i}"
                meta = {"coarse" if not which else "fine": others[i]} if others else None
                key = f"{kind}-{number:05d}"
                yield Item(key, place.url, begin + i * step, _SIZE, (label,), meta=meta, where=where)
                number += 1

    name = f"{form.name}-{_COARSE}-{kind}" if which else f"{form.name}-{kind}"
    source = Source("cifar", name, "", items, classes, len(classes), pixels=_SHAPE)
    total = sum(len(batch[3]) for batch in batches)
    source.notes.append(
        f"{files.where}: read as {form.title}, {kind}: {counted(total, 'image')} of {counted(len(classes), 'class')}"
    )
    return source


def _form(files: Files, url: str) -> Form:
    """The form that is there; of one set in two forms the one that is unpacked, else the pickled one.

    Raises:
        ConfigError: both sets.
        DataError: none.
    """
    own = [form for form in FORMS if url.rstrip("/").rpartition("/")[2] in {form.folder, form.archive}]
    names = {part for path in files.by_path for part in path.split("/")}
    found = own or [form for form in FORMS if form.is_in(tuple(names))]
    if not found:
        raise DataError(
            f"{files.where}: none of {', '.join(form.archive for form in FORMS)}, nor what is in them; fetch one"
        )
    if len({form.name for form in found}) > 1:
        raise ConfigError(
            f"{files.where}: holds CIFAR-10 and CIFAR-100; name the archive, or what it unpacks to: "
            f"{' or '.join(form.folder if form.folder in names else form.archive for form in found)}"
        )
    return next((form for form in found if form.folder in names), found[0])


def _part(files: Files, form: Form, name: str) -> Place:
    # First what lies in the folder of this very form: CIFAR-100 calls its files 'train' and 'test'.
    return files.find(f"{form.folder}/{name}") or files.need(name, f"a file of {form.title}")


def _names(files: Files, form: Form, which: int) -> tuple[str, ...]:
    if form.is_binary:
        return tuple(line for line in lines(_part(files, form, form.names[which])) if line)
    place = _part(files, form, form.names[0])
    key = f"{form.keys[which].removesuffix('s')}_names"
    found = _unpickled(place).get(key)
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in map(_text, found)):
        raise DataError(f"{place.where}: no list {key!r} in it; is it the file of another set?")
    return tuple(str(_text(name)) for name in found)


Batch = tuple[Place, int, int, list[int], list[int]]
"""Where the pixels lie, of the first image and from one to the next; labels, and the other ones of CIFAR-100."""


def _binary(place: Place, form: Form, classes: Sequence[str], which: int) -> Batch:
    """Records of a byte of each kind of label, the coarse one first, and the pixels."""
    content, heads = read(place), len(form.keys)
    step = heads + _SIZE
    if not content or len(content) % step:
        raise DataError(
            f"{place.where}: {len(content):,} bytes are no whole number of records of {step:,}; fetch it again"
        )
    kinds = [list(content[head::step]) for head in reversed(range(heads))]
    labels = _checked(kinds[which], classes, place)
    return place, max(place.offset, 0) + heads, step, labels, kinds[1 - which] if heads > 1 else []


def _pickled(place: Place, form: Form, classes: Sequence[str], which: int, scratch: Path) -> Batch:
    batch = _unpickled(place)
    pixels = batch.get("data")
    kinds = [batch.get(key) for key in form.keys]
    if not isinstance(pixels, _Array) or not all(isinstance(kind, list) for kind in kinds):
        raise DataError(
            f"{place.where}: no 'data' and {' and '.join(map(repr, form.keys))} in it; is it another set's file?"
        )
    labels = [_checked(kind, classes if i == which else None, place) for i, kind in enumerate(kinds)]
    if pixels.shape != (len(labels[0]), _SIZE) or len({len(kind) for kind in labels}) > 1:
        raise DataError(
            f"{place.where}: {len(labels[0]):,} labels, but data of the shape {pixels.shape}; fetch it again"
        )
    target = scratch / f"{place.path.replace('/', '-')}.pixels"
    with explained(str(target), "written"):
        scratch.mkdir(parents=True, exist_ok=True)
        target.write_bytes(pixels.content)
    return Place(str(target), -1, -1, place.path), 0, _SIZE, labels[which], labels[1 - which] if len(labels) > 1 else []


def _checked(labels: Any, classes: Sequence[str] | None, place: Place) -> list[int]:
    for number, label in enumerate(labels):
        if not is_count(label) or (classes is not None and label >= len(classes)):
            known = f"; there are {len(classes)} classes, from 0" if classes is not None else ""
            raise DataError(f"{place.where}: image {number}: label {str(label)[:20]} is out of range{known}")
    return list(labels)


class _Array:
    """What a pickle says of an array of bytes."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.content = b""


@dataclass(frozen=True)
class _Kind:
    """What a pickle says of an array's kind of numbers."""

    name: str


_ARRAYS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_KNOWN = {*_ARRAYS, "numpy.ndarray", "numpy.dtype", "_codecs.encode"}


def _called(name: str, arguments: tuple[Any, ...]) -> Any:
    if name in _ARRAYS:
        return _Array()
    if name == "numpy.dtype":
        return _Kind(str(_text(arguments[0])))
    # How Python 3 writes bytes for Python 2.
    if name == "_codecs.encode" and arguments[1:] == ("latin1",):
        return str(arguments[0]).encode("latin-1")
    raise ForbiddenError(name)


def _built(value: Any, state: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    _, shape, kind, by_columns, content = state
    if not isinstance(kind, _Kind) or kind.name not in {"u1", "|u1", "uint8"} or by_columns:
        raise DamagedError("an array of something other than bytes, row by row")
    if not all(map(is_count, shape)) or not isinstance(content, bytes) or len(content) != math.prod(shape):
        raise DamagedError(f"an array of the shape {shape} with another number of bytes")
    value.shape, value.content = tuple(shape), content
    return value


def _bytes(argument: Any) -> bytes:
    # pickletools shows the bytes of Python 2 as Latin-1.
    return argument if isinstance(argument, bytes) else str(argument).encode("latin-1")


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _unpickled(place: Place) -> dict[str, Any]:
    """The dictionary in a file, with `_Array` for arrays."""
    meaning = Meaning(_KNOWN, _called, build=_built, raw=bytes, string=_bytes)
    try:
        found = read_pickle(io.BytesIO(read(place)), meaning)
    except ForbiddenError as error:
        raise DataError(
            f"{place.where}: it wants to run {error}, which no file of CIFAR does; it is not read: fetch it again from "
            f"its makers"
        ) from None
    except DamagedError as error:
        raise DataError(f"{place.where}: damaged: {error}; fetch it again") from None
    if not isinstance(found, dict) or isinstance(found, Named):
        raise DataError(f"{place.where}: no dictionary; is it the file of another set?")
    return {str(_text(key)): value for key, value in found.items()}
