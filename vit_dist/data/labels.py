"""Where the labels of a WebDataset sample stand among its members, and files of class names. No torch.

What they say there is read by the one grammar of all inputs: data/grammar.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_dist.core import text as user_text
from vit_dist.core.errors import ConfigError, did_you_mean
from vit_dist.data.grammar import (
    ClassSpace,
    LabelError,
    Pairs,
    check_classes,
    check_labels,
    load_json,
    read_text,
    read_value,
)
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
        num_classes: labels must be below; None: the names, or whatever is seen.
    """

    member: str = "auto"
    field: str = ""
    classes: tuple[str, ...] = ()
    image: str = ""
    num_classes: int | None = None

    def wants(self, extension: str) -> bool:
        """True where a member of this extension must be read for its labels."""
        if self.member == "auto":
            return extension in {"cls", "json"}
        return extension == self.member

    def labels(self, members: dict[str, bytes]) -> tuple[Sequence[int], Sequence[float] | None]:
        """The labels and weights of a sample from its label members.

        Raises:
            ValueError: missing, or not labels.
        """
        if self.member == "none":
            return (), None
        for kind in ("cls", "json") if self.member == "auto" else (self.member,):
            if kind in members:
                content = members[kind]
                # Nearly every member: a number alone.
                if not self.classes and not _is_json(kind) and content.isdigit() and len(content) < 10:
                    labels = (int(content),)
                    check_labels(labels, None, self.space.limit)
                    return labels, None
                return self.space.labels(self._pairs(content, kind))
        wanted = ".cls or .json" if self.member == "auto" else f".{self.member}"
        raise LabelError(f"has no label: no {wanted} member")

    @cached_property
    def space(self) -> ClassSpace:
        """What its labels may mean."""
        return ClassSpace(self.classes, self.num_classes)

    def _pairs(self, content: bytes, kind: str) -> Pairs:
        try:
            text = user_text.decode_text(content)
        except ValueError as error:
            raise LabelError(f"has a .{kind} that {error}") from None
        if not _is_json(kind):
            return read_text(text, names=self.space.numbers)
        try:
            record = load_json(text)
        except ValueError as error:
            raise LabelError(f"has a .{kind} that is not JSON: {error}") from None
        for name in [self.field] if self.field else ["labels", "label"]:
            value = _dig(record, name)
            if value is not None:
                weights = record.get("weights") if isinstance(record, dict) else None
                if name in getattr(record, "repeated", ()):
                    raise LabelError(f"has the field {name!r} twice in its .json; which one is meant?")
                return read_value(value, weights, self.space.numbers)
        known = list(record) if isinstance(record, dict) else []
        name = self.field or "labels"
        raise LabelError(f"has no label: .json has no field {name!r}{did_you_mean(name, known)}")


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


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line.

    Raises:
        DataError: unreadable, empty, or a name twice.
    """
    names = user_text.read_text(path).split("\n")
    while names and not names[-1].strip():
        names.pop()
    return check_classes(names, str(path))
