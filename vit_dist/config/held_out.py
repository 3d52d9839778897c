"""How much of a training set is held out of training, to choose by: `data.held_out`. No torch."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator

from vit_dist.core.units import parse_count
from vit_dist.core.urls import redact

_PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")


def parse_held_out(value: object) -> str:
    """'2%' or a count such as '1000', in one spelling; '' for nothing.

    Raises:
        ValueError: neither; or all of a set, or nothing of it.
    """
    if value is None or value == "":
        return ""
    found = _PERCENT.match(str(value).strip())
    if found:
        share = Fraction(found[1])
        if not 0 < share < 100:
            raise ValueError(f"{value!r} of the training set: give more than 0% and less than 100%")
        return f"{float(share):g}%"
    try:
        count = parse_count(value)
    except ValueError:
        raise ValueError(f"expected a share such as '2%' or a count such as 500, got {value!r}") from None
    if count < 1:
        raise ValueError("0 examples are no slice to choose by; leave it out to hold out nothing")
    return str(count)


HeldOut = Annotated[str, BeforeValidator(parse_held_out)]


def check_beside(held_out: str, val: str, *, mixed: bool) -> None:
    """Refuse a slice where none can be taken, or would not be looked at.

    Args:
        held_out: as `parse_held_out` spells it.
        val: `data.val`.
        mixed: whether there are several training sets.

    Raises:
        ValueError: so it is.
    """
    if held_out and mixed:
        raise ValueError(f"held_out={held_out} beside mixture: a slice is held out of one set alone")
    if held_out and val:
        raise ValueError(
            f"held_out={held_out} beside val={redact(val)}: evaluated is one of them; leave held_out out, or say "
            f"data.val="
        )


def held_out_count(held_out: str, total: int) -> int:
    """How many of `total` examples are held out.

    Args:
        held_out: as `parse_held_out` spells it.
        total: examples that there are, after `data.subset`.

    Raises:
        ValueError: none would be, or none would be left to train on.
    """
    if not held_out:
        return 0
    share = held_out.endswith("%")
    count = round(Fraction(held_out[:-1]) * total / 100) if share else int(held_out)
    if count < 1:
        least = f"{100 / total:.2g}%" if total else "more"
        raise ValueError(
            f"{held_out} of {total:,} examples is not one of them: nothing is held out to choose by; give {least} or "
            f"more, or a count"
        )
    if count >= total:
        raise ValueError(f"{held_out} of {total:,} examples are held out, and none is left to train on; give fewer")
    return count
