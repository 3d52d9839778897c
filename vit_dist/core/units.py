"""Numbers that carry their units: durations, counts, bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Unit = Literal["epochs", "examples", "steps", "seconds"]

_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_NUMBER = re.compile(r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)\s*([kKmMbBgG]?)\s*$")
_DURATION = re.compile(r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?(?:\s*[kKmMbB](?=\s))?)\s*([A-Za-z]+)\s*$")
_UNITS: dict[str, tuple[Unit, int]] = {
    "epoch": ("epochs", 1),
    "epochs": ("epochs", 1),
    "example": ("examples", 1),
    "examples": ("examples", 1),
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "s": ("seconds", 1),
    "sec": ("seconds", 1),
    "second": ("seconds", 1),
    "seconds": ("seconds", 1),
    "min": ("seconds", 60),
    "minute": ("seconds", 60),
    "minutes": ("seconds", 60),
    "h": ("seconds", 3600),
    "hour": ("seconds", 3600),
    "hours": ("seconds", 3600),
}
_BYTES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


# Of a number with its unit: the patterns take the square of a text's length, and some texts come from files. For the
# same reason an exponent has two digits: 1e999999999 is exact here, and fills the memory.
_LONGEST = 200
_FEWEST_BYTES = 1 << 20
"""Of a bare number that counts as bytes, as resolved recipes are written; fewer are a slip: `4` for 4 GiB."""


def no_unit(value: object, units: Sequence[str]) -> str:
    """What to say of a bare number where a unit is needed, with the ways to read it.

    Args:
        value: what was given.
        units: that may be meant, as they are written behind a number: ' steps', 'h'.
    """
    number = str(value).strip()
    *most, last = (f"'{number}{unit}'" for unit in units)
    return f"{number} has no unit; write {', '.join(most)} or {last}"


def is_bare(value: object) -> bool:
    """Whether a value is a number and nothing else, as YAML or as text."""
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    return isinstance(value, str) and len(value) <= _LONGEST and _NUMBER.match(value) is not None


def _fraction(text: str) -> Fraction | None:
    match = _NUMBER.match(text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    digits = match.group(1).replace("_", "").replace(",", "")
    return Fraction(digits) * _MULTIPLES[match.group(2).lower()]


def parse_count(value: object) -> int:
    """A whole number from `30000`, `"30k"`, `"1.5M"` or `"1_000"`.

    Raises:
        ValueError: not a whole, non-negative number.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected a count such as 30000 or '30k', got {value!r:.80}")
    number = Fraction(value) if isinstance(value, int) else _fraction(value)
    if number is None or number.denominator != 1 or number < 0:
        raise ValueError(f"expected a count such as 30000 or '30k', got {value!r:.80}")
    return int(number)


def format_count(number: int | Fraction) -> str:
    """The shortest exact form: 30000 -> '30k', 1500000 -> '1.5M', 12345 -> '12345'."""
    for suffix, multiple in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        scaled = Fraction(number) / multiple
        if scaled >= 1 and (scaled * 10).denominator == 1:
            return f"{_decimal(scaled)}{suffix}"
    return _decimal(Fraction(number))


def _decimal(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else repr(float(number))


def nearest_multiples(value: int, of: int) -> str:
    """The multiples of a number on both sides of a value, for error texts: (10, 4) -> '8, 12', (3, 4) -> '4'."""
    low = value - value % of
    return f"{low}, {low + of}" if low else f"{of}"


def parse_bytes(value: object) -> int:
    """Bytes from `"256 MiB"`, `"1.5GB"` or `1048576`; a bare number counts bytes, from 1 MiB on.

    Raises:
        ValueError: the text is not a size, or a number so small that its unit was forgotten.
    """
    text = str(value)
    match = re.match(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$", text) if len(text) <= _LONGEST else None
    if match is None or match.group(2) not in _BYTES:
        raise ValueError(f"expected a size such as '256 MiB', got {value!r:.80}")
    size = int(Fraction(match.group(1)) * _BYTES[match.group(2)])
    if not match.group(2) and size < _FEWEST_BYTES:
        raise ValueError(no_unit(value, (" MiB", " GiB", " B")))
    return size


def format_bytes(size: int | float) -> str:
    """A size for people: 1536 -> '1.5 KiB'."""
    size = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(count: int, one: str, many: str = "") -> str:
    """So many of a thing, in its right number: 1 -> '1 image', 2000 -> '2,000 images'. Every count that a user reads.

    Args:
        count: how many.
        one: what they are, where there is one; a verb may follow: 'image is'.
        many: the same for any other number; '': `one` in the plural.
    """
    return f"{count:,} {one if count == 1 else many or plural(one)}"


def plural(one: str) -> str:
    """The plural of a noun, or of several words that end in it: 'class directory' -> 'class directories'."""
    if one.endswith(("s", "x", "ch", "sh")):
        return f"{one}es"
    if one.endswith("y") and not one.endswith(("ay", "ey", "oy")):
        return f"{one[:-1]}ies"
    return f"{one}s"


def format_rate(per_s: float) -> str:
    """Things a second, for people, never rounded to nothing: 12345.6 -> '12,346', 1.66 -> '1.7', 0.0321 -> '0.032'."""
    if per_s >= 10 or per_s == 0:
        return f"{per_s:,.0f}"
    return f"{per_s:.2g}" if per_s >= 0.0001 else f"{per_s:.1e}"


def format_seconds(seconds: float) -> str:
    """A span of time for people: 75 -> '1m15s'."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{rounded}s"
    if rounded < 3600:
        return f"{rounded // 60}m{rounded % 60:02d}s"
    return f"{rounded // 3600}h{rounded % 3600 // 60:02d}m"


@dataclass(frozen=True)
class Duration:
    """A length of training: '7 epochs', '40M examples', '10k steps', or '2h' for cadences.

    `value` is exact; `unit` is 'epochs', 'examples', 'steps' or 'seconds'.
    """

    value: Fraction
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read a duration.

        Raises:
            ValueError: no number, or no unit that is known.
        """
        if isinstance(text, Duration):
            return text
        if is_bare(text):
            raise ValueError(no_unit(text, (*_LENGTHS, *_SPANS)))
        match = _DURATION.match(text) if isinstance(text, str) and len(text) <= _LONGEST else None
        number = _fraction(match.group(1)) if match else None
        unit = _UNITS.get(match.group(2).lower()) if match else None
        if number is None or unit is None:
            raise ValueError(f"expected a duration such as '7 epochs', '40M examples' or '10k steps', got {text!r:.80}")
        name, multiple = unit
        return cls(number * multiple, name)

    def examples(self, *, global_batch: int, epoch_examples: int) -> Fraction:
        """This duration in examples. Raises ValueError for a span of time."""
        if self.unit == "epochs":
            return self.value * epoch_examples
        if self.unit == "examples":
            return self.value
        if self.unit == "steps":
            return self.value * global_batch
        raise ValueError(f"'{self}' is a span of time; examples, steps or epochs are needed here")

    def steps(self, *, global_batch: int, epoch_examples: int) -> int:
        """This duration in optimizer steps, rounded half up: round(examples / batch)."""
        examples = self.examples(global_batch=global_batch, epoch_examples=epoch_examples)
        return int(examples / global_batch + Fraction(1, 2))

    def __str__(self) -> str:
        if self.unit == "seconds":
            for name, seconds in (("h", 3600), ("min", 60)):
                if self.value and self.value % seconds == 0:
                    return f"{self.value // seconds}{name}"
            return f"{_decimal(self.value)}s"
        unit = self.unit.removesuffix("s") if self.value == 1 else self.unit
        return f"{format_count(self.value)} {unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


_LENGTHS, _SPANS = (" steps", " examples", " epochs"), ("min", "h")


def parse_length(value: object) -> Duration:
    """A duration in steps, examples or epochs.

    Raises:
        ValueError: no duration, or a span of time.
    """
    if is_bare(value):
        raise ValueError(no_unit(value, _LENGTHS))
    duration = Duration.parse(value)
    if duration.unit == "seconds":
        raise ValueError(f"'{duration}' is a span of time; give steps, examples or epochs")
    return duration


def parse_span(value: object) -> Duration:
    """A duration that is a span of time.

    Raises:
        ValueError: no duration, or one in steps, examples or epochs.
    """
    if is_bare(value):
        raise ValueError(no_unit(value, _SPANS))
    try:
        duration = Duration.parse(value)
    except ValueError:
        raise ValueError(f"expected a span of time such as '90s', '10min' or '24h', got {value!r}") from None
    if duration.unit != "seconds":
        raise ValueError(f"'{duration}' is not a span of time such as '90s', '10min' or '24h'")
    return duration


Length = Annotated[Duration, BeforeValidator(parse_length)]
Span = Annotated[Duration, BeforeValidator(parse_span)]

_FLOPS = re.compile(
    r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)\s*(|mega|giga|tera|peta|exa|zetta|[MGTPEZ])flops?\s*$", re.I
)
_FLOPS_POWERS = {"": 0, "mega": 6, "giga": 9, "tera": 12, "peta": 15, "exa": 18, "zetta": 21}


@dataclass(frozen=True)
class Flops:
    """An amount of compute: '800 exaFLOPs', '5 PFLOPs', '1e15 FLOPs'. `value` is in floating-point operations."""

    value: Fraction

    @classmethod
    def parse(cls, text: object) -> Flops:
        """Read an amount of compute.

        Raises:
            ValueError: no number, no such unit, or nothing at all.
        """
        if isinstance(text, Flops):
            return text
        match = _FLOPS.match(text) if isinstance(text, str) and len(text) <= _LONGEST else None
        if match is None:
            raise ValueError(f"expected an amount of compute such as '800 exaFLOPs' or '5 PFLOPs', got {text!r:.80}")
        prefix = match.group(2).lower()
        power = next(p for name, p in _FLOPS_POWERS.items() if name == prefix or (prefix and name[:1] == prefix))
        number = Fraction(match.group(1).replace("_", "").replace(",", ""))
        if number == 0:
            raise ValueError(f"{text!r} trains nothing")
        return cls(number * 10**power)

    def __str__(self) -> str:
        return format_flops(float(self.value))


def format_flops(flops: float) -> str:
    """Compute for people: 3.2e15 -> '3.2 PFLOPs', 8.19e20 -> '819 exaFLOPs'."""
    for unit, power in (("exaFLOPs", 18), ("PFLOPs", 15), ("TFLOPs", 12), ("GFLOPs", 9)):
        number = flops / 10**power
        if number >= 0.9995:
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
    return f"{flops:,.0f} FLOPs"
