"""What labels say, by one grammar for every input: folders, lists, JSON, Parquet and members of tars. No torch.

docs/data.md has the grammar as a table. A label is read in two steps: `read_value` or `read_text` make atoms of it,
class numbers and texts that may be names, each with its weight or None; `ClassSpace.labels` makes numbers of atoms.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vit_dist.core.errors import ConfigError, DataError, did_you_mean

MAX_CLASSES = 2**24
"""No label is that large: no head has so many classes, and counting them takes 128 MB; ids, dates and hashes are."""
GRAMMAR = 2
"""Counted up where the grammar changes: what was read by another one is read again."""

Atom = int | str
Pairs = list[tuple[Atom, float | None]]

_DIGITS = re.compile(r"[0-9]+(?:\.0+)?")
_SEVERAL = re.compile(r"[0-9]+(?:[,\s]+[0-9]+)+")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_WEIGHT = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


class LabelError(ValueError):
    """What is wrong with a label; the caller says where it stands."""


@dataclass(frozen=True)
class ClassSpace:
    """The classes that labels may mean.

    Attributes:
        names: of the classes, in the order of their numbers; () where labels are numbers alone.
        num_classes: None: as many as there are names, or whatever is seen.
        indices: whole numbers are never names: the input's own type says so (Hugging Face's ClassLabel).
    """

    names: tuple[str, ...] = ()
    num_classes: int | None = None
    indices: bool = False

    def __post_init__(self) -> None:
        if self.num_classes is not None and not len(self.names) <= self.num_classes < MAX_CLASSES:
            known = f"there are {len(self.names):,} names of classes" if self.names else f"at most {MAX_CLASSES - 1:,}"
            raise ConfigError(f"--num-classes {self.num_classes}: {known}")

    @property
    def limit(self) -> int:
        """No class number is this large."""
        return self.num_classes or len(self.names) or MAX_CLASSES

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each name."""
        return {class_name(name): i for i, name in enumerate(self.names)}

    def labels(self, pairs: Pairs) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
        """Class numbers, and a weight for each or None.

        Raises:
            LabelError: a name that is not known, a number outside the classes, a class twice, weights that are none.
        """
        labels = tuple(self._number(atom) for atom, _ in pairs)
        given = [weight for _, weight in pairs if weight is not None]
        if given and len(given) < len(pairs):
            raise LabelError("has labels of which some have a weight and some have none; give each one, or none")
        weights = tuple(given) if given else None
        check_labels(labels, weights, self.limit)
        return labels, weights

    def _number(self, atom: Atom) -> int:
        named = None if self.indices and isinstance(atom, int) else self.numbers.get(str(atom))
        number = atom if isinstance(atom, int) else _whole(atom)
        if named is None and number is None:
            hint = did_you_mean(str(atom), self.names) if self.names else "; give the names of all classes: --classes"
            raise LabelError(f"has the label {shown(atom)}, which is no class{hint}")
        if named is None or named == number:
            return int(number or 0)
        if number is None or number >= self.limit:
            return named
        raise LabelError(
            f"has the label {shown(atom)}, which is the name of class {named} and the number of another one; give the "
            f"classes names that are no numbers"
        )


def check_labels(labels: Sequence[int], weights: Sequence[float] | None, limit: int) -> None:
    """Whether class numbers and their weights can be trained on.

    Raises:
        LabelError: none at all, a number outside [0, limit), a class twice, a weight outside [0, 1], or all of them 0.
    """
    if not labels:
        raise LabelError("has no label: every sample needs one")
    wrong = next((label for label in labels if not 0 <= label < limit), None)
    if wrong is not None:
        known = f"there are {limit:,} classes, from 0" if limit < MAX_CLASSES else f"class numbers end at {limit - 1:,}"
        problem = "class numbers begin at 0" if wrong < 0 else known
        hint = "where there are more, give --num-classes" if limit < MAX_CLASSES else "ids, dates and hashes are none"
        raise LabelError(f"has the label {shown(wrong)}, but {problem}; {hint}")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise LabelError(
            f"has class {twice} twice among its labels {shown(list(labels))}; class numbers are wanted, no one-hot "
            f"vector"
        )
    for weight in weights or ():
        check_weight(weight)
    if weights is not None and max(weights) < 2**-126:
        raise LabelError("has the weight 0 for all its labels, which is no label at all")


def check_pairs(where: str, num_samples: int, num_classes: int | None) -> None:
    """Refuse one-hot vectors of two classes, which look like class numbers 0 and 1: only the whole set shows it.

    Args:
        where: the set.
        num_samples: of the set, if every one has the labels 0 and 1 and no others, without weights; else 0.
        num_classes: None: whatever is seen.

    Raises:
        DataError: there are several such samples.
    """
    if num_samples > 1 and num_classes in (None, 2):
        raise DataError(
            f"{where}: each of the {num_samples:,} samples has both class 0 and class 1 and no other: class numbers "
            f"are wanted, no one-hot vectors"
        )


def shown(value: object) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_weight(value: object) -> float:
    """A weight, from 0 to 1.

    Raises:
        LabelError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise LabelError(f"has the weight {shown(value)}, which is no number from 0 to 1; divide weights by their sum")
    return float(value)


def class_name(text: str) -> str:
    """A name as names are compared: without blanks at its ends, accents composed (NFC), as file systems may not."""
    return unicodedata.normalize("NFC", text.strip())


def looks_like_a_number(text: str) -> bool:
    """Whether a text is meant as a number: a class number, or one that no class has, such as -1, 1.5, 1_000 or nan."""
    try:
        float(text)
    except ValueError:
        several = r"[\d.,:|\s]+" if "|" in text else r"[\d,\s]+"
        return text.isdigit() or re.fullmatch(several, text) is not None
    return True


def read_value(value: object, weights: object = None, names: Container[str] = ()) -> Pairs:
    """The labels of a typed value: from JSON or Parquet.

    Args:
        value: a label (whole number, or text), a list of them, or an object of weights by label.
        weights: beside it: a list of as many numbers; None or '': none.
        names: that are known.

    Raises:
        LabelError: it is none of these.
    """
    if isinstance(value, dict):
        repeated = sorted(getattr(value, "repeated", ()))
        if repeated:
            raise LabelError(f"has the label {repeated[0]!r} twice among its labels")
        if weights not in (None, ""):
            raise LabelError(
                f"has weights in its labels {shown(value)} and beside them {shown(weights)}; give one of the two"
            )
        return [(_atom(label, names), check_weight(weight)) for label, weight in value.items()]
    values = value if isinstance(value, list | tuple) else [value]
    atoms = [_atom(label, names) for label in values]
    if weights in (None, ""):
        return [(atom, None) for atom in atoms]
    given = _weights_of(weights) if isinstance(weights, str) else weights
    if not isinstance(given, list | tuple) or len(given) != len(atoms):
        raise LabelError(f"has {len(atoms)} labels but weights {shown(weights)}; there must be one for each label")
    return [(atom, check_weight(weight)) for atom, weight in zip(atoms, given, strict=True)]


def read_text(text: str, weights: object = None, names: Container[str] = ()) -> Pairs:
    """The labels of a text: a cell of a .csv or .tsv list, a .cls or .txt member.

    Args:
        text: a label; several between '|' (numbers also between blanks and commas); each with ':' and its weight, or
            none; or JSON.
        weights: beside it, as for `read_value`, or between '|'.
        names: that are known: such a text is that name, whatever it looks like.

    Raises:
        LabelError: it is none of these.
    """
    text = class_name(text)
    if text in names:
        return read_value(text, weights, names)
    if text[:1] in ("[", "{"):
        try:
            value = load_json(text)
        except ValueError:
            raise LabelError(f"has the label {shown(text)}, which looks like JSON and is none") from None
        return read_value(value, weights, names)
    if _THOUSANDS.fullmatch(text):
        raise LabelError(
            f"has the label {shown(text)}: one number or several? Write several with blanks or '|' between"
        )
    words = [class_name(word) for word in text.split("|")]
    if len(words) == 1:
        several = [word for word in re.split(r"[,\s]+", text) if word]
        if _SEVERAL.fullmatch(text) or (several[1:] and all(w in names or _whole(w) is not None for w in several)):
            words = several
    pairs = [_weighted(word, names) for word in words]
    soft = [weight for _, weight in pairs if weight is not None]
    if not soft:
        return read_value([word for word, _ in pairs], weights, names)
    if weights not in (None, ""):
        raise LabelError(
            f"has weights in its labels {shown(text)} and beside them {shown(weights)}; give one of the two"
        )
    if len(words) == 1 and "." not in words[0].rpartition(":")[2]:
        raise LabelError(
            f"has the label {shown(text)}: a name, or a label and its weight? Give the names with --classes, write "
            f'the name in JSON (["..."]), or the weight with a point'
        )
    return [(_atom(word, names), weight) for word, weight in pairs]


def load_json(text: str | bytes) -> Any:
    """JSON; objects in which a key stands twice are instances of `Repeated`.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Repeated(dict[str, Any]):
    """An object of JSON with keys that stand twice, of which the last one won."""

    repeated: frozenset[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    seen: set[str] = set()
    marked = Repeated(plain)
    marked.repeated = frozenset(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return marked


def _atom(value: object, names: Container[str]) -> Atom:
    """A class number, or a text that may be a name."""
    if isinstance(value, str):
        return _named(value, names)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        # A column of whole numbers is written so once one of them was missing.
        return int(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise LabelError(f"has no label: {shown(value)} stands in its place")
    kind = "neither a class number nor a name" if isinstance(value, float) else f"of type {type(value).__name__}"
    raise LabelError(f"has the label {shown(value)}, {kind}; give a class number, a name, or a list of them")


def _named(value: str, names: Container[str]) -> Atom:
    text = class_name(value)
    if text in names:
        return text
    number = _whole(text)
    if number is not None:
        return number
    if not text:
        raise LabelError("has no label: an empty text stands in its place")
    if looks_like_a_number(text) or text[0] in "[{":
        raise LabelError(
            f"has the label {shown(value)}, which is no class number (0, 1, 2, ...) and looks like no name either; "
            f"mend it, or give the names with --classes"
        )
    return text


def _whole(text: str) -> int | None:
    """The class number that digits say, also as 2.0; None for any other text."""
    if _DIGITS.fullmatch(text) is None:
        return None
    digits = text.partition(".")[0].lstrip("0") or "0"
    # Beyond any bound, and Python refuses to read thousands of digits.
    return int(digits[:50])


def _weighted(word: str, names: Container[str]) -> tuple[str, float | None]:
    label, colon, weight = word.rpartition(":")
    if word in names or not (colon and label.strip() and looks_like_a_number(weight)):
        return word, None
    if _WEIGHT.fullmatch(weight.strip()) is None:
        raise LabelError(f"has the weight {shown(weight)} in {shown(word)}, which is no number from 0 to 1")
    return label.strip(), check_weight(float(weight))


def _weights_of(text: str) -> list[float]:
    """Weights in a cell of a list: between '|', blanks or commas, or as a JSON list."""
    words = [word for word in re.split(r"[|,\s\[\]]+", text) if word]
    wrong = next((word for word in words if _WEIGHT.fullmatch(word) is None), None)
    if wrong is not None:
        raise LabelError(f"has the weight {wrong!r} in {shown(text)}, which is no number from 0 to 1")
    return [float(word) for word in words]


def check_classes(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Names of classes, as they are compared.

    Raises:
        DataError: none, an empty one, or one twice.
    """
    classes = tuple(class_name(name) for name in names)
    if not classes or not all(classes):
        problem = f"the name of class {classes.index('')} is empty" if classes else "no names in it"
        raise DataError(f"{where}: {problem}; every class needs a name of its own")
    if len(set(classes)) < len(classes):
        seen: set[str] = set()
        twice = next(name for name in classes if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{where}: the name {twice!r} stands twice; every class needs a name of its own")
    return classes
