"""What labels say: class numbers or names in the members of a WebDataset sample, and files of class names. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import explained
from vit_dist.data.members import named_extension


@dataclass(frozen=True)
class LabelRule:
    """Where a sample's labels stand.

    Attributes:
        member: extension of the label member: 'cls', 'json', 'txt', 'output.cls', ...; what ends in `json` is read as
            JSON, anything else as text. 'none': no labels. 'auto': `.cls` where there is one, else `.json`.
        field: the key in `.json`; dots go deeper; '' takes `labels`, then `label`.
        classes: names that labels may be given by, in the order of their numbers.
        image: extension of the image member (`jpg`, `left.jpg`) where a sample has several; '' allows only one.
    """

    member: str = "auto"
    field: str = ""
    classes: tuple[str, ...] = ()
    image: str = ""

    def wants(self, extension: str) -> bool:
        """True where a member of this extension must be read for its labels."""
        if self.member == "auto":
            return extension in {"cls", "json"}
        return extension == self.member

    def labels(self, members: dict[str, bytes]) -> tuple[list[int], list[float] | None]:
        """The labels and weights of a sample from its label members.

        Raises:
            ValueError: missing, or not labels.
        """
        if self.member == "none":
            return [], None
        for kind in ("cls", "json") if self.member == "auto" else (self.member,):
            if kind in members:
                return self._parse_json(members[kind]) if _is_json(kind) else self._parse_text(members[kind], kind)
        wanted = ".cls or .json" if self.member == "auto" else f".{self.member}"
        raise ValueError(f"has no label: no {wanted} member")

    def _parse_text(self, content: bytes, kind: str) -> tuple[list[int], None]:
        if not self.classes and content.isdigit():
            return [int(content)], None
        text = content.decode("utf-8").strip()
        if self.classes and text in self._numbers:
            return [self._numbers[text]], None
        return [self._number(word, f".{kind}") for word in re.split(r"[,\s]+", text)], None

    def _parse_json(self, content: bytes) -> tuple[list[int], list[float] | None]:
        value: Any = json.loads(content)
        names = [self.field] if self.field else ["labels", "label"]
        record = value
        for name in names:
            found = _dig(record, name)
            if found is not None:
                value = found
                break
        else:
            known = list(record) if isinstance(record, dict) else []
            raise ValueError(f"has no label: .json has no field {names[0]!r}{did_you_mean(names[0], known)}")
        if isinstance(value, dict):  # {"3": 0.7, "5": 0.3}
            return [self._number(k, ".json") for k in value], [_weight(w) for w in value.values()]
        values = value if isinstance(value, list) else [value]
        labels = [self._number(v, ".json") for v in values]
        weights = record.get("weights") if isinstance(record, dict) else None
        if weights is None:
            return labels, None
        if not isinstance(weights, list) or len(weights) != len(labels):
            raise ValueError(f".json has {len(labels)} labels but weights {weights!r}")
        return labels, [_weight(w) for w in weights]

    def _number(self, value: object, where: str) -> int:
        if isinstance(value, str) and value in self._numbers:
            return self._numbers[value]
        try:
            if isinstance(value, bool | float):
                raise ValueError
            number = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            hint = did_you_mean(str(value), self.classes) if self.classes else "; give the names with --classes"
            raise ValueError(f"{where} holds the label {value!r}, which is not a class number{hint}") from None
        if number < 0 or (self.classes and number >= len(self.classes)):
            raise ValueError(f"{where} holds the label {number}, outside the {len(self.classes) or 'possible'} classes")
        return int(number)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}


def _is_json(extension: str) -> bool:
    return extension.rpartition(".")[2] == "json"


def label_rule(labels: str, field: str, classes: tuple[str, ...], image: str) -> LabelRule:
    """The rule that options ask for.

    Args:
        labels: 'auto', 'none' or the extension of the label member.
        field: the key in its JSON; '' where none is named.
        classes: names of the classes.
        image: the extension of the image member; '' where none is named.

    Raises:
        ConfigError: they do not fit together.
    """
    member, image = named_extension(labels), named_extension(image)
    if field and member != "auto" and not _is_json(member):
        raise ConfigError(f"--label-field {field}: only .json has fields, but --labels is {labels}")
    if field and member == "auto":
        member = "json"
    if not member or member == image:
        raise ConfigError(f"--labels {labels!r}: expected auto, none, or the extension of the member with the labels")
    return LabelRule(member, field, classes, image)


def _dig(value: Any, path: str) -> Any:
    for part in [path] if isinstance(value, dict) and path in value else path.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f".json holds the weight {value!r}, which is not a number of 0 or more")
    return float(value)


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line.

    Raises:
        DataError: unreadable, empty, or a name twice.
    """
    with explained(str(path), "read"):
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not text in UTF-8: {error}") from None
    while names and not names[-1].strip():
        names.pop()
    twice = {n for n in names if names.count(n) > 1} if len(names) != len(set(names)) else set()
    if not names or twice:
        problem = f"the name {min(twice)!r} stands twice" if twice else "no names in it"
        raise DataError(f"{path}: {problem}; expected the name of a class on each line")
    return tuple(name.strip() for name in names)
