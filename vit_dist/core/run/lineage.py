"""What a branch comes from: the runs it has grown out of, where it left each, and what they have cost. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from vit_dist.core.units import counted

KEY = "lineage"
"""Of run.json and of the markers of a branch's checkpoints; there only where there is one."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=500)]


class Trunk(BaseModel):
    """One run in a lineage, up to the step at which the next one left it.

    Attributes:
        run: its name, for people.
        recipe_hash: of its recipe.
        step, examples: of the checkpoint at which it was left; counted from the beginning of the first trunk.
        digest: of that checkpoint, see `checkpoint_digest`.
        macs_per_image: multiply-adds of a forward pass of one image of its model; None where that is not known.
        changed: what the next one has other than this, 'optim.lr: 0.001 -> 0.0003', for people.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    run: Text
    recipe_hash: Text
    step: Count
    examples: Count
    digest: Text
    macs_per_image: Count | None = None
    changed: Annotated[tuple[Text, ...], Field(strict=False, max_length=1000)] = ()

    @property
    def place(self) -> str:
        """Which run and where it was left: 'demo-1a2b3c4d@500'."""
        return f"{self.run}@{self.step}"


Lineage = tuple[Trunk, ...]
"""Trunks, the first one first; () of a run that is no branch."""

_LINEAGE = TypeAdapter(Lineage)


def read_lineage(raw: object) -> Lineage:
    """A lineage from plain data, such as a marker's or run.json's.

    Raises:
        ValueError: it is none.
    """
    return _LINEAGE.validate_python(tuple(raw) if isinstance(raw, list) else raw)


def is_lineage(raw: object) -> bool:
    """Whether plain data is a lineage."""
    try:
        read_lineage(raw)
    except ValueError:
        return False
    return True


def plain_lineage(lineage: Lineage) -> list[dict[str, Any]]:
    """As plain data."""
    return [trunk.model_dump(mode="json") for trunk in lineage]


def checkpoint_digest(marker: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that name what a checkpoint holds: its parts by their checksums, train state and recipe.

    Not what wrote it, when, or how long that took.
    """
    parts = {name: entry["xxh128"] for name, entry in marker["files"].items()}
    text = json.dumps([parts, marker["state"], marker["recipe"]], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def trunk_multiply_adds(lineage: Sequence[Trunk]) -> int | None:
    """Multiply-adds of forward passes of all examples of the trunks, each example by the model that it went through.

    None where those of one of them are not known.
    """
    total = before = 0
    for trunk in lineage:
        if trunk.macs_per_image is None:
            return None
        total += trunk.macs_per_image * (trunk.examples - before)
        before = trunk.examples
    return total


def multiply_adds(lineage: Sequence[Trunk], macs_per_image: int | None, examples: float) -> float | None:
    """The same of a run so far, its trunks included.

    Args:
        lineage: of the run.
        macs_per_image: of its own model; None: not known.
        examples: trained on since the beginning of the first trunk.
    """
    trunks = trunk_multiply_adds(lineage)
    if macs_per_image is None or trunks is None:
        return None
    before = lineage[-1].examples if lineage else 0
    # A curve of a branch may be asked for an example of its trunk.
    return trunks + macs_per_image * max(0, examples - before)


def described(lineage: Sequence[Trunk]) -> str:
    """In words for people, the nearest trunk first; '' of a run that is no branch."""
    return ", which branched from ".join(
        f"{trunk.run} at step {trunk.step:,} ({counted(trunk.examples, 'example')})" for trunk in reversed(lineage)
    )
