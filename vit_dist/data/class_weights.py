"""A file of class weights: a number a line, in the order of the classes' numbers. No torch."""

from __future__ import annotations

import math

from vit_dist.core.errors import DataError
from vit_dist.core.files import read_bytes, redact
from vit_dist.core.text import decode_text

KEY = "loss.class_weights_file"
_SHOWN = 40


def read_class_weights(url: str, num_classes: int) -> list[float]:
    """The numbers of a file, one for each class; blank lines and what follows a `#` are left out.

    Raises:
        DataError: it cannot be read, or a line is no weight; names the key, the file and the line.
    """
    try:
        text = decode_text(read_bytes(url))
    except DataError as error:
        raise type(error)(f"{KEY}: {error}") from None
    except ValueError as error:
        raise DataError(f"{KEY}: {redact(url)}: {error}") from None
    weights = []
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if said:
            weights.append(_weight(said, f"{KEY}: {redact(url)}, line {number}"))
    if len(weights) != num_classes:
        raise DataError(
            f"{KEY}: {redact(url)} has {len(weights):,} weights, and data.num_classes={num_classes}; write one a line "
            f"for each class, in the order of their numbers"
        )
    if not any(weights):
        raise DataError(f"{KEY}: {redact(url)}: no class has a weight, so that nothing would be learned")
    return weights


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise DataError(f"{where}: {text[:_SHOWN]!r} is no weight; expected a number from 0")
    return weight
