"""Lengths inside a section, such as a schedule's: found wherever they stand, and turned into steps in one place.

No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from vit_dist.core.registry import Config
from vit_dist.core.units import Duration, parse_length

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Share:
    """A part of a run, whatever its length: '20%'. `value` is exact, from 0 to 1."""

    value: Fraction

    @classmethod
    def parse(cls, text: object) -> Share:
        """Read a percentage.

        Raises:
            ValueError: it is none, or beyond 100%.
        """
        if isinstance(text, Share):
            return text
        digits = text.strip().removesuffix("%").strip() if isinstance(text, str) and text.strip().endswith("%") else ""
        # Short and plain, since it becomes a fraction: an exponent would fill the memory.
        if len(digits) > 20 or not digits.replace(".", "", 1).isdecimal():
            raise ValueError(f"expected a share of the run such as '20%', got {text!r:.80}")
        if (share := Fraction(digits) / 100) > 1:
            raise ValueError(f"{text!r:.80} is more than the whole run; give 0% to 100%")
        return cls(share)

    def __str__(self) -> str:
        percent = self.value * 100
        return f"{percent.numerator if percent.denominator == 1 else float(percent)}%"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


def parse_length_or_share(value: object) -> Duration | Share:
    """A duration in steps, examples or epochs, or a share of the run.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, Share) or (isinstance(value, str) and value.strip().endswith("%")):
        return Share.parse(value)
    return parse_length(value)


LengthOrShare = Annotated[Duration | Share, BeforeValidator(parse_length_or_share)]


def lengths_of(config: Config, prefix: str) -> dict[str, Duration | Share]:
    """Every length of a section by its key, those in lists too, in the order of the fields; a plug-in's as ours.

    Args:
        config: the section.
        prefix: of its keys, such as 'schedule'.
    """
    return {key: length for name in type(config).model_fields for key, length in _lengths(config, name, prefix)}


def _lengths(config: Config, name: str, prefix: str) -> Iterator[tuple[str, Duration | Share]]:
    value = getattr(config, name)
    if isinstance(value, Duration | Share):
        yield f"{prefix}.{name}", value
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            if isinstance(item, Duration | Share):
                yield f"{prefix}.{name}[{i}]", item


def in_steps(config: C, *, global_batch: int, epoch_examples: int, total_steps: int) -> C:
    """The same section with every length in steps: examples / batch, rounded half up, as for the horizon.

    Args:
        config: the section; its spans of time stay.
        global_batch: of the run.
        epoch_examples: of a pass over its set.
        total_steps: of the run, of which shares are.
    """

    def steps(value: Any) -> Any:
        if isinstance(value, Share):
            return Duration(Fraction(int(value.value * total_steps + Fraction(1, 2))), "steps")
        if isinstance(value, Duration) and value.unit != "seconds":
            count = value.steps(global_batch=global_batch, epoch_examples=epoch_examples)
            return Duration(Fraction(count), "steps")
        return type(value)(map(steps, value)) if type(value) in (tuple, list) else value

    changed = {name: steps(getattr(config, name)) for name in type(config).model_fields}
    return config.model_copy(update=changed)


def whole_steps(length: Duration | Share) -> int:
    """A length that `in_steps` has turned into steps, as a number."""
    assert isinstance(length, Duration), f"{length} is not in steps yet"
    assert length.unit == "steps", f"{length} is not in steps yet"
    return int(length.value)
