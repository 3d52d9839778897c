"""What a value was measured on. A value belongs to a metric, a set and a step: here is what a set is. No torch.

A tag of a run stands for one set, the first on which the run measured it. What is measured on any other set has a tag
of its own, which names the set: `val/top1` and `val@objectnet-1a2b3c4d/top1`. So whatever is found by its tag (event
files, checkpoints, status, reports) is never of a set that nobody meant.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vit_dist.core.small_files import DamagedError, is_count, is_name

_LONGEST = 40
_LONGEST_NAME = 500

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class MeasuredOn(BaseModel):
    """On what an evaluator measures: a set, and all else that its values depend on but for the run.

    `classes` is a digest of the names of the set's classes, '' where it has none: labels of other meaning make
    another set. `image_size` and `crop` are those of the run, and belong to its identity. `settings` are the
    evaluator's.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    name: str = Field(description="of the set, for people")
    fingerprint: Hex = Field(description="of the manifest, as `vit-dist data info` shows it")
    classes: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    examples: int
    subset: int | None = Field(None, description="so many of them; null: all")
    image_size: int
    crop: float
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        # Manifests may be called anything; what a log says of a name ends up on pages and terminals.
        if not (is_name(value or "-") and len(value) <= _LONGEST_NAME and len(value.splitlines()) <= 1):
            raise ValueError(f"{value[:60]!a} is no name")
        value.encode()
        return value

    @field_validator("examples", "image_size", "subset")
    @classmethod
    def _is_count(cls, value: int | None) -> int | None:
        if value is not None and not is_count(value):
            raise DamagedError(f"{value} is no count")
        return value

    @property
    def key(self) -> str:
        """Equal for what may be compared: the content that is looked at and the settings, whatever it is called."""
        return json.dumps([self.fingerprint, self.classes, self.subset, self.settings], sort_keys=True)

    @property
    def label(self) -> str:
        """What names the set in tags: `objectnet-1a2b3c4d`, and six digits more where there is more to tell apart."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")[:_LONGEST] or "set"
        plain = not self.classes and self.subset is None and not self.settings
        more = "" if plain else f"-{hashlib.sha256(self.key.encode()).hexdigest()[:6]}"
        return f"{name}-{self.fingerprint[:8]}{more}"

    def tag(self, tag: str) -> str:
        """The tag of a metric that was measured on this set, where its plain tag stands for another."""
        first, slash, rest = tag.partition("/")
        return f"{first}@{self.label}{slash}{rest}"

    def words(self) -> str:
        """For people: the set 'objectnet' (fingerprint 1a2b3c4d5e6f7081, 50,000 examples)."""
        shown = f"{self.examples:,}" if self.subset is None else f"{self.subset:,} of {self.examples:,}"
        settings = "".join(f"; {name} {value}" for name, value in sorted(self.settings.items()))
        return f"the set {self.name!r} (fingerprint {self.fingerprint}, {shown} examples{settings})"


class Tags:
    """Which set each tag of a run stands for.

    Args:
        owners: the sets, by tag; None: one that nobody knows, so that all are others.
    """

    def __init__(self, owners: Mapping[str, MeasuredOn | None] | None = None) -> None:
        self.owners = dict(owners or {})

    def claim(self, tag: str, measured: MeasuredOn | None) -> str:
        """The tag of a value: the metric's own where nothing else was measured under it before.

        Args:
            tag: of the metric, as its evaluator yields it.
            measured: on what; None where the evaluator looks at no set: its tags are nobody's.
        """
        name = self.place(tag, measured)
        if measured is not None:
            self.owners.setdefault(name, measured)
        return name

    def place(self, tag: str, measured: MeasuredOn | None) -> str:
        """The same, and nothing is claimed."""
        if measured is None or tag not in self.owners:
            return tag
        owner = self.owners[tag]
        if owner is not None and owner.key == measured.key:
            return tag
        # The same set may have been called otherwise when it was measured first.
        others = (one.tag(tag) for one in self.owners.values() if one is not None and one.key == measured.key)
        return next((other for other in others if other in self.owners), measured.tag(tag))

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {tag: one.model_dump(mode="json") for tag, one in self.owners.items() if one is not None}


def digest_of(names: Iterable[str]) -> str:
    """Of the names of classes in the order of their numbers; '' where there are none."""
    listed = list(names)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16] if any(listed) else ""
